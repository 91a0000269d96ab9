"""Requests about many blobs at once, over HTTP: which are missing, and small ones both ways."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from modal_nomad.dispatcher._http_errors import refusal
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.blobs import BlobStore
from modal_nomad.dispatcher.blobs.base import BlobError
from modal_nomad.exception import Error, InvalidError
from modal_nomad.wire import blob_lists

Identify = Callable[[web.Request], Awaitable[Identity]]


def add_routes(app: web.Application, blobs: BlobStore, identify: Identify) -> None:
    """Add the paths of this module to an application.

    Args:
        app: the application.
        blobs: a started store.
        identify: says whose a request is; it raises the answer that refuses one.
    """

    async def missing(request: web.Request) -> web.Response:
        await identify(request)
        try:
            return web.json_response({"missing": await blobs.missing(await _names(request))})
        except BlobError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except Error as error:
            return refusal(error)

    async def some(request: web.Request) -> web.Response:
        await identify(request)
        try:
            names = await _names(request)
            if len(names) > blob_lists.MOST_NAMES:
                raise InvalidError(f"{len(names)} blobs are more than {blob_lists.MOST_NAMES} at once")
            return web.Response(body=blob_lists.pack(await blobs.get_some(names)))
        except BlobError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except Error as error:
            return refusal(error)

    async def put(request: web.Request) -> web.Response:
        await identify(request)
        try:
            # What the application takes is for requests that move nothing.
            whole = request.clone(client_max_size=2 * blob_lists.MOST_BYTES)
            contents = blob_lists.unpack(await whole.read())
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        given = [data for data in contents if data is not None]
        if len(given) < len(contents) or len(given) > blob_lists.MOST_NAMES:
            raise web.HTTPBadRequest(text=f"a request brings at most {blob_lists.MOST_NAMES} blobs")
        return web.json_response({"stored": await blobs.put_some(given)})

    app.router.add_post("/v1/blobs/missing", missing)
    app.router.add_post("/v1/blobs/put", put)
    app.router.add_post("/v1/blobs/some", some)


async def _names(request: web.Request) -> list[str]:
    try:
        names = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise InvalidError("the request is not JSON") from None
    if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
        raise InvalidError("the request needs a list of hashes")
    return names
