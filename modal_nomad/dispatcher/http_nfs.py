"""Requests about the files of a NetworkFileSystem, over HTTP: ``POST /v1/nfs/{object_id}/{verb}``.

The body begins with a line of ASCII JSON, which holds names that are no UTF-8; a file's content follows it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from modal_nomad.dispatcher import scope
from modal_nomad.dispatcher._http_errors import named_refusal, refusal
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.nfs import KIND
from modal_nomad.exception import Error, InvalidError

Handler = Callable[[Dispatcher, str, dict[str, Any], web.Request], Awaitable[web.StreamResponse]]
Identify = Callable[[web.Request], Awaitable[Identity]]


def add_routes(app: web.Application, server: Dispatcher, identify: Identify) -> None:
    """Add the paths of this module to an application.

    Args:
        app: the application.
        server: a started dispatcher.
        identify: says whose a request is; it raises the answer that refuses one.
    """

    async def nfs(request: web.Request) -> web.StreamResponse:
        identity = await identify(request)
        try:
            handler = _VERBS.get(request.match_info["verb"])
            if handler is None:
                raise InvalidError(
                    f"this dispatcher has no request {request.match_info['verb']!r} about a"
                    " NetworkFileSystem; its version may be older than the client's"
                )
            object_id = request.match_info["object_id"]
            scope.check(identity, (await server.objects.find(object_id, KIND)).environment)
            asked = await _head(request)
            try:
                return await handler(server, object_id, asked, request)
            except FileNotFoundError:
                text = f"there is no {_path(asked)!r} in the NetworkFileSystem"
                return named_refusal("FileNotFoundError", text, 404)
            except IsADirectoryError:
                text = f"{_path(asked)!r} is a directory in the NetworkFileSystem"
                return named_refusal("IsADirectoryError", text)
        except Error as error:
            return refusal(error)

    app.router.add_post("/v1/nfs/{object_id}/{verb}", nfs)


async def _list(
    server: Dispatcher, object_id: str, asked: dict[str, Any], request: web.Request
) -> web.StreamResponse:
    return web.json_response({"entries": await server.nfs.list(object_id, _path(asked))})


async def _read(
    server: Dispatcher, object_id: str, asked: dict[str, Any], request: web.Request
) -> web.StreamResponse:
    async with server.nfs.read(object_id, _path(asked)) as (size, content):
        answer = web.StreamResponse(headers={"Content-Length": str(size)})
        await answer.prepare(request)
        try:
            async for part in content:
                await answer.write(part)
        except Error:
            # Its head is sent: an answer that ends too early is all that can still be said.
            if request.transport is not None:
                request.transport.abort()
        return answer


async def _remove(
    server: Dispatcher, object_id: str, asked: dict[str, Any], request: web.Request
) -> web.StreamResponse:
    await server.nfs.remove(object_id, _path(asked), bool(asked.get("recursive")))
    return web.json_response({})


async def _write(
    server: Dispatcher, object_id: str, asked: dict[str, Any], request: web.Request
) -> web.StreamResponse:
    async def content() -> AsyncIterator[bytes]:
        async for part in request.content.iter_chunked(1 << 18):
            yield part

    return web.json_response({"size": await server.nfs.write(object_id, _path(asked), content())})


_VERBS: dict[str, Handler] = {"list": _list, "read": _read, "remove": _remove, "write": _write}


async def _head(request: web.Request) -> dict[str, Any]:
    try:
        found = json.loads(await request.content.readline())
    except (ValueError, RecursionError):
        raise InvalidError("the request begins with no line of JSON") from None
    if not isinstance(found, dict):
        raise InvalidError("the request needs a JSON object")
    return found


def _path(asked: dict[str, Any]) -> str:
    path = asked.get("path")
    if not isinstance(path, str):
        raise InvalidError("the request needs path as a string")
    return path
