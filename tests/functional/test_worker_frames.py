"""Containers that send what they should not, under a token that is theirs: only their own socket ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _served import Raw, Served
from hypothesis import given, settings
from hypothesis import strategies as st

from modal_nomad.wire import frames
from modal_nomad.wire.ids import new_id


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    # A Unix socket's path must be short, which pytest's own folders are not.
    with (
        tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as home,
        Served(Path(home)).running() as served,
    ):
        yield served


class Honest:
    """A client and a container that do their work beside the others."""

    def __init__(self, served: Served) -> None:
        self.client = served.client()
        _, self.function_id, job_id = served.function(self.client, timeout=600.0)
        self.call = new_id("fc")
        self._send(0)
        self.worker = served.worker(job_id)
        self.lease = self._lease()
        self.count = 0

    def _send(self, index: int) -> None:
        self.client.send({"t": "in", "c": self.call, "f": self.function_id, "x": [index]}, [b"in"])

    def _lease(self) -> int:
        header, _ = self.worker.take("run")
        return int(header["x"][0])

    def one_more(self) -> None:
        """Answer the input that was running all the while, and have the next one sent."""
        payload = b"honest %d" % self.count
        self.worker.send({"t": "done", "x": [self.lease], "d": 0.001}, [payload])
        header, payloads = self.client.take("out")
        assert (header["x"], header.get("s"), payloads) == ([self.count], None, [payload])
        self.count += 1
        self._send(self.count)
        self.lease = self._lease()


@pytest.fixture(scope="module")
def honest(served: Served) -> Iterator[Honest]:
    made = Honest(served)
    yield made
    made.client.socket.close()
    made.worker.socket.close()


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53, 2**63, 2**64, -1, 10**30, 10**400])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
_kinds = st.sampled_from(
    ["done", "back", "gen", "log", "hb", "ready", "init_failed", "drain", "bye", "hello", "in", "rq", ""]
)
_payloads = st.lists(st.binary(max_size=9) | st.just(b"0" * 64), max_size=4)


@st.composite
def _frames(draw: st.DrawFn) -> tuple[dict[str, Any], list[bytes], bool]:
    """A header, its payloads, and whether numbers in it are to become real leases."""
    payloads = draw(_payloads)
    numbers = st.lists(
        st.integers(-2, 9) | st.integers() | _json, min_size=len(payloads), max_size=len(payloads)
    )
    fields = dict.fromkeys(("x", "s", "f"), numbers | _json)
    header = draw(
        st.fixed_dictionaries(
            {"t": _kinds}, optional={**fields, "d": _json, "q": _json, "u": _json, "ts": _json, "c": _json}
        )
    )
    return header, payloads, draw(st.booleans())


def _end(worker: Raw) -> None:
    code = worker.drain()
    assert worker.closed is not None, "the dispatcher did not say why it closed"
    assert code == 1007 and len(worker.closed[1]) > 5, worker.closed


@settings(max_examples=60, deadline=None, database=None)
@given(sent=st.lists(_frames(), min_size=1, max_size=6))
def test_any_frames_of_a_worker(
    served: Served, honest: Honest, sent: list[tuple[dict[str, Any], list[bytes], bool]]
) -> None:
    client = served.client()
    app_id, function_id, job_id = served.function(client)
    client.send({"t": "in", "c": new_id("fc"), "f": function_id, "x": [0, 1]}, [b"a", b"b"])
    worker = served.worker(job_id)
    lease = int(worker.take("run")[0]["x"][0])
    try:
        for header, payloads, real in sent:
            if real:
                # Its own lease, once and again, that of the other container, and one nobody has.
                given_out = [lease, honest.lease, lease, lease + 10**6]
                header = {**header, "x": given_out[: len(payloads)] if payloads else lease}
            worker.send(header, payloads)
    except OSError:
        pass
    _end(worker)
    assert "e" not in client.request("app.stop", {"app_id": app_id})
    client.socket.close()
    honest.one_more()
    assert not served.complaints.texts, served.complaints.texts


@pytest.mark.parametrize(
    ("header", "payloads", "word"),
    [
        ({"t": "done", "x": [1]}, [], "wrong length"),
        ({"t": "done", "x": ["1"]}, [b""], "something else"),
        ({"t": "done", "x": [-1]}, [b""], "negative"),
        ({"t": "done", "x": [2**60]}, [b""], "beyond"),
        ({"t": "done", "x": [1], "s": [9]}, [b""], "status"),
        ({"t": "done", "x": [1], "f": [2**20]}, [b""], "flags"),
        ({"t": "back"}, [], "list of numbers"),
        ({"t": "gen", "x": 1}, [b""], "something else"),
        ({"t": "in", "c": "fc"}, [], "a worker sent"),
    ],
)
def test_a_malformed_frame_ends_its_socket_in_words(
    served: Served, honest: Honest, header: dict[str, Any], payloads: list[bytes], word: str
) -> None:
    client = served.client()
    _, function_id, job_id = served.function(client)
    client.send({"t": "in", "c": new_id("fc"), "f": function_id, "x": [0]}, [b"a"])
    worker = served.worker(job_id)
    worker.send(header, payloads)
    _end(worker)
    assert worker.closed is not None and word in worker.closed[1]
    client.socket.close()
    honest.one_more()


def test_what_one_container_answers_for_another_is_nothing(served: Served, honest: Honest) -> None:
    client = served.client()
    _, function_id, job_id = served.function(client)
    call = new_id("fc")
    client.send({"t": "in", "c": call, "f": function_id, "x": [0]}, [b"a"])
    worker = served.worker(job_id)
    lease = int(worker.take("run")[0]["x"][0])
    worker.send({"t": "done", "x": [honest.lease, lease, lease]}, [b"stolen", b"first", b"second"])
    header, payloads = client.take("out")
    assert (header["x"], payloads) == ([0], [b"first"])
    honest.one_more()
    assert frames.SUCCESS == 0 and not served.complaints.texts
    client.socket.close()
    worker.socket.close()
