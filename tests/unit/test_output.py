"""The plain and the rich display, fed with events."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from modal_nomad import _output
from modal_nomad._output import OutputManager


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
    assert (out.getvalue(), err.getvalue()) == ("f | größe\n", "f | oops\n")
    manager.finished()
    assert out.getvalue() == "f | größe\nf | rest\n"


def test_every_line_bears_its_functions_name() -> None:
    manager, out, _ = make()
    manager.on_event(*log(b"one\n"))
    manager.on_event(*log(b"two\n", function="g", container="ta-2"))
    assert out.getvalue() == "f | one\ng | two\n"


def test_a_bar_that_redraws_itself_leaves_its_last_state() -> None:
    manager, out, _ = make()
    manager.on_event(*log(b"\r 1/3\r 2/3"))
    manager.on_event(*log(b"\r 3/3\nwindows\r\n"))
    assert out.getvalue() == "f |  3/3\nf | windows\n"


def test_an_open_line_is_written_when_its_container_ends() -> None:
    manager, out, _ = make()
    manager.on_event(*log(b"open"))
    manager.on_event(event("ended"), b"")
    assert out.getvalue() == "f | open\n"


def test_no_line_comes_between_the_pieces_of_the_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    class Value:
        def __str__(self) -> str:
            manager.on_event(*log(b"between\n"))
            return "3"

    with _output.enable_output():
        manager = _output.current()
        assert manager is not None
        # A print writes each of these by itself.
        print("got", Value(), "times")
        print("asked? ", end="", flush=True)
        manager.on_event(*log(b"after a prompt\n"))
        print("answered", end="")
        kept = sys.stdout
    print(" later", file=kept, end="")
    assert sys.stdout is out and err.getvalue() == ""
    assert out.getvalue() == "f | between\ngot 3 times\nasked? \nf | after a prompt\nanswered later"


def test_an_unbuffered_stream_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, write_through=True))
    with _output.enable_output():
        print(".", end="")
        assert raw.getvalue() == b"."
        manager = _output.current()
        assert manager is not None
        manager.on_event(*log(b"beside\n"))
    assert raw.getvalue() == b".\nf | beside\n"


def test_created_progress_and_reasons() -> None:
    manager, out, _ = make()
    manager.created("function", "f")
    manager.on_event(event("pending", "no node has 64 GiB"), b"")
    manager.on_event(event("pending", "no node has 64 GiB"), b"")
    one, many = manager.begin("f", 1, one=True), manager.begin("f", 2)
    one.done, many.done = 1, 2
    one.end()
    many.end()
    manager.on_event(event("ended", "out of memory"), b"")
    assert out.getvalue().splitlines() == [
        "Created function f.",
        "f: waiting for a container: no node has 64 GiB.",
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
