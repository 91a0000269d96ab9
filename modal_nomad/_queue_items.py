"""The requests that move items of a Queue, made in the caller's thread.

A get takes what is there at once. What it has to wait for it is given first and takes then: only what the
dispatcher's disk has removed is returned. What is taken for a get that is interrupted goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from . import _at_exit as at_exit
from .wire._requests import Asked, NoAnswer
from .wire.ids import new_id

if TYPE_CHECKING:
    from .client import Client

T = TypeVar("T")

_BATCH_BYTES = 4 << 20
_BATCH_ITEMS = 5_000
_LAST_SECONDS = 5.0
"""What is being taken when the program ends may take so long to go back."""
_SLACK_SECONDS = 2.0
"""A dispatcher that was started anew begins to count a waiting time again: it is cut off here."""


async def take(
    client: Client, where: dict[str, Any], wanted: int, wait: float | None, read: Callable[[bytes], T]
) -> list[T]:
    """Remove up to ``wanted`` items and return them; none when none came within ``wait`` seconds.

    Args:
        client: the connection.
        where: the Queue and its partition, as requests name them.
        wanted: at most so many.
        wait: seconds; None is without an end.
        read: makes an item of its bytes. One for which it fails is gone all the same.
    """
    deadline = _deadline(wait)
    taken: dict[int, bytes] = {}
    reading = False
    try:
        while len(taken) < wanted:
            left = 0.0 if taken else _left(deadline)
            more = await _take_some(client, where, wanted - len(taken), left, taken)
            if more is None or (taken and not more):
                break
        reading = True
        return [read(payload) for payload in taken.values()]
    except BaseException as error:
        if not (reading and isinstance(error, Exception)):
            _put_back(client, where, taken)
        raise


async def _take_some(
    client: Client, where: dict[str, Any], wanted: int, wait: float | None, taken: dict[int, bytes]
) -> bool | None:
    """Add items to ``taken``; says whether there are more to take, or None when none came."""
    key = new_id("ge")
    getting = {**where, "key": key, "wanted": wanted, "wait": wait, "take": True}
    value, payloads = await _get(client, where, getting, wait, taken)
    numbers = value.get("items", [])
    if not numbers:
        return None
    if "taken" not in value:
        given = dict(zip(numbers, payloads))  # noqa: B905 (not on 3.9)

        def note(said: Mapping[str, Any], none: Sequence[bytes], to: dict[int, bytes]) -> None:
            # What is missing went to somebody else while the dispatcher was away.
            mine = set(said["taken"])
            to.update((number, payload) for number, payload in given.items() if number in mine)

        taking = {**where, "key": key, "items": numbers}
        await _noted(client, where, "queue.take", taking, None, note, taken)
    return bool(value.get("more"))


async def _get(
    client: Client, where: dict[str, Any], args: dict[str, Any], wait: float | None, taken: dict[int, bytes]
) -> tuple[Mapping[str, Any], Sequence[bytes]]:
    try:
        return await _noted(client, where, "queue.get", args, _patience(wait), _note_given, taken)
    except NoAnswer:
        _release(client, args)
        return {}, []
    except Exception:
        raise
    except BaseException:
        # Told before anything that is asked later: nobody is served for whom nobody waits.
        _release(client, args)
        raise


def _note_given(value: Mapping[str, Any], payloads: Sequence[bytes], to: dict[int, bytes]) -> None:
    if "taken" in value:
        to.update(zip(value["items"], payloads))  # noqa: B905 (not on 3.9)


async def _noted(
    client: Client,
    where: dict[str, Any],
    method: str,
    args: Mapping[str, Any],
    patience: float | None,
    note: Callable[[Mapping[str, Any], Sequence[bytes], dict[int, bytes]], None],
    taken: dict[int, bytes],
) -> tuple[Mapping[str, Any], Sequence[bytes]]:
    """Ask, and return the answer once it is noted in ``taken``; what a late one says is taken goes back."""
    asked = Asked()
    try:
        client._begin(asked, method, args, (), patience)
        value, payloads = await client._answer(asked)
        note(value, payloads, taken)
        return value, payloads
    except Exception:
        raise
    except BaseException:
        late: dict[int, bytes] = taken if asked.done() else {}
        settled = _settled_at_exit(client)

        def known() -> None:
            try:
                value, payloads = asked.result()
                note(value, payloads, late)
            except Exception:
                # It failed, or was refused: nothing was taken.
                settled()
                return
            if late is not taken:
                _put_back(client, where, late)
            settled()

        client._leave(asked, known)
        raise
    finally:
        if asked.done() or asked.alone:
            client._forget(asked)


def _put_back(client: Client, where: dict[str, Any], taken: dict[int, bytes]) -> None:
    """Put what was taken for a get that was interrupted to where it was."""
    numbers = sorted(taken)
    for batch in _batches([taken[number] for number in numbers]):
        some, numbers = numbers[: len(batch)], numbers[len(batch) :]
        settled = _settled_at_exit(client)
        client._tell("queue.put_back", {**where, "items": some}, batch, settled)


def _settled_at_exit(client: Client) -> Callable[[], None]:
    # Nothing can become of it now while nobody is there to answer.
    return at_exit.wait_for(_LAST_SECONDS) if client._is_connected() else lambda: None


async def put(client: Client, where: dict[str, Any], payloads: Sequence[bytes], wait: float | None) -> bool:
    """Add items in order, as many at once as a frame holds; False when there was no room in time."""
    deadline = _deadline(wait)
    for batch in _batches(payloads):
        left = _left(deadline)
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
    asked = Asked()
    try:
        client._begin(asked, method, args, payloads, _patience(wait))
        return await client._answer(asked)
    except NoAnswer:
        _release(client, args)
        return {}, []
    except Exception:
        raise
    except BaseException:
        _release(client, args)
        raise
    finally:
        client._forget(asked)


def _release(client: Client, args: dict[str, Any]) -> None:
    client._tell("queue.release", {"object_id": args["object_id"], "key": args["key"]})


def _patience(wait: float | None) -> float | None:
    return wait + _SLACK_SECONDS if wait else None


def _deadline(wait: float | None) -> float | None:
    return None if wait is None else monotonic() + wait


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


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
