"""How a get and a put speak to the dispatcher, with one that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from modal_nomad import _queue_items
from modal_nomad.client import Client

WHERE = {"object_id": "qu-1", "partition": ""}


class Played:
    """Answers requests from a list, and notes them."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, Any], int]] = []
        self.told: list[tuple[str, str]] = []
        self.reached, self.finished = asyncio.Event(), asyncio.Event()
        self.held: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent: list[bytes] = []

    async def _request_full(
        self, method: str, args: Any, payloads: Sequence[bytes] = (), patience: float | None = None
    ) -> Any:
        self.patience = patience
        self.asked.append((method, dict(args), len(payloads)))
        answer = self.answers.pop(0)
        if payloads:
            self.sent += payloads
        if not self.answers:
            self.finished.set()
        if answer == "hold":
            self.reached.set()
            answer = await asyncio.wait_for(asyncio.shield(self.held), patience)
        return answer

    async def _request(self, method: str, args: Any) -> Any:
        return (await self._request_full(method, args))[0]

    def _tell(self, method: str, args: Any) -> None:
        self.told.append((method, args["key"]))

    @property
    def client(self) -> Client:
        return cast(Client, self)


def given(*numbers: int, more: bool = False) -> Any:
    return {"items": list(numbers), "more": more}, [b"%d" % n for n in numbers]


async def test_only_what_was_taken_is_returned() -> None:
    played = Played(given(1, 2, 3), ({"taken": [3, 1]}, []))
    assert await _queue_items.take(played.client, WHERE, 5, None) == [b"1", b"3"]
    (_, get, _), (_, take, _) = played.asked
    assert take["items"] == [1, 2, 3] and take["key"] == get["key"] and get["wait"] is None


async def test_a_get_goes_on_when_somebody_else_had_it_all() -> None:
    played = Played(given(1), ({"taken": []}, []), given(2), ({"taken": [2]}, []))
    assert await _queue_items.take(played.client, WHERE, 1, None) == [b"2"]
    assert len({args["key"] for method, args, _ in played.asked if method == "queue.get"}) == 2


async def test_the_rest_of_a_batch_is_fetched_without_waiting() -> None:
    played = Played(given(1, more=True), ({"taken": [1]}, []), ({"items": [], "more": False}, []))
    assert await _queue_items.take(played.client, WHERE, 3, None) == [b"1"]
    last = played.asked[-1][1]
    assert (last["wanted"], last["wait"]) == (2, 0.0)


async def test_who_is_interrupted_releases_its_place() -> None:
    played = Played("hold")
    waiting = asyncio.ensure_future(_queue_items.take(played.client, WHERE, 1, 30.0))
    await played.reached.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert played.told == [("queue.release", played.asked[0][1]["key"])]


async def test_who_is_interrupted_while_it_takes_puts_its_items_back() -> None:
    played = Played(given(1, 2), "hold", ({"accepted": True}, []))
    waiting = asyncio.ensure_future(_queue_items.take(played.client, WHERE, 2, None))
    await played.reached.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    played.held.set_result(({"taken": [2]}, []))
    await played.finished.wait()
    assert played.asked[-1] == ("queue.put_back", {**WHERE, "items": [2]}, 1) and played.sent == [b"2"]


async def test_much_is_put_back_in_several_requests() -> None:
    numbers = [*range(1, 10)]
    big = bytes(1 << 20)
    first = {"items": numbers, "more": False}, [big] * 9
    played = Played(first, "hold", *[({"accepted": True}, [])] * 3)
    waiting = asyncio.ensure_future(_queue_items.take(played.client, WHERE, 9, None))
    await played.reached.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    played.held.set_result(({"taken": numbers}, []))
    await played.finished.wait()
    assert [args["items"] for _, args, _ in played.asked[2:]] == [numbers[:4], numbers[4:8], numbers[8:]]


async def test_a_dispatcher_that_answers_too_late_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queue_items, "_SLACK_SECONDS", 0.01)
    played = Played("hold", "hold")
    assert await _queue_items.take(played.client, WHERE, 1, 0.01) == []
    assert await _queue_items.put(played.client, WHERE, [b"x"], 0.01) is False
    assert [method for method, _ in played.told] == ["queue.release"] * 2


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


@pytest.mark.parametrize("wait", [None, 600.0])
async def test_the_end_of_a_wait_is_told_before_anything_that_is_asked_later(wait: float | None) -> None:
    loop = asyncio.get_running_loop()
    sent: list[str] = []
    begun, all_sent = asyncio.Event(), asyncio.Event()

    class Wire:
        closed = False

        def request(self, method: str, *_: Any) -> asyncio.Future[Any]:
            sent.append(method)
            begun.set()
            if len(sent) == 3:
                all_sent.set()
            return loop.create_future()

    client = Client(None, "")
    client._connection = cast(Any, Wire())
    waiting = asyncio.ensure_future(_queue_items.take(client, WHERE, 1, wait))
    await begun.wait()
    # As another thread would: one call of the loop each.
    loop.call_soon(waiting.cancel)
    loop.call_soon(lambda: tasks.append(asyncio.ensure_future(client._request("queue.put", {}))))
    tasks: list[asyncio.Future[Any]] = []
    await all_sent.wait()
    assert sent == ["queue.get", "queue.release", "queue.put"]
    tasks[0].cancel()
