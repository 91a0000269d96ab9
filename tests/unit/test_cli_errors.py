"""What a user sees when something is wrong: one line, the right exit code, no traceback of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modal_nomad.cli import _errors
from modal_nomad.cli._root import app
from modal_nomad.exception import NotFoundError


def modal_nomad(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
    return subprocess.run(
        [sys.executable, "-m", "modal_nomad", *words],
        capture_output=True, text=True, check=False, cwd=cwd, env=env,
    )  # fmt: skip


def test_version_and_help() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.startswith("modal-nomad ")
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(name in shown for name in ("run", "deploy", "render", "local", "dispatcher"))


@pytest.mark.parametrize(
    "words, expected",
    [
        (["run", "absent.py"], "no such file"),
        (["run", "a.py:f"], "Did you mean 'a.py::f'"),
        (["run", "-i", "-q", "a.py"], "remove the --quiet flag"),
        (["run", "--wrong"], "wrong"),
        (["nothing"], "nothing"),
        (["deploy", "absent.py"], "no such file"),
        (["render", "absent.py"], "no such file"),
        (["dispatcher", "--config", "absent.toml"], "no such file"),
        (["dispatcher", "--home", "x", "--print-config"], "exclude each other"),
    ],
)
def test_usage_errors_exit_2(words: list[str], expected: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert expected in result.output
    assert "Traceback" not in result.output


def test_plan_failure_is_255() -> None:
    result = CliRunner().invoke(app, ["deploy", "--plan", "absent.py"])
    assert (result.exit_code, "no such file" in result.output) == (255, True)


def test_user_exception_is_cut_to_user_frames(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def helper():\n    return 1 / 0\n\nhelper()\n")
    done = modal_nomad("run", "broken.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "broken.py" in done.stderr
    assert "_import_ref" not in done.stderr and "importlib" not in done.stderr


def test_syntax_error_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    done = modal_nomad("run", "broken.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].endswith(f'File "{tmp_path}/broken.py", line 1')
    assert "SyntaxError" in done.stderr and "modal_nomad" not in done.stderr


def test_error_of_ours_is_one_line_with_the_users_place(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("import modal\napp = modal.App(3)\n")
    done = modal_nomad("run", "wrong.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Must be string" in done.stderr and "wrong.py:2" in done.stderr


def test_bad_flag_of_an_entrypoint(tmp_path: Path) -> None:
    (tmp_path / "ok.py").write_text(
        "import modal\napp = modal.App('x')\n@app.local_entrypoint()\ndef main(n: int): print(n)\n"
    )
    done = modal_nomad("run", "ok.py", "--n", "many", cwd=tmp_path)
    assert done.returncode == 2
    assert "Invalid value for '--n': 'many' is not a valid integer." in done.stderr
    assert "Traceback" not in done.stderr
    shown = modal_nomad("run", "ok.py", "--help", cwd=tmp_path)
    assert shown.returncode == 0 and "--n" in shown.stdout


def test_render_needs_no_server(tmp_path: Path) -> None:
    (tmp_path / "ok.py").write_text(
        "import modal\napp = modal.App('x')\n@app.function()\ndef f(n: int): return n\n"
    )
    done = modal_nomad("render", "ok.py", "--server-url", "http://d:1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"x-f"' in done.stdout
    hcl = modal_nomad("render", "ok.py", "--hcl", "--server-url", "http://d:1", cwd=tmp_path)
    assert hcl.stdout.startswith('job "x-f" {')
    without = modal_nomad("render", "ok.py", cwd=tmp_path)
    assert without.returncode == 2 and "--server-url" in without.stderr


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert _errors.report(KeyboardInterrupt()) == 130
    assert _errors.report(NotFoundError("no App named 'x'")) == 1
    assert _errors.report(ValueError("odd")) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "Cancelled."
    assert shown[1] == "Error: no App named 'x'"
    assert "MODAL_TRACEBACK" in shown[2]


def test_cli_module_is_cheap() -> None:
    code = (
        "import sys, modal_nomad.cli;"
        "print(sorted({'aiohttp', 'msgspec', 'rich.progress'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
