"""Requests about the entries of Dicts. Keys and values are bytes; nothing here looks into them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from modal_nomad.dispatcher._requests import Answer, Request, count, full_method, text
from modal_nomad.dispatcher.blob_rights import flagged
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.objects import answers
from modal_nomad.dispatcher.store.objects import Entry, Ticket
from modal_nomad.exception import InvalidError, RequestSizeError
from modal_nomad.wire.frames import FLAG_BLOB, INLINE_LIMIT

ENTRY_SECONDS = 30 * 86400.0
"""How long an entry lives after it was last written."""
_MAX_KEY_BYTES = 256 << 10
_MAX_ENTRIES = 1000
_PAGE_ENTRIES = 500
_PAGE_BYTES = 4 << 20


def _scope(request: Request) -> Sequence[str]:
    return request.session.identity.environments


async def _dict(server: Dispatcher, request: Request) -> str:
    return (await server.objects.find(text(request.args, "object_id"), "dict")).object_id


def _key(request: Request) -> bytes:
    if len(request.payloads) != 1:
        raise InvalidError("the request needs one payload, the key")
    return request.payloads[0]


def _read_entries(request: Request) -> list[Entry]:
    flags, payloads = request.args.get("flags"), request.payloads
    if not isinstance(flags, list) or len(payloads) != 2 * len(flags) or len(flags) > _MAX_ENTRIES:
        raise InvalidError(f"the request needs key, value and flag of each of up to {_MAX_ENTRIES} entries")
    made = []
    for position, flag in enumerate(flags):
        key, value = payloads[2 * position : 2 * position + 2]
        if type(flag) is not int or flag & ~FLAG_BLOB:
            raise InvalidError("an entry has flags that there are not")
        if len(key) > _MAX_KEY_BYTES or len(value) > INLINE_LIMIT:
            raise RequestSizeError("a key or a value is larger than a request takes: send it as a blob")
        made.append(Entry(key, value, flag))
    return made


def _blobs(entries: Sequence[Entry]) -> list[str]:
    return flagged((x.payload for x in entries), (x.flags for x in entries))


async def _show(server: Dispatcher, request: Request, entries: Sequence[Entry]) -> None:
    """Keep the blobs of entries that a client is given for now, and let it read them."""
    await _touch(server, entries)
    await server.rights.show(_scope(request), _blobs(entries))


async def _touch(server: Dispatcher, entries: Sequence[Entry]) -> None:
    """Keep the blobs of entries for now. Raises InvalidError when one is not here."""
    named = _blobs(entries)
    if named and await server.blobs.missing(named):
        raise InvalidError("a large value is not here: put it again")


@full_method("dict.put")
async def _put(server: Dispatcher, request: Request) -> Answer:
    object_id, entries = await _dict(server, request), _read_entries(request)
    await _touch(server, entries)
    await server.rights.check(_scope(request), _blobs(entries))
    only_missing = bool(request.args.get("skip_if_exists"))

    async def work(ticket: Ticket) -> Answer:
        now = time.time()
        kept = await server.store.dict_put(
            object_id, entries, now + ENTRY_SECONDS, now, ticket, only_missing=only_missing
        )
        return answers.answer(kept)

    return await server.answers.once(request, work)


@full_method("dict.get")
async def _get(server: Dispatcher, request: Request) -> Answer:
    entry = await server.store.dict_get(await _dict(server, request), _key(request), time.time())
    if entry is None:
        return {"found": False}, []
    await _show(server, request, [entry])
    return {"found": True, "flags": entry.flags}, [entry.payload]


@full_method("dict.contains")
async def _contains(server: Dispatcher, request: Request) -> Answer:
    entry = await server.store.dict_get(await _dict(server, request), _key(request), time.time())
    return {"found": entry is not None}, []


@full_method("dict.pop")
async def _pop(server: Dispatcher, request: Request) -> Answer:
    object_id, key = await _dict(server, request), _key(request)

    async def work(ticket: Ticket) -> Answer:
        now = time.time()
        entry = await server.store.dict_get(object_id, key, now)
        if entry is not None:
            # Before it is nobody's: who popped it has yet to fetch it.
            await _touch(server, [entry])
        return answers.answer(await server.store.dict_pop(object_id, key, now, ticket))

    value, payloads = await server.answers.once(request, work)
    if payloads:
        await server.rights.show(_scope(request), flagged(payloads, [value["flags"]]))
    return value, payloads


@full_method("dict.len")
async def _len(server: Dispatcher, request: Request) -> Answer:
    return {"len": await server.store.dict_len(await _dict(server, request))}, []


@full_method("dict.clear")
async def _clear(server: Dispatcher, request: Request) -> Answer:
    object_id = await _dict(server, request)

    async def work(ticket: Ticket) -> Answer:
        return answers.answer(await server.store.dict_clear(object_id, ticket))

    return await server.answers.once(request, work)


@full_method("dict.entries")
async def _page(server: Dispatcher, request: Request) -> Answer:
    """One page of a walk: ``keys``, ``values`` or ``items``, from a position on."""
    object_id, after, what = (
        await _dict(server, request),
        count(request.args, "after"),
        request.args.get("what"),
    )
    if what not in ("keys", "values", "items"):
        raise InvalidError("what is one of keys, values and items")
    found = await server.store.dict_entries(object_id, after, _PAGE_ENTRIES, time.time())
    done = len(found) < _PAGE_ENTRIES
    payloads: list[bytes] = []
    flags: list[int] = []
    size = 0
    for entry in found:
        parts = {"keys": [entry.key], "values": [entry.payload], "items": [entry.key, entry.payload]}[what]
        size += sum(map(len, parts))
        if flags and size > _PAGE_BYTES:
            done = False
            break
        payloads += parts
        flags.append(entry.flags)
        after = entry.position
    await _show(server, request, found[: len(flags)])
    answer: dict[str, Any] = {"after": after, "done": done, "flags": flags}
    return answer, payloads
