"""A generator's end in the container: frames without gaps, whatever comes between."""

from __future__ import annotations

from typing import Any

from modal_nomad._execution_context import current_work
from modal_nomad.wire.window import WINDOW_ITEMS
from modal_nomad.worker._generators import Stream, Streams


class FakeSession:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.items: list[tuple[int, bytes]] = []

    def send(self, header: dict[str, Any], payloads: list[bytes]) -> bool:
        assert header["t"] == "gen" and header["x"] == 7
        self.items += [(header["q"] + n, payload) for n, payload in enumerate(payloads)]
        return True


def made() -> tuple[Stream, FakeSession]:
    session: Any = FakeSession()
    values: Any = None
    return Stream(7, session, values, lambda: None), session


def put(stream: Stream, *numbers: int) -> None:
    for number in numbers:
        stream.put(b"%d" % number, 0, 1)


def test_items_carry_their_numbers() -> None:
    stream, session = made()
    put(stream, *range(100))
    assert stream.end() == 100
    assert session.items == [(n, b"%d" % n) for n in range(100)]


def test_what_the_reader_has_is_left_out_in_mid_frame() -> None:
    stream, session = made()
    # The first goes out at once; the others wait for company when the news comes.
    put(stream, 0, 1, 2, 3)
    stream.took(50)
    put(stream, *range(4, 60))
    assert stream.end() == 60
    assert set(session.items) == {(n, b"%d" % n) for n in (0, 1, 2, 3, *range(50, 60))}
    assert session.items == sorted(session.items)


def test_the_edge_of_the_window_sends_what_waits() -> None:
    stream, session = made()
    assert [stream.put(b"", 0, 1) for _ in range(WINDOW_ITEMS)] == [True] * (WINDOW_ITEMS - 1) + [False]
    assert len(session.items) == WINDOW_ITEMS and not stream.open()
    stream.took(1)
    assert stream.open()


def test_what_waits_goes_out_in_time() -> None:
    stream, session = made()
    put(stream, 0, 1)
    assert stream.tick(0.0) > 0 or len(session.items) == 2
    stream.tick(float("inf"))
    assert [n for n, _ in session.items] == [0, 1]


def test_an_item_that_begins_to_wait_behind_a_look_asks_for_another() -> None:
    woken: list[None] = []

    class Session(FakeSession):
        def wake(self) -> None:
            woken.append(None)

    session: Any = Session()
    values: Any = None
    streams = Streams(session, values)
    token = current_work.set((7, "fc-1", 0, 0, b"", ""))
    try:
        stream = streams._begin()
    finally:
        current_work.reset(token)
    look = stream.tick

    def tick(now: float) -> float:
        found = look(now)
        put(stream, 0, 1)
        return found

    stream.tick = tick  # type: ignore[method-assign]
    streams.tick(0.0)
    assert woken
