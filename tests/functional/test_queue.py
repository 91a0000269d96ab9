"""Queues on a real dispatcher: from one process, from two, from containers, under kills."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import threading
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception

ON_BOTH_STORES = True


def test_first_in_first_out_in_partitions_of_their_own(live: Live) -> None:
    with modal.Queue.ephemeral() as q:
        q.put("some value")
        q.put(123)
        assert q.get() == "some value" and q.get() == 123
        q.put(0)
        q.put(1, partition="foo")
        q.put(2, partition="bar")
        assert q.get(partition="bar") == 2
        q.put(3, partition="foo", partition_ttl=10)
        q.put(1)
        assert list(q.iterate()) == [0, 1] and q.len() == 2
        assert q.len(partition="foo") == 2 and q.len(total=True) == 4
        assert q.get_many(10, partition="foo") == [1, 3]
        q.put_many(["a", "b"], partition="foo")
        q.clear()
        assert q.len() == 0 and q.len(total=True) == 2
        q.clear(all=True)
        assert q.len(total=True) == 0


def test_nothing_there(live: Live) -> None:
    with modal.Queue.ephemeral() as q:
        assert q.get(block=False) is None and q.get_many(3, block=False) == []
        for timeout in (0, 0.05):
            with pytest.raises(queue.Empty):
                q.get(timeout=timeout)
        with pytest.raises(queue.Empty):
            q.get_many(2, timeout=0.01)
        with pytest.warns(UserWarning, match="ignored"):
            assert q.get(block=False, timeout=5) is None
        assert list(q.iterate()) == []


def test_bad_arguments(live: Live) -> None:
    with modal.Queue.ephemeral() as q:
        for partition in ("", "x" * 65, 7):
            with pytest.raises(exception.InvalidError, match="partition key"):
                q.put(1, partition=partition)  # type: ignore[arg-type]
        for both in (lambda: q.len(partition="a", total=True), lambda: q.clear(partition="a", all=True)):
            with pytest.raises(exception.InvalidError, match="not both"):
                both()
        with pytest.raises(exception.InvalidError, match="n_values"):
            q.get_many(0)
        with pytest.raises(exception.InvalidError, match="partition_ttl"):
            q.put(1, partition_ttl=0)
        with pytest.raises(exception.InvalidError, match="timeout"):
            q.get(timeout=-1)
        with pytest.raises(exception.RequestSizeError, match="Volume"):
            q.put(bytes(257 << 10))
        assert q.len(total=True) == 0
    with pytest.raises(exception.InvalidError, match="Invalid Queue name"):
        modal.Queue.from_name("a/b")


def test_a_full_partition(live: Live) -> None:
    with modal.Queue.ephemeral() as q:
        q.put_many(range(5000))
        for put in (
            lambda: q.put("more", block=False),
            lambda: q.put("more", timeout=0.05),
            lambda: q.put_many(["more"] * 2, block=False),
        ):
            with pytest.raises(queue.Full, match="5000"):
                put()
        q.put("elsewhere", block=False, partition="other")
        waiting = threading.Thread(target=q.put, args=("last",))
        waiting.start()
        assert q.get() == 0
        waiting.join(100)
        assert q.get_many(5000) == [*range(1, 5000), "last"]
        with pytest.raises(queue.Full):
            q.put_many(range(5001), block=False)
        assert q.len() == 0


def test_a_batch_larger_than_a_frame(live: Live) -> None:
    with modal.Queue.ephemeral() as q:
        items = [bytes([i]) * (250 << 10) for i in range(100)]
        q.put_many(items)
        assert list(q.iterate()) == items
        assert q.get_many(100) == items


async def test_those_who_wait_are_served_in_the_order_in_which_they_came(live: Live) -> None:
    async with modal.Queue.ephemeral() as q:
        waiting = []
        for number in range(8):
            waiting.append(asyncio.ensure_future(q.get.aio()))
            # An answered request behind it: it has arrived.
            assert await q.len.aio() == 0, number
        # One that waits no more takes nothing: once it has ended, whatever is asked comes after its end.
        gone = waiting.pop(3)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await q.put_many.aio(list(range(7)))
        assert await asyncio.gather(*waiting) == list(range(7))


@pytest.mark.parametrize("timeout", [None, 600])
async def test_what_is_asked_after_an_interrupted_get_comes_after_it(
    live: Live, timeout: float | None
) -> None:
    async with modal.Queue.ephemeral() as q:
        for number in range(50):
            waiting = asyncio.ensure_future(q.get.aio(timeout=timeout))
            assert await q.len.aio() == 0
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await q.put.aio(number)
            assert await q.get.aio(block=False) == number


async def test_a_get_that_is_interrupted_while_it_takes_puts_its_items_where_they_were(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with modal.Queue.ephemeral() as q:
        await q.put_many.aio(range(5))
        client = modal.Client.from_env()
        answer = client._answer

        async def interrupted(asked: Any) -> Any:
            # The items are off the disk, and this is the last moment at which nobody has them.
            await answer(asked)
            raise asyncio.CancelledError

        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(client, "_answer", interrupted)
                with pytest.raises(asyncio.CancelledError):
                    await q.get_many.aio(2)
            assert await q.len.aio() == 5
        assert await q.get_many.aio(5) == [0, 1, 2, 3, 4]


async def test_iterate_goes_on_while_items_come(live: Live) -> None:
    async with modal.Queue.ephemeral() as q:
        await q.put.aio(0)
        seen = []
        async for item in q.iterate.aio(item_poll_timeout=1.0):
            seen.append(item)
            if item < 3:
                await q.put.aio(item + 1)
        assert seen == [0, 1, 2, 3] and await q.len.aio() == 4


def test_between_containers(live: Live) -> None:
    app = modal.App("with-queue")

    @app.function(serialized=True)
    def answer(questions: Any, answers: Any) -> str:
        while (question := questions.get(timeout=100)) is not None:
            answers.put(question * 2)
        return type(questions).__name__

    with modal.Queue.ephemeral() as questions, modal.Queue.ephemeral() as answers, app.run():
        call = answer.spawn(questions, answers)
        for number in range(5):
            questions.put(number)
            assert answers.get(timeout=100) == number * 2
        questions.put(None)
        assert call.get(timeout=100) == "Queue"


WAITER = """
import sys, modal_nomad as modal
q = modal.Queue.from_id(sys.argv[1])
q.hydrate()
print(q.len(), flush=True)
print(q.get(timeout=100), flush=True)
"""


def test_a_program_that_dies_while_it_waits_takes_nothing(live: Live) -> None:
    script = live.write("waiter.py", WAITER)
    with modal.Queue.ephemeral() as q, live.start(str(script), q.object_id) as program:
        assert program.stdout is not None and program.stdout.readline() == "0\n"
        program.kill()
        program.wait(100)
        q.put("mine")
        assert q.get(timeout=100) == "mine"


def test_a_program_that_never_takes_what_it_was_given(live: Live) -> None:
    """It is stopped in between: a raw peer, which is given an item and goes."""
    script = live.write(
        "half.py",
        """
        import os, sys, modal_nomad as modal
        from modal_nomad.cli import _client
        args = {"object_id": sys.argv[1], "key": "k", "wanted": 1, "wait": 30}
        client = modal.Client.from_env()
        print(_client.request(client, "queue.get", args), flush=True)
        sys.stdin.read()
        os._exit(0)
        """,
    )
    with modal.Queue.ephemeral() as q:
        q.put_many(["first", "second"])
        with live.start(str(script), q.object_id, stdin=subprocess.PIPE) as program:
            assert program.stdout is not None and program.stdin is not None
            assert "items" in program.stdout.readline()
            assert q.len() == 1
            program.stdin.close()
            program.wait(100)
        until(lambda: q.len() == 2)
        assert q.get_many(5) == ["first", "second"]


def test_each_item_comes_once_while_the_dispatcher_is_killed_again_and_again(own: Live) -> None:
    q = modal.Queue.from_name("once", create_if_missing=True).hydrate()
    count = 240
    got: list[int] = []

    def produce(start: int) -> None:
        for number in range(start, count, 2):
            q.put(number)

    def consume() -> None:
        while (item := q.get(timeout=200)) is not None:
            got.append(item)

    producers = [threading.Thread(target=produce, args=(start,)) for start in range(2)]
    consumers = [threading.Thread(target=consume) for _ in range(2)]
    for thread in (*producers, *consumers):
        thread.start()
    for reached in (30, 100, 180):
        until(lambda reached=reached: len(got) >= reached, 100)  # type: ignore[misc]
        own.kill()
    for thread in producers:
        thread.join(100)
    q.put_many([None, None])
    for thread in consumers:
        thread.join(100)
    assert sorted(got) == list(range(count))
    # In the order of each producer, for the order of consumers is their own.
    assert q.len(total=True) == 0


def test_items_and_partitions_outlive_a_killed_dispatcher(own: Live) -> None:
    q = modal.Queue.from_name("kept", create_if_missing=True)
    q.put_many(range(10))
    q.put("x", partition="other")
    assert q.get() == 0
    own.kill()
    assert q.get_many(20) == list(range(1, 10)) and q.get(partition="other") == "x"
    waiting: list[Any] = []
    thread = threading.Thread(target=lambda: waiting.append(q.get(timeout=100)))
    thread.start()
    own.kill()
    q.put("woken")
    thread.join(100)
    assert waiting == ["woken"]


def test_ctrl_c_ends_a_get_which_takes_nothing(live: Live) -> None:
    script = live.write("waiter.py", WAITER)
    with modal.Queue.ephemeral() as q:
        with live.start(str(script), q.object_id) as program:
            assert program.stdout is not None and program.stdout.readline() == "0\n"
            os.kill(program.pid, signal.SIGINT)
            assert program.wait(100) != 0
        q.put("left")
        assert q.get(timeout=100) == "left"


def test_a_deleted_queue_wakes_who_waits(live: Live) -> None:
    q = modal.Queue.from_name("goes", create_if_missing=True).hydrate()

    async def both() -> None:
        waiting = asyncio.ensure_future(q.get.aio())
        await q.len.aio()
        await modal.Queue.delete.aio("goes")
        await waiting

    with pytest.raises(exception.NotFoundError, match="deleted"):
        asyncio.run(both())
