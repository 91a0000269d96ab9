"""Requests about a Volume's tree, over HTTP: commits and changes may be larger than a frame.

Each is ``POST /v1/volumes/{object_id}/{verb}``. Bodies are ASCII JSON, which holds names that are no UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiohttp import web

from modal_nomad.dispatcher import scope
from modal_nomad.dispatcher._http_errors import refusal
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.volumes import KIND
from modal_nomad.exception import Error, InvalidError
from modal_nomad.wire.volumes.entries import HOLE, Entry, encode_all

_MAX_VERSION = 1 << 62

Handler = Callable[[Dispatcher, str, Sequence[str], web.Request], Awaitable[web.Response]]
Identify = Callable[[web.Request], Awaitable[Identity]]


def add_routes(app: web.Application, server: Dispatcher, identify: Identify) -> None:
    """Add the paths of this module to an application.

    Args:
        app: the application.
        server: a started dispatcher.
        identify: says whose a request is; it raises the answer that refuses one.
    """

    async def volume(request: web.Request) -> web.Response:
        identity = await identify(request)
        try:
            handler = _VERBS.get(request.match_info["verb"])
            if handler is None:
                raise InvalidError(
                    f"this dispatcher has no request {request.match_info['verb']!r} about a Volume;"
                    " its version may be older than the client's"
                )
            object_id = request.match_info["object_id"]
            scope.check(identity, (await server.objects.find(object_id, KIND)).environment)
            return await handler(server, object_id, identity.environments, request)
        except Error as error:
            return refusal(error)

    app.router.add_post("/v1/volumes/{object_id}/{verb}", volume)


async def _commit(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    done = await server.volumes.commit(
        object_id,
        _commit_id(request),
        request.query.get("rule", ""),
        request.content.iter_chunked(1 << 18),
        allowed,
    )
    return web.json_response({"before": done.before, "version": done.version})


async def _changes(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    asked = await _object(request)
    since, after = asked.get("since"), asked.get("after")
    if type(since) is not int or not 0 <= since < _MAX_VERSION:
        raise InvalidError("the request needs since as a whole number")
    place: tuple[int, str] | None = None
    if after is not None:
        if not isinstance(after, list) or [type(x) for x in after] != [int, str]:
            raise InvalidError("after is a version and a path")
        place = (after[0], after[1])
    pin_id = None if asked.get("pin") is None else _text(asked, "pin")
    page = await server.volumes.changes(object_id, since, place, pin_id)
    await _show(server, allowed, page.entries)
    head = {"version": page.version, "after": page.after, "whole": page.whole}
    return web.Response(body=json.dumps(head).encode() + b"\n" + encode_all(page.entries))


async def _entry(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    found = await server.volumes.entry(object_id, _text(await _object(request), "path"))
    await _show(server, allowed, [found])
    # Without one at the top, which is no entry of its own.
    return web.Response(body=encode_all([found]) if found.path else b"")


async def _list(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    asked = await _object(request)
    after = asked.get("after")
    found, following = await server.volumes.list(
        object_id,
        _text(asked, "path"),
        recursive=bool(asked.get("recursive")),
        after=None if after is None else _text(asked, "after"),
    )
    entries = [[x.path, x.kind, x.size, x.mtime] for x in found]
    return web.json_response({"after": following, "entries": entries})


async def _pin(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    version = await server.volumes.pin(object_id, _pin_id(await _object(request)))
    return web.json_response({"version": version})


async def _renew(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    return web.json_response(
        {"kept": await server.volumes.pins.renew(object_id, _pin_id(await _object(request)))}
    )


async def _unpin(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    server.volumes.pins.unpin(object_id, _pin_id(await _object(request)))
    return web.json_response({})


async def _directories(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    asked = await _object(request)
    paths, rows = asked.get("paths"), asked.get("rows")
    if not isinstance(paths, list) or not paths or not all(isinstance(x, str) for x in paths):
        raise InvalidError("the request needs paths as a list of strings")
    if type(rows) is not int:
        raise InvalidError("the request needs rows as a whole number")
    listings, named = await server.volumes.listings(
        object_id,
        _pin_id(asked),
        paths,
        None if asked.get("after") is None else _text(asked, "after"),
        None if asked.get("name") is None else _text(asked, "name"),
        rows,
    )
    named_too = [] if named is None else [named]
    await _show(server, allowed, [*named_too, *(e for x in listings for e in x.entries)])
    head = {
        "listings": [[x.path, len(x.entries), x.complete] for x in listings],
        "named": named is not None,
    }
    body = [json.dumps(head).encode() + b"\n", *(encode_all(x.entries) for x in listings)]
    return web.Response(body=b"".join([*body, encode_all(named_too)]))


async def _show(server: Dispatcher, allowed: Sequence[str], entries: Iterable[Entry]) -> None:
    """Let a client read the chunks of files that it is told of."""
    if allowed:
        await server.rights.show(allowed, {sha for x in entries for sha in x.chunks if sha != HOLE})


async def _remove(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    asked = await _object(request)
    await server.volumes.remove(
        object_id, _commit_id(request), _text(asked, "path"), recursive=bool(asked.get("recursive"))
    )
    return web.json_response({})


async def _copy(
    server: Dispatcher, object_id: str, allowed: Sequence[str], request: web.Request
) -> web.Response:
    asked = await _object(request)
    sources = asked.get("sources")
    if not isinstance(sources, list) or not sources or not all(isinstance(x, str) for x in sources):
        raise InvalidError("the request needs sources as a list of strings")
    await server.volumes.copy(
        object_id,
        _commit_id(request),
        sources,
        _text(asked, "target"),
        recursive=bool(asked.get("recursive")),
    )
    return web.json_response({})


_VERBS: dict[str, Handler] = {
    "changes": _changes,
    "commit": _commit,
    "copy": _copy,
    "directories": _directories,
    "entry": _entry,
    "list": _list,
    "pin": _pin,
    "remove": _remove,
    "renew": _renew,
    "unpin": _unpin,
}


def _commit_id(request: web.Request) -> str:
    found = request.query.get("id", "")
    if not 0 < len(found) <= 64:
        raise InvalidError("a change needs an id of its own")
    return found


def _pin_id(asked: dict[str, Any]) -> str:
    found = _text(asked, "pin")
    if not 0 < len(found) <= 64:
        raise InvalidError("a pinned version needs an id of its own")
    return found


def _text(asked: dict[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str):
        raise InvalidError(f"the request needs {name} as a string")
    return value


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError):
        raise InvalidError("the request is not JSON") from None


async def _object(request: web.Request) -> dict[str, Any]:
    found = await _json(request)
    if not isinstance(found, dict):
        raise InvalidError("the request needs a JSON object")
    return found
