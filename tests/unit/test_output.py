"""The plain and the rich display, fed with events."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from modal_nomad import _output
from modal_nomad._output import OutputManager
from modal_nomad._output_rich import RichOutput


def log(
    text: bytes, function: str = "f", container: str = "ta-1", stream: int = 1
) -> tuple[dict[str, Any], bytes]:
    return {"t": "log", "a": "ap-1", "f": function, "k": container, "s": stream, "ts": 1.0}, text


def event(kind: str, reason: str = "", function: str = "f", container: str = "ta-1") -> dict[str, Any]:
    return {"t": "ev", "a": "ap-1", "f": function, "k": container, "e": kind, "r": reason}


def make() -> tuple[OutputManager, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return OutputManager(out, err), out, err


def test_lines_cut_by_chunks_are_joined_even_inside_a_character() -> None:
    manager, out, err = make()
    data = "größe\nrest".encode()
    for byte in data:
        manager.on_event(*log(bytes([byte])))
    manager.on_event(*log(b"oops\n", stream=2))
    assert (out.getvalue(), err.getvalue()) == ("größe\n", "oops\n")
    manager.finished()
    assert out.getvalue() == "größe\nrest\n"


def test_prefix_only_where_there_are_several_functions() -> None:
    manager, out, _ = make()
    manager.on_event(*log(b"one\n"))
    manager.on_event(*log(b"two\n", function="g", container="ta-2"))
    manager.on_event(*log(b"three\n"))
    assert out.getvalue() == "one\ng | two\nf | three\n"


def test_created_progress_and_reasons() -> None:
    manager, out, _ = make()
    manager.created("function", "f")
    manager.on_event(event("pending", "no node has 64 GiB"), b"")
    manager.on_event(event("pending", "no node has 64 GiB"), b"")
    manager.input_progress("f", 1, 2)
    manager.input_progress("f", 2, 2)
    manager.on_event(event("ended", "out of memory"), b"")
    assert out.getvalue().splitlines() == [
        "Created function f.",
        "f: waiting for a container: no node has 64 GiB",
        "f: 2 of 2 inputs done.",
        "f: container ended: out of memory",
    ]


def test_closed_pipe_does_not_end_the_run() -> None:
    manager, out, _ = make()
    out.close()
    manager.on_event(*log(b"x\n"))


def test_enable_output_nests_and_restores(capsys: pytest.CaptureFixture[str]) -> None:
    assert _output.current() is None
    with _output.enable_output():
        outer = _output.current()
        with _output.enable_output(show_progress=False):
            inner = _output.current()
            assert inner is not None and inner is not outer
            inner.created("function", "f")
        assert _output.current() is outer
    assert _output.current() is None
    assert capsys.readouterr().out == ""


def test_rich_display_shows_logs_as_they_are() -> None:
    out = io.StringIO()
    manager = RichOutput(Console(file=out, force_terminal=True, width=100, color_system=None))
    manager.created("function", "f")
    manager.created("function", "g")
    manager.on_event(event("starting"), b"")
    manager.input_progress("f", 1, 3)
    manager.on_event(*log(b"[bold]not markup[/bold]\n"))
    manager.finished()
    shown = out.getvalue()
    assert "f | [bold]not markup[/bold]" in shown
    assert "Created function f." in shown
