"""What is asked of a dispatcher and not answered yet: sent once, answered once, from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from modal_nomad.wire._requests import Asked, LoopAsked, NoAnswer, Outcome, Requests

PEER = cast(Any, object())


def frame(number: int, unanswered: int, answered: list[int]) -> bytes:
    return b"%d of %d" % (number, unanswered)


async def test_a_request_that_crosses_a_reconnect_is_sent_by_one_side() -> None:
    requests = Requests(asyncio.get_running_loop())
    before, after = Asked(), Asked()
    assert requests.begin(before, frame) is None
    assert requests.ready(PEER) == [b"1 of 1"]
    assert requests.begin(after, frame) is PEER and after.frame == b"2 of 1"
    before.settle("done")
    requests.lost()
    assert requests.ready(PEER) == [b"2 of 1"]
    requests.forget(before)
    requests.forget(after)
    assert len(requests) == 0 and requests.find(2) is None


async def test_what_was_answered_after_one_that_waits_is_told_once() -> None:
    requests = Requests(asyncio.get_running_loop())
    told: list[list[int]] = []

    def telling(number: int, unanswered: int, answered: list[int]) -> bytes:
        told.append([unanswered, *answered])
        answered.clear()
        return b""

    waits, one, two, three = (Asked() for _ in range(4))
    for asked in (waits, one, two):
        requests.begin(asked, telling)
    requests.forget(two)
    requests.forget(one)
    requests.begin(three, telling)
    assert told[3] == [1, 3, 2]
    requests.forget(waits)
    requests.forget(three)
    # By themselves they are below the lowest that is not answered.
    requests.begin(Asked(), telling)
    assert told[4] == [5]


async def test_numbers_of_many_threads_are_one_each() -> None:
    requests = Requests(asyncio.get_running_loop())

    def ask() -> None:
        for _ in range(500):
            asked = Asked()
            requests.begin(asked, frame)
            assert requests.find(asked.number) is asked
            requests.forget(asked)

    await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(4)))
    assert requests.last == 2000 and len(requests) == 0


async def test_patience_ends_and_answers_that_came_are_kept() -> None:
    requests = Requests(asyncio.get_running_loop())

    def patient(until: float) -> Asked:
        asked = Asked()
        asked.until = until
        requests.begin(asked, frame)
        return asked

    late, answered, first = patient(0.0), patient(0.0), patient(-1.0)
    answered.settle("here")
    for asked in (first, late):
        with pytest.raises(NoAnswer):
            await asyncio.wrap_future(asked.future())
    assert answered.result() == "here"
    # Another one after all that was swept.
    with pytest.raises(NoAnswer):
        await asyncio.wrap_future(patient(0.0).future())


async def test_nothing_is_asked_of_a_closed_client() -> None:
    loop = asyncio.get_running_loop()
    requests = Requests(loop)
    thread, own = Asked(), LoopAsked(loop, threading.get_ident())
    requests.begin(thread, frame)
    requests.begin(own, frame)
    requests.close(ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        thread.result()
    with pytest.raises(ConnectionError, match="gone"):
        await own.future
    with pytest.raises(ConnectionError, match="closed"):
        requests.begin(Asked(), frame)


async def test_an_answer_read_by_another_thread_reaches_the_loop() -> None:
    loop = asyncio.get_running_loop()
    asked = LoopAsked(loop, threading.get_ident())
    await asyncio.to_thread(asked.settle, 5)
    assert await asked.future == 5
    asked.settle(6)
    asked.fail(ValueError())
    assert asked.done() and asked.future.result() == 5


@pytest.mark.parametrize("wait", [lambda x: x.result(), lambda x: x.future().result(60)])
def test_who_waits_in_a_thread_is_told(wait: Callable[[Outcome], Any]) -> None:
    outcome = Outcome()
    setter = threading.Timer(0.01, outcome.settle, ["value"])
    setter.start()
    assert wait(outcome) == "value" and wait(outcome) == "value"
    outcome.fail(ValueError())
    assert outcome.result() == "value"
    setter.join()
    failed = Outcome()
    failed.fail(KeyError("x"))
    with pytest.raises(KeyError):
        wait(failed)


def test_a_cancelled_future_takes_no_answer() -> None:
    outcome = Outcome()
    outcome.future().cancel()
    outcome.settle("late")
    assert outcome.done() and outcome.result() == "late"


def test_what_follows_is_called_once_before_or_after() -> None:
    told: list[str] = []
    before, after = Asked(), Asked()
    before.then(lambda: told.append("before"))
    before.settle(1)
    before.settle(2)
    after.fail(ValueError())
    after.then(lambda: told.append("after"))
    assert told == ["before", "after"]
