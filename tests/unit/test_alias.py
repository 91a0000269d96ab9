"""``import modal`` is this package, in a process of its own for each case."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import modal_nomad

ALIAS = Path(__file__).resolve().parents[2] / "alias"


def python(*arguments: str, path: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(path or "")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(code: str) -> str:
    return python("-c", "from modal_nomad import _alias; _alias.install()\n" + code)


def test_plain_python_imports_it() -> None:
    code = """
import modal
import modal.exception, modal_nomad
from modal.gpu import A100
print(modal is modal_nomad, modal.exception is modal_nomad.exception, A100 is modal.gpu.A100)
"""
    assert python("-c", code) == "True True True"


def test_python_m_modal_is_the_command() -> None:
    assert python("-m", "modal", "--version") == f"modal-nomad {modal_nomad.__version__}"


def test_an_installed_client_is_what_plain_python_imports(tmp_path: Path) -> None:
    (tmp_path / "modal").mkdir()
    (tmp_path / "modal/__init__.py").write_text("client = 'its own'\n")
    shutil.copy(ALIAS / "modal.py", tmp_path)
    assert python("-c", "import modal; print(modal.client)", path=tmp_path) == "its own"


def test_type_checkers_find_every_module() -> None:
    stubs = {path.stem for path in ALIAS.glob("modal-stubs/*.pyi")} - {"__init__"}
    assert stubs == set(modal_nomad._SUBMODULES)
    told = (ALIAS / "modal-stubs/__init__.pyi").read_text()
    assert all(f"from . import {name} as {name}\n" in told for name in stubs)


@pytest.mark.parametrize(
    "first, second",
    [("modal", "modal_nomad"), ("modal_nomad", "modal")],
)
def test_same_modules_in_either_order(first: str, second: str) -> None:
    code = f"""
import {first}.exception, {second}.exception, {first}, {second}, sys
assert {first} is {second}
assert {first}.exception is {second}.exception
assert sys.modules["modal.exception"] is sys.modules["modal_nomad.exception"]
print({first}.__spec__.name, {first}.__name__, {first}.exception.__spec__.name)
"""
    assert run(code) == "modal_nomad modal_nomad modal_nomad.exception"


def test_from_imports_and_classes() -> None:
    code = """
from modal.exception import Error
from modal import App
from modal.app import App as Same
import modal_nomad
print(Error is modal_nomad.exception.Error, App is Same is modal_nomad.App)
"""
    assert run(code) == "True True"


def test_absent_submodule_names_what_was_written() -> None:
    code = """
try:
    import modal.nothing_of_that_name
except ModuleNotFoundError as error:
    print(error)
"""
    assert "modal.nothing_of_that_name" in run(code)


def test_install_twice_and_uninstall() -> None:
    code = """
import sys
before = len(sys.meta_path)
_alias.install()
import modal
assert len(sys.meta_path) == before
_alias.uninstall()
assert "modal" not in sys.modules and "modal_nomad" in sys.modules
print(len(sys.meta_path) - before)
"""
    assert run(code) == "-1"


def test_wins_over_an_installed_modal(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "modal.py").write_text("raise RuntimeError('the wrong one')")
    assert run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import modal; print(modal.__name__)") == (
        "modal_nomad"
    )
