"""The display for a terminal, drawn on a small screen: nothing doubled, nothing left behind."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console
from test_output import event, log

from modal_nomad import _output_rich
from modal_nomad._output_rich import RichOutput
from tests._screen import Screen


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def display(width: int = 80) -> Iterator[tuple[RichOutput, Tty]]:
    """A display that draws only when it is told to, and at once; ``sys.stdout`` is its terminal."""
    tty = Tty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", tty)
        patch.setattr(sys, "stderr", tty)
        patch.setattr(_output_rich, "SHOW_AFTER_SECONDS", 0.0)
        console = Console(file=tty, force_terminal=True, width=width, height=24, color_system="standard")
        manager = RichOutput(console, tty, tty)
        patch.setattr(manager._region, "start", lambda: None)
        yield manager, tty
        manager.finished()
        manager.close()


def screen(tty: Tty, width: int = 80) -> list[str]:
    one = Screen(width)
    one.feed(tty.getvalue())
    return one.lines()


def test_a_call_has_one_line_while_it_runs_and_one_after() -> None:
    with display() as (manager, tty):
        manager.created("function", "f")
        manager.on_event(event("starting"), b"")
        call = manager.begin("f", 30)
        manager._region.refresh()
        assert "0/30" in screen(tty)[-1] and "starting a container" in screen(tty)[-1]
        manager.on_event(event("ready"), b"")
        call.done = 10
        for _ in range(3):
            manager._region.refresh()
        assert len(screen(tty)) == 2
        assert "10/30" in screen(tty)[-1] and "1 container" in screen(tty)[-1]
        call.done = 30
        call.end()
        lines = screen(tty)
        assert lines[0] == "✓ Created function f."
        assert len(lines) == 2 and lines[1].startswith("✓ f: 30 inputs done in ")


def test_logs_stand_above_the_live_line_as_they_are() -> None:
    with display() as (manager, tty):
        manager.begin("f", 3)
        manager._region.refresh()
        manager.on_event(*log(b"[bold]not markup[/bold]\n\x1b[2Jno clearing \x1b[31mred\x1b[0m\n"))
        lines = screen(tty)
        assert lines[:2] == ["f | [bold]not markup[/bold]", "f | no clearing red"]
        assert "0/3" in lines[2] and len(lines) == 3
        assert "\x1b[31mred" in tty.getvalue() and "\x1b[2J" not in tty.getvalue()


def test_the_programs_own_lines_stay_whole() -> None:
    with display() as (manager, tty):
        manager.begin("f", 3)
        manager._region.refresh()
        sys.stdout.write("mine")
        manager.on_event(*log(b"theirs\n"))
        print("", 1, "[bold]")
        assert screen(tty)[:2] == ["f | theirs", "mine 1 [bold]"]
        sys.stdout.write("\r 1/9")
        sys.stdout.flush()
        manager._region.refresh()
        assert screen(tty)[2:] == [" 1/9"]
        manager.on_event(*log(b"more\n"))
        assert screen(tty)[2] == "f | more" and "0/3" in screen(tty)[3]
        sys.stdout.write("\r 2/9\n")
        assert screen(tty)[3] == " 2/9"


def test_a_containers_open_line_is_shown_live() -> None:
    with display() as (manager, tty):
        manager.begin("f", 3)
        manager.on_event(*log(b"\r10%\r20%"))
        manager._region.refresh()
        assert screen(tty)[-1] == "f | 20%"
        manager.on_event(*log(b"\r30%\n"))
        manager._region.refresh()
        assert screen(tty)[0] == "f | 30%" and len(screen(tty)) == 2


def test_the_streams_come_back() -> None:
    with display() as (manager, tty):
        assert sys.stdout is not tty
        sys.stdout.write("open")
        manager.close()
        assert sys.stdout is tty and sys.stderr is tty and tty.getvalue().endswith("open")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_frame_fits_the_terminal(width: int) -> None:
    with display(width) as (manager, tty):
        for number in range(30):
            name = f"function_{number}_" + "x" * 60
            manager.begin(name, 1_000_000)
            manager.on_event(event("pending", "no node has enough memory " * 9, name), b"")
        manager._region.refresh()
        manager._region.refresh()
        lines = screen(tty, width)
        assert len(lines) <= 22 and all(len(line) < width for line in lines)
        manager.finished()
        manager.close()
        assert screen(tty, width) == []
