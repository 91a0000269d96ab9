"""Requests about the items of Queues.

A get takes what is there at once. What it waits for is given to it, and taken by a second request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modal_nomad.dispatcher._requests import Answer, Request, count, full_method, method, text
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.sessions import ClientSession
from modal_nomad.dispatcher.store.objects import Ticket
from modal_nomad.exception import InvalidError, RequestSizeError

MAX_ITEM_BYTES = 256 << 10
MAX_PARTITION_BYTES = 64
_MAX_KEY = 64
_MAX_ITEMS = 5_000
_MAX_TTL = 24 * 3600.0
_MAX_WAIT = 1e9


async def _queue(server: Dispatcher, args: Mapping[str, Any]) -> str:
    return (await server.objects.find(text(args, "object_id"), "queue")).object_id


def _partition(args: Mapping[str, Any]) -> str:
    value = args.get("partition", "")
    if not isinstance(value, str) or len(value.encode(errors="replace")) > MAX_PARTITION_BYTES:
        raise InvalidError(f"a partition key is text of at most {MAX_PARTITION_BYTES} bytes")
    return value


def _key(args: Mapping[str, Any]) -> str:
    return text(args, "key")[:_MAX_KEY]


def _wait(args: Mapping[str, Any]) -> float | None:
    value = args.get("wait", 0)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value <= _MAX_WAIT:
        raise InvalidError("wait must be a number of seconds, or null to wait without an end")
    return float(value)


def _ttl(args: Mapping[str, Any]) -> float:
    value = args.get("ttl", _MAX_TTL)
    if not isinstance(value, (int, float)) or not 0 < value <= _MAX_TTL:
        raise InvalidError(f"a partition's ttl is above 0 and at most {_MAX_TTL:.0f} seconds")
    return float(value)


def _wanted(args: Mapping[str, Any]) -> int:
    wanted = count(args, "wanted")
    if not wanted >= 1:
        raise InvalidError("wanted must be at least 1")
    return min(wanted, _MAX_ITEMS)


def _numbers(args: Mapping[str, Any]) -> list[int]:
    numbers = args.get("items")
    if not isinstance(numbers, list) or not all(type(x) is int and 0 <= x < 1 << 53 for x in numbers):
        raise InvalidError("the request needs items as a list of numbers")
    return numbers


def _items(request: Request) -> list[bytes]:
    payloads = list(request.payloads)
    if not 1 <= len(payloads) <= _MAX_ITEMS:
        raise InvalidError(f"a put has 1 to {_MAX_ITEMS} items")
    if max(map(len, payloads)) > MAX_ITEM_BYTES:
        raise RequestSizeError(f"a Queue's item has at most {MAX_ITEM_BYTES} bytes")
    return payloads


@full_method("queue.put")
async def _put(server: Dispatcher, request: Request) -> Answer:
    object_id, key, partition = (
        await _queue(server, request.args),
        _key(request.args),
        _partition(request.args),
    )
    wait, ttl = _wait(request.args), _ttl(request.args)
    payloads = _items(request)
    owner = request.session.owner

    async def work(ticket: Ticket) -> Answer:
        return await server.queues.put(object_id, owner, key, partition, payloads, ttl, wait, ticket)

    return await server.answers.once(request, work)


@full_method("queue.get")
async def _get(server: Dispatcher, request: Request) -> Answer:
    args, owner = request.args, request.session.owner
    object_id, key, wanted = await _queue(server, args), _key(args), _wanted(args)
    partition, wait = _partition(args), _wait(args)
    if not args.get("take"):
        return await server.queues.get(object_id, owner, key, partition, wanted, wait)

    async def work(ticket: Ticket) -> Answer:
        return await server.queues.get(object_id, owner, key, partition, wanted, wait, ticket)

    return await server.answers.once(request, work)


@full_method("queue.take")
async def _take(server: Dispatcher, request: Request) -> Answer:
    object_id, key, partition = (
        await _queue(server, request.args),
        _key(request.args),
        _partition(request.args),
    )
    numbers = _numbers(request.args)

    async def work(ticket: Ticket) -> Answer:
        return await server.queues.take(object_id, key, partition, numbers, ticket)

    return await server.answers.once(request, work)


@full_method("queue.put_back")
async def _put_back(server: Dispatcher, request: Request) -> Answer:
    object_id, partition = await _queue(server, request.args), _partition(request.args)
    numbers, payloads = _numbers(request.args), _items(request)
    if len(set(numbers)) != len(payloads):
        raise InvalidError("the request needs a number for each item")

    async def work(ticket: Ticket) -> Answer:
        return await server.queues.put_back(object_id, partition, numbers, payloads, _MAX_TTL, ticket)

    return await server.answers.once(request, work)


@method("queue.release")
async def _release(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    await server.queues.release(await _queue(server, args), _key(args))
    return {}, []


@method("queue.look")
async def _look(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    object_id, key, wanted = await _queue(server, args), _key(args), _wanted(args)
    after, wait = count(args, "after"), _wait(args) or 0.0
    return await server.queues.look(object_id, session.owner, key, _partition(args), after, wanted, wait)


@method("queue.len")
async def _len(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    partition = None if args.get("total") else _partition(args)
    return {"len": await server.queues.length(await _queue(server, args), partition)}, []


@method("queue.clear")
async def _clear(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    partition = None if args.get("all") else _partition(args)
    await server.queues.clear(await _queue(server, args), partition)
    return {}, []
