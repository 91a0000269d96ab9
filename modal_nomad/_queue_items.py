"""The requests that move items of a Queue, on the library's loop.

A get is given items and then takes them: only those that the dispatcher's disk has removed are returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from . import _at_exit as at_exit
from .wire.ids import new_id

if TYPE_CHECKING:
    from .client import Client

T = TypeVar("T")

_BATCH_BYTES = 4 << 20
_BATCH_ITEMS = 5_000
_LAST_SECONDS = 5.0
"""What is being taken when the program ends may take so long to be returned, or to go back."""
_SLACK_SECONDS = 2.0
"""A dispatcher that was started anew begins to count a waiting time again: it is cut off here."""


async def take(client: Client, where: dict[str, Any], wanted: int, wait: float | None) -> list[bytes]:
    """Remove up to ``wanted`` items and return them; none when none came within ``wait`` seconds."""
    loop = asyncio.get_running_loop()
    deadline = None if wait is None else loop.time() + wait
    found: list[bytes] = []
    while True:
        key = new_id("ge")
        left = None if deadline is None else max(0.0, deadline - loop.time())
        args = {**where, "key": key, "wanted": wanted - len(found), "wait": 0.0 if found else left}
        value, payloads = await _held(client, "queue.get", args, (), left)
        numbers = value.get("items", [])
        if not numbers:
            return found
        taking = {**where, "key": key, "items": numbers}
        answer = asyncio.ensure_future(client._request("queue.take", taking))
        settled = at_exit.wait_for(_LAST_SECONDS)
        try:
            taken = set((await asyncio.shield(answer))["taken"])
        except asyncio.CancelledError:
            items = dict(zip(numbers, payloads))  # noqa: B905 (not on 3.9)
            back = asyncio.ensure_future(_put_back(client, where, answer, items, settled))
            back.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        except BaseException:
            settled()
            raise
        settled()
        # What is missing went to somebody else while the dispatcher was away.
        found += [p for n, p in zip(numbers, payloads) if n in taken]  # noqa: B905 (not on 3.9)
        if len(found) == wanted or (found and not value["more"]):
            return found


async def _put_back(
    client: Client,
    where: dict[str, Any],
    answer: asyncio.Future[Any],
    items: dict[int, bytes],
    settled: Callable[[], None],
) -> None:
    """Put what was taken for a get that was interrupted meanwhile to where it was."""
    try:
        taken = sorted((await answer)["taken"])
        for batch in _batches([items[number] for number in taken]):
            some, taken = taken[: len(batch)], taken[len(batch) :]
            await client._request_full("queue.put_back", {**where, "items": some}, batch)
    finally:
        settled()


async def put(client: Client, where: dict[str, Any], payloads: Sequence[bytes], wait: float | None) -> bool:
    """Add items in order, as many at once as a frame holds; False when there was no room in time."""
    loop = asyncio.get_running_loop()
    deadline = None if wait is None else loop.time() + wait
    for batch in _batches(payloads):
        left = None if deadline is None else max(0.0, deadline - loop.time())
        args = {**where, "key": new_id("pu"), "wait": left}
        value, _ = await _held(client, "queue.put", args, batch, left)
        if not value.get("accepted"):
            return False
    return True


async def look(
    client: Client, where: dict[str, Any], after: int, wait: float
) -> tuple[list[int], list[bytes]]:
    """Return items in place whose numbers are above ``after``, waiting for one."""
    args = {**where, "key": new_id("lo"), "wanted": _BATCH_ITEMS, "after": after, "wait": wait}
    value, payloads = await _held(client, "queue.look", args, (), wait)
    return value.get("items", []), payloads


async def _held(
    client: Client, method: str, args: dict[str, Any], payloads: Sequence[bytes], wait: float | None
) -> tuple[dict[str, Any], list[bytes]]:
    """Make a request that the dispatcher may hold; nobody is served for whom nobody waits."""
    patience = wait + _SLACK_SECONDS if wait else None
    try:
        # Awaited without a task between, so that a cancellation is told before anything that is asked later.
        answer: tuple[dict[str, Any], list[bytes]] = await client._request_full(
            method, args, payloads, patience
        )
        return answer
    except asyncio.TimeoutError:
        client._tell("queue.release", {"object_id": args["object_id"], "key": args["key"]})
        return {}, []
    except asyncio.CancelledError:
        client._tell("queue.release", {"object_id": args["object_id"], "key": args["key"]})
        raise


def _batches(payloads: Sequence[bytes]) -> list[list[bytes]]:
    batches: list[list[bytes]] = []
    size = 0
    for payload in payloads:
        if not batches or size + len(payload) > _BATCH_BYTES or len(batches[-1]) == _BATCH_ITEMS:
            batches.append([])
            size = 0
        batches[-1].append(payload)
        size += len(payload)
    return batches
