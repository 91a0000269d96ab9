"""``modal-nomad run`` as its user sees it: on a terminal of several widths, in a pipe, and interrupted."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from _pty import Terminal
from conftest import Live, until

APP = """
    import logging
    import sys
    import time

    import modal

    logging.basicConfig(level="INFO", format="logged %(message)s")
    app = modal.App("terminal")

    @app.function()
    def work(x):
        print("working on", x)
        # Longer than what is too short to be shown.
        time.sleep(0.35)
        return x

    @app.local_entrypoint()
    def main():
        print("first")
        # No container runs yet, so nothing comes between.
        print("no end", end="", flush=True)
        print(" of line")
        for value in work.map(range(8)):
            print("got", value)
            logging.info("%d", value)
        for step in range(3):
            print(f"\\r{step}/2 [bold]", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        print("last")

    @app.local_entrypoint()
    def forever():
        for _ in work.map(iter(int, 1)):
            pass

    @app.local_entrypoint()
    def slow():
        try:
            work.remote(1)
            print("begun", flush=True)
            time.sleep(60)
        finally:
            print("unwinding", flush=True)
"""
OWN = ["first", "no end of line", *[f"got {x}" for x in range(8)], "last"]
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d(?:;\d+)*m")


@pytest.fixture
def script(live: Live) -> str:
    return str(live.write("terminal.py", APP))


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal_nothing_is_lost_doubled_or_left_behind(live: Live, script: str, width: int) -> None:
    terminal = Terminal(live, "run", f"{script}::main", width=width)
    assert terminal.end() == 0
    lines = terminal.lines()
    # The live line was there, and is gone.
    assert re.search(r"\d/8 .*container", terminal.text)
    assert not any(re.search(r"\d/8", line) for line in lines)
    assert [line for line in lines if line in OWN] == OWN
    assert lines[0] == "✓ Created function work."
    assert sorted(line for line in lines if line.startswith("work |")) == [
        f"work | working on {x}" for x in range(8)
    ]
    assert [line for line in lines if line.startswith("logged")] == [f"logged {x}" for x in range(8)]
    assert sum(line.startswith("✓ work: 8 inputs done in") for line in lines) == 1
    assert "2/2 [bold]" in lines
    assert len(lines) == 1 + len(OWN) + 8 + 8 + 1 + 1, lines


def test_no_colour_where_it_is_not_wanted(live: Live, script: str) -> None:
    coloured = Terminal(live, "run", f"{script}::main")
    assert coloured.end() == 0 and COLOUR.search(coloured.text)
    plain = Terminal(live, "run", f"{script}::main", env={"NO_COLOR": "1"})
    assert plain.end() == 0 and not COLOUR.search(plain.text)
    dumb = Terminal(live, "run", f"{script}::main", env={"TERM": "dumb"})
    assert dumb.end() == 0 and "\x1b" not in dumb.text
    wrong = Terminal(live, "run", "absent.py", env={"NO_COLOR": "1"})
    assert wrong.end() == 2 and "\x1b" not in wrong.text


def test_a_pipe_gets_plain_lines(live: Live, script: str) -> None:
    done = live.cli("run", f"{script}::main")
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in OWN] == OWN
    assert "Created function work." in lines and "work: 8 of 8 inputs done." in lines
    assert "waiting" not in done.stdout


def test_quiet_leaves_the_programs_own_output_alone(live: Live, script: str) -> None:
    terminal = Terminal(live, "run", "-q", f"{script}::main")
    assert terminal.end() == 0
    assert [line for line in terminal.lines() if "logged" not in line] == [*OWN[:-1], "2/2 [bold]", "last"]


def test_stderr_in_a_file_stays_there(live: Live, script: str, tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as err:
        terminal = Terminal(live, "run", f"{script}::main", stderr=err)
        assert terminal.end() == 0
    assert "logged" not in terminal.text
    assert [line for line in (tmp_path / "err").read_text().splitlines() if "logged" in line] == [
        f"logged {x}" for x in range(8)
    ]


def test_one_interrupt_cancels_cleanly(own: Live) -> None:
    script = own.write("terminal.py", APP)
    terminal = Terminal(own, "run", f"{script}::forever")
    terminal.wait_for(" done ")
    terminal.press("\x03")
    assert terminal.end() == 130
    assert [line.replace("^C", "") for line in terminal.lines()][-1] == "Cancelled."
    assert "Traceback" not in terminal.text and "Error" not in terminal.text
    assert not any(" done " in line for line in terminal.lines())
    apps = own.request("app.list", environment=None)["apps"]
    assert [entry["state"] for entry in apps] == ["stopped"]
    until(lambda: not own.status()["containers"], what="the containers' end")


def test_a_second_interrupt_ends_it_at_once(own: Live) -> None:
    script = own.write("terminal.py", APP)
    terminal = Terminal(own, "run", f"{script}::slow")
    terminal.wait_for("begun")
    # A dispatcher that does not answer holds the clean way out up.
    pid = own.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        terminal.press("\x03")
        terminal.wait_for("unwinding")

        def again() -> bool:
            terminal.press("\x03")
            return terminal.process.poll() is not None

        until(again, what="the end")
        assert terminal.end() in (-signal.SIGINT, 130)
        assert "Traceback" not in terminal.text
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_detached_app_says_how_to_follow_and_stop_it(own: Live) -> None:
    script = own.write("terminal.py", APP)
    done = own.cli("run", "-d", "-q", f"{script}::main")
    assert done.returncode == 0
    app_id = re.search(r"App (ap-\w+) goes on", done.stderr)
    assert app_id, done.stderr
    states = {entry["app_id"]: entry["state"] for entry in own.request("app.list", environment=None)["apps"]}
    assert states == {app_id.group(1): "detached"}
    logs = own.cli("app", "logs", app_id.group(1))
    assert logs.stdout.count("work | working on") == 8
    assert own.cli("app", "stop", app_id.group(1)).returncode == 0
