"""How a get and a put speak to the dispatcher, with one that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from modal_nomad import _queue_items
from modal_nomad.client import Client
from modal_nomad.wire._requests import Asked, NoAnswer

WHERE = {"object_id": "qu-1", "partition": ""}


class Played:
    """Answers requests from a list, and notes them."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, Any], int]] = []
        self.told: list[tuple[str, dict[str, Any], list[bytes]]] = []
        self.held: list[Asked] = []
        self.left: list[Asked] = []
        self.reached = asyncio.Event()

    def _begin(
        self,
        asked: Asked,
        method: str,
        args: Any,
        payloads: Sequence[bytes] = (),
        patience: float | None = None,
    ) -> None:
        self.asked.append((method, dict(args), len(payloads)))
        asked.number = len(self.asked)
        answer = self.answers.pop(0)
        if answer == "hold":
            self.held.append(asked)
            if patience is not None:
                asyncio.get_running_loop().call_later(patience, asked.fail, NoAnswer())
        elif isinstance(answer, BaseException):
            raise answer
        else:
            asked.settle(answer)

    async def _answer(self, asked: Asked) -> Any:
        if not asked.done():
            self.reached.set()
        return await asyncio.wrap_future(asked.future())

    def _forget(self, asked: Asked) -> None:
        pass

    def _leave(self, asked: Asked, then: Callable[[], None]) -> None:
        self.left.append(asked)
        asked.then(then)

    def _is_connected(self) -> bool:
        return True

    def _tell(
        self, method: str, args: Any, payloads: Sequence[bytes] = (), then: Callable[[], None] | None = None
    ) -> None:
        self.told.append((method, dict(args), list(payloads)))
        if then is not None:
            then()

    @property
    def client(self) -> Client:
        return cast(Client, self)


def same(payload: bytes) -> bytes:
    return payload


def given(*numbers: int, more: bool = False) -> Any:
    return {"items": list(numbers), "more": more}, [b"%d" % n for n in numbers]


def had(*numbers: int, more: bool = False) -> Any:
    """What was there, and is taken."""
    value, payloads = given(*numbers, more=more)
    return {**value, "taken": True}, payloads


async def interrupted(played: Played, wanted: int = 1, wait: float | None = None) -> None:
    waiting = asyncio.ensure_future(_queue_items.take(played.client, WHERE, wanted, wait, same))
    await played.reached.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_only_what_was_taken_is_returned() -> None:
    played = Played(given(1, 2, 3), ({"taken": [3, 1]}, []))
    assert await _queue_items.take(played.client, WHERE, 5, None, same) == [b"1", b"3"]
    (_, get, _), (_, take, _) = played.asked
    assert take["items"] == [1, 2, 3] and take["key"] == get["key"] and get["wait"] is None


async def test_a_get_goes_on_when_somebody_else_had_it_all() -> None:
    played = Played(given(1), ({"taken": []}, []), given(2), ({"taken": [2]}, []))
    assert await _queue_items.take(played.client, WHERE, 1, None, same) == [b"2"]
    assert len({args["key"] for method, args, _ in played.asked if method == "queue.get"}) == 2


async def test_the_rest_of_a_batch_is_fetched_without_waiting() -> None:
    played = Played(given(1, more=True), ({"taken": [1]}, []), ({"items": [], "more": False}, []))
    assert await _queue_items.take(played.client, WHERE, 3, None, same) == [b"1"]
    last = played.asked[-1][1]
    assert (last["wanted"], last["wait"]) == (2, 0.0)


async def test_what_is_there_is_one_request() -> None:
    played = Played(had(1, 2))
    assert await _queue_items.take(played.client, WHERE, 2, None, same) == [b"1", b"2"]
    ((method, args, _),) = played.asked
    assert method == "queue.get" and args["take"] is True and played.told == []


async def test_the_rest_of_a_large_get_is_fetched_without_waiting() -> None:
    played = Played(had(1, more=True), had(2))
    assert await _queue_items.take(played.client, WHERE, 3, None, same) == [b"1", b"2"]
    assert (played.asked[-1][1]["wanted"], played.asked[-1][1]["wait"]) == (2, 0.0)


async def test_who_is_interrupted_releases_its_place() -> None:
    played = Played("hold")
    await interrupted(played, wait=30.0)
    ((method, args, _),) = played.told
    assert method == "queue.release" and args["key"] == played.asked[0][1]["key"]
    played.held[0].settle(({"items": []}, []))
    assert len(played.told) == 1


async def test_what_was_taken_for_a_get_that_is_interrupted_goes_back_when_that_is_known() -> None:
    played = Played("hold")
    await interrupted(played, 2)
    played.held[0].settle(had(1, 2))
    assert played.told[1:] == [("queue.put_back", {**WHERE, "items": [1, 2]}, [b"1", b"2"])]


async def test_what_was_only_given_to_a_get_that_is_interrupted_is_released_and_not_put_back() -> None:
    played = Played("hold")
    await interrupted(played)
    played.held[0].settle(given(1))
    assert [method for method, _, _ in played.told] == ["queue.release"]


async def test_who_is_interrupted_while_it_takes_puts_its_items_back() -> None:
    played = Played(given(1, 2), "hold")
    await interrupted(played, 2)
    assert played.told == []
    played.held[0].settle(({"taken": [2]}, []))
    assert played.told == [("queue.put_back", {**WHERE, "items": [2]}, [b"2"])]


async def test_what_earlier_requests_of_an_interrupted_get_took_goes_back_too() -> None:
    played = Played(had(1, more=True), "hold")
    await interrupted(played, 3)
    assert played.told[1:] == [("queue.put_back", {**WHERE, "items": [1]}, [b"1"])]
    played.held[0].settle(had(2))
    assert played.told[2:] == [("queue.put_back", {**WHERE, "items": [2]}, [b"2"])]


async def test_an_interruption_after_the_answer_loses_nothing() -> None:
    """Ctrl-C in the very moment in which the item is made of its bytes."""

    def read(payload: bytes) -> None:
        raise KeyboardInterrupt

    played = Played(had(1))
    taking = _queue_items.take(played.client, WHERE, 1, None, read)
    with pytest.raises(KeyboardInterrupt):
        # Not in a task: asyncio would end its loop with it.
        await taking
    assert played.told == [("queue.put_back", {**WHERE, "items": [1]}, [b"1"])]


async def test_an_interruption_while_it_is_asked_loses_nothing() -> None:
    """Ctrl-C when the request is half written: it is sent again when the connection is mended."""
    played = Played(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        await _queue_items.take(played.client, WHERE, 1, None, same)
    played.left[0].settle(had(1))
    assert [method for method, _, _ in played.told] == ["queue.release", "queue.put_back"]


async def test_an_item_that_cannot_be_read_is_gone() -> None:
    """It would be in everybody's way for ever."""

    def read(payload: bytes) -> None:
        raise ValueError(payload)

    played = Played(had(1))
    with pytest.raises(ValueError):
        await _queue_items.take(played.client, WHERE, 1, None, read)
    assert played.told == []


async def test_much_is_put_back_in_several_requests() -> None:
    numbers = [*range(1, 10)]
    big = bytes(1 << 20)
    played = Played(({"items": numbers, "more": False}, [big] * 9), "hold")
    await interrupted(played, 9)
    played.held[0].settle(({"taken": numbers}, []))
    assert [args["items"] for _, args, _ in played.told] == [numbers[:4], numbers[4:8], numbers[8:]]


async def test_a_dispatcher_that_answers_too_late_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue_items, "_SLACK_SECONDS", 0.01)
    played = Played("hold", "hold")
    assert await _queue_items.take(played.client, WHERE, 1, 0.01, same) == []
    assert await _queue_items.put(played.client, WHERE, [b"x"], 0.01) is False
    assert [method for method, _, _ in played.told] == ["queue.release"] * 2


async def test_a_large_put_is_several_in_order() -> None:
    accepted = ({"accepted": True}, [])
    played = Played(accepted, accepted, ({"accepted": False}, []))
    payloads = [bytes(1 << 20)] * 9
    assert await _queue_items.put(played.client, WHERE, payloads, None) is False
    assert [count for _, _, count in played.asked] == [4, 4, 1]
    played = Played(accepted, accepted)
    assert await _queue_items.put(played.client, WHERE, [b"x"] * 5001, 0.0) is True
    assert [count for _, _, count in played.asked] == [5000, 1]
    assert await _queue_items.put(Played().client, WHERE, [], None) is True


def test_the_end_of_a_wait_is_told_before_anything_that_is_asked_later() -> None:
    """From whichever thread: what ends it is on its way when the interruption is."""
    sent: list[str] = []

    class Wire:
        closed, connected, direct = False, False, cast(Any, None)

        def ask(self, asked: Asked, method: str, *_: Any, **options: Any) -> None:
            sent.append(method)
            asked.number = len(sent)

        def forget(self, asked: Asked) -> None:
            pass

    client = Client(None, "")
    client._connection = cast(Any, Wire())
    Wire.direct = cast(Any, type("Reader", (), {"look_soon": staticmethod(lambda: None)}))
    body = _queue_items.take(client, WHERE, 1, None, same)
    body.send(None)
    with pytest.raises(KeyboardInterrupt):
        body.throw(KeyboardInterrupt())
    client._tell("queue.put", {})
    assert sent == ["queue.get", "queue.release", "queue.put"]
