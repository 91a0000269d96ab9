"""Each command group as its user has it: what it prints, takes and exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import Live, alive, until

import modal_nomad as modal

APP = '''
    import datetime
    from typing import List, Literal, Optional

    import modal

    app = modal.App("commands")

    @app.function()
    def shout(word: str, times: int = 1, weight: float = 0.5, loud: bool = False, kind: bool = True,
              day: Optional[datetime.datetime] = None, how: Literal["a", "b"] = "a",
              numbers: List[int] = [1, 2], maybe: Optional[int] = None) -> str:
        """Shout a word.

        Args:
            word: what to shout.
        """
        print("shouting", word)
        return repr((word, times, weight, loud, kind, day and day.year, how, numbers, maybe))

    @app.function()
    def number() -> int:
        return 1

    @app.local_entrypoint()
    async def raw(*arguments):
        print("raw", arguments, await number.remote.aio())
'''


@pytest.fixture
def script(live: Live) -> str:
    return str(live.write("commands.py", APP))


@contextmanager
def running(live: Live, *words: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A command that goes on, and the lines of its stdout as they come."""
    process = live.start("-u", "-m", "modal_nomad", *words, start_new_session=True)
    lines: list[str] = []
    assert process.stdout is not None
    stdout = process.stdout

    def read() -> None:
        for line in stdout:
            lines.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait()
        reader.join(100)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def test_a_plain_functions_parameters_are_flags(live: Live, script: str) -> None:
    out = str(live.folder / "out")
    words = ["run", "-q", "-w", out, f"{script}::shout", "--word", "hey"]
    done = live.cli(*words)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (live.folder / "out").read_text() == repr(("hey", 1, 0.5, False, True, None, "a", [1, 2], None))
    done = live.cli(
        *words, "--times", "3", "--weight", "1.5", "--loud", "--no-kind", "--day", "2024-05-06T07:08:09",
        "--how", "b", "--numbers", "5", "--numbers", "6", "--maybe", "7",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (live.folder / "out").read_text() == repr(("hey", 3, 1.5, True, False, 2024, "b", [5, 6], 7))
    shown = live.cli("run", f"{script}::shout", "--help").stdout
    for text in ("Shout a word.", "what to shout.", "[default: 1, 2]", "[default: a]", "--kind / --no-kind"):
        assert text in shown, shown


def test_a_module_a_qualified_name_and_raw_arguments(live: Live, script: str) -> None:
    done = live.cli("run", "-m", "commands::app.raw", "one", "--two")
    assert done.returncode == 0 and "raw ('one', '--two') 1" in done.stdout, done.stderr
    assert live.cli("run", script, "x").stdout.count("raw ('x',) 1") == 1


def test_environments_are_apart(live: Live, script: str) -> None:
    assert live.cli("deploy", script, "--env", "apart", "--name", "other-name").returncode == 0
    listed = json.loads(live.cli("app", "list", "--env", "apart", "--json").stdout)
    assert [(entry["Description"], entry["State"]) for entry in listed] == [("other-name", "deployed")]
    assert modal.Function.from_name("other-name", "number", environment_name="apart").remote() == 1
    assert live.cli("app", "stop", "other-name").returncode == 1
    assert "Stopped other-name" in live.cli("app", "stop", "other-name", "--env", "apart").stdout


def test_deployments_are_planned_tagged_and_kept_in_a_history(live: Live, script: str) -> None:
    script = str(live.write("planned.py", APP.replace("commands", "planned")))
    planned = live.cli("deploy", "--plan", script)
    assert planned.returncode == 1 and "planned-shout" in planned.stdout, planned.stderr
    assert live.cli("app", "history", "planned").returncode == 1
    done = live.cli("deploy", script, "--tag", "v1.2")
    assert done.returncode == 0 and "Deployed planned (ap-" in done.stdout
    again = live.cli("deploy", "--plan", script)
    assert again.returncode == 0 and "no changes" in again.stdout and "\x1b" not in again.stdout
    (entry,) = json.loads(live.cli("app", "history", "planned", "--json").stdout)
    assert entry["Version"] == "v1" and entry["Tag"] == "v1.2" and entry["Client"] == modal.__version__
    assert live.cli("deploy", "--plan", "absent.py").returncode == 255
    assert live.cli("app", "stop", "planned").returncode == 0


def test_logs_are_followed_until_the_app_stops(live: Live, script: str) -> None:
    with running(live, "deploy", script, "--name", "followed", "--stream-logs") as (process, lines):
        until(lambda: any("Deployed followed" in line for line in lines), what="the deployment")
        modal.Function.from_name("followed", "shout").remote("first")
        until(lambda: "shout | shouting first\n" in lines, what="the log line")
        assert live.cli("app", "logs", "followed").stdout == "shout | shouting first\n"
        assert live.cli("app", "stop", "followed").returncode == 0
        assert process.wait(100) == 0


def test_following_ends_with_an_interrupt_and_leaves_the_app(live: Live, script: str) -> None:
    assert live.cli("deploy", script, "--name", "left").returncode == 0
    modal.Function.from_name("left", "shout").remote("before")
    with running(live, "app", "logs", "-f", "left") as (process, lines):
        until(lambda: "shout | shouting before\n" in lines, what="the backlog")
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 0
    assert modal.Function.from_name("left", "number").remote() == 1
    live.cli("app", "stop", "left")


def test_the_daemons_log_is_followed(own: Live) -> None:
    own.status()
    with running(own, "local", "logs", "--follow") as (process, lines):
        until(lambda: any("listening on" in line for line in lines), what="the daemon's log")
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130


def test_reset_asks_first(own: Live) -> None:
    pid = own.status()["pid"]
    refused = own.cli("local", "reset")
    assert refused.returncode == 1 and str(own.home) in refused.stdout and alive(pid)


def test_a_dispatcher_in_the_foreground(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = own.cli("dispatcher", "--print-config").stdout
    config = own.home / "config.toml"
    for default, value in (
        ('listen = "http://127.0.0.1:8520"', f'listen = "unix://{own.home}/front.sock"'),
        ('home = "/var/lib/modal-nomad"', f'home = "{own.home}/front"'),
        ('engine = "nomad"', 'engine = "local"'),
        ('auth = "nomad"', 'auth = "none"'),
    ):
        assert default in shown
        shown = shown.replace(default, value)
    config.write_text(shown)
    process = own.start("-m", "modal_nomad", "dispatcher", "--config", str(config))
    socket = own.home / "front.sock"
    try:
        until(socket.exists, what="the socket")
        monkeypatch.setenv("MODAL_SERVER_URL", f"unix://{socket}")
        assert own.cli("app", "list").returncode == 0
        second = own.cli("dispatcher", "--config", str(config))
        assert second.returncode == 1 and "another dispatcher runs" in second.stderr
        os.kill(process.pid, signal.SIGINT)
        _, log = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert f"listening on unix://{socket}" in log and "stopping" in log and "Traceback" not in log


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('engin = "local"', ["engin", "known are"]),
        ('engine = "kubernetes"', ["engine", "local, nomad"]),
        ('listen = "nonsense"', ["listen"]),
        ("client_grace = 'soon'", ["client_grace", "float"]),
        ("[nomad]\nadress = 'x'", ["adress"]),
        ("[render]\ndriver = 'docker-ish'", ["docker-ish"]),
        ("listen =", ["config.toml"]),
    ],
)
def test_a_bad_configuration_is_one_line(own: Live, line: str, words: list[str]) -> None:
    config = own.home / "config.toml"
    config.write_text(f'home = "{own.home}/bad"\n{line}\n')
    done = own.cli("dispatcher", "--config", str(config))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
