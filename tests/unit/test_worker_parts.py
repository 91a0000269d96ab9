"""The worker's parts that need no process: frames of outputs, cutting of text, loading of functions."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad import _execution_context as context
from modal_nomad.exception import InvalidError, NotFoundError
from modal_nomad.wire import frames
from modal_nomad.wire.spec import FunctionSpec
from modal_nomad.worker._backlog import Backlog
from modal_nomad.worker._capture import _whole_characters
from modal_nomad.worker._loader import load_function
from modal_nomad.worker._outbox import Output, Values, _done_frame, stopped


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Path]:
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def no_blob(name: str) -> bytes:
    raise KeyError(name)


@given(st.text(min_size=1), st.data())
def test_cutting_never_breaks_a_character(text: str, data: Any) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    if any(0xD800 <= ord(c) < 0xE000 for c in text):
        return
    cut = data.draw(st.integers(1, len(raw)))
    whole = _whole_characters(raw[:cut])
    raw[:whole].decode()
    assert cut - whole < 4


def test_bytes_that_are_no_text_are_not_held_back() -> None:
    assert _whole_characters(b"ab\xff\x80\x80\x80") == 6


@given(
    st.lists(
        st.tuples(st.integers(0, 2**53), st.integers(0, 5), st.integers(0, 1), st.binary(max_size=20)),
        min_size=1,
    )
)
def test_done_frames_are_frames(batch: list[Output]) -> None:
    header, payloads = frames.decode(_done_frame([item[0] for item in batch], batch, 0.25, [0.1, 0.25]))
    assert header["u"] == [0.1, 0.25]
    assert "u" not in frames.decode(_done_frame([item[0] for item in batch], batch, 0.25, None))[0]
    assert header["t"] == "done" and header["x"] == [item[0] for item in batch] and header["d"] == 0.25
    assert payloads == [item[3] for item in batch]
    assert header.get("s", [0] * len(batch)) == [item[1] for item in batch]
    assert header.get("f", [0] * len(batch)) == [item[2] for item in batch]


def test_large_results_become_blobs() -> None:
    stored: list[bytes] = []

    def put(data: bytes) -> str:
        stored.append(data)
        return "ab"

    big = b"x" * (frames.INLINE_LIMIT + 1)
    assert Values(no_blob, put, lambda names: {}).output(1, 0, big) == (1, 0, frames.FLAG_BLOB, b"ab")
    assert stored == [big]


def test_a_stopped_input_says_why() -> None:
    assert b"timeout of 1.5 s" in stopped(1, frames.TIMEOUT, 1.5)[3]
    assert stopped(1, frames.TERMINATED, 1.5)[3] == b"the input was cancelled"


def test_a_script_wins_over_a_module_of_its_name(code: Path) -> None:
    (code / "colorsys").write_text("def f(): return __name__, __file__")
    previous = sys.modules.pop("colorsys", None)
    try:
        spec = FunctionSpec("a", "f", module="colorsys", qualname="f", file="colorsys")
        assert load_function(spec, str(code), no_blob)() == ("colorsys", str(code / "colorsys"))
    finally:
        sys.modules.pop("colorsys", None)
        if previous is not None:
            sys.modules["colorsys"] = previous


def test_a_decorated_function_is_unwrapped(code: Path) -> None:
    (code / "unwrapped.py").write_text(
        "class F:\n    def get_raw_f(self): return len\nclass A:\n    f = F()\n"
    )
    spec = FunctionSpec("a", "f", module="unwrapped", qualname="A.f", file="unwrapped.py")
    assert load_function(spec, str(code), no_blob) is len


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"qualname": "g"}, NotFoundError, "has no g"),
        ({"qualname": "h.<locals>.f"}, InvalidError, "serialized=True"),
        ({"qualname": "n"}, InvalidError, "not a function"),
        ({"serialized": True}, InvalidError, "deploy it again"),
    ],
)
def test_what_cannot_be_loaded(
    code: Path, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    (code / "usermod_x.py").write_text("n = 1\ndef h(): pass\n")
    spec = FunctionSpec("a", "f", module="usermod_x", file="usermod_x.py", **changes)
    with pytest.raises(kind, match=words):
        load_function(spec, str(code), no_blob)


def test_ids_of_the_running_input() -> None:
    token = context.current_work.set((4, "fc-abc", 2, 0, b""))
    try:
        assert context.current_input_id() == "in-abc:2"
        assert context.current_function_call_id() == "fc-abc"
    finally:
        context.current_work.reset(token)
    assert context.current_input_id() is None and context.current_function_call_id() is None


def test_answers_of_several_parts_wait_for_nobody() -> None:
    from modal_nomad.worker._web_port import listening

    sock, (host, port) = listening({})
    with sock:
        sock.listen()
        with socket.create_connection((host, port)):
            made, _ = sock.accept()
            with made:
                assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_cancellation_finds_an_input_that_a_lane_takes_its_time_to_begin() -> None:
    class Pool:
        running: frozenset[int] = frozenset()

        def cancel(self, lease: int) -> bool:
            return lease in self.running

    pool = Pool()
    backlog = Backlog(Any, lambda: None)  # type: ignore[arg-type]
    before = time.monotonic()
    # Off the queue, and not in a lane yet; the other one has ended already.
    backlog.cancel([1, 2], pool)
    after = time.monotonic()
    assert backlog.cancel_again(before, pool) < backlog.cancel_again(after + 2, pool) < 1
    pool.running = frozenset({1})
    assert backlog.cancel_again(after + 4, pool) < 1
    pool.running = frozenset()
    assert backlog.cancel_again(after + 6, pool) == float("inf")
