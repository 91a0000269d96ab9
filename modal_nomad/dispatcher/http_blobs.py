"""Requests about blobs, over HTTP: one both ways, which of many are missing, small ones many at once."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from modal_nomad.dispatcher._http_errors import refusal
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.blobs import BlobError, BlobMissing
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.exception import Error, InvalidError
from modal_nomad.wire import blob_lists

Identify = Callable[[web.Request], Awaitable[Identity]]


def add_routes(app: web.Application, server: Dispatcher, identify: Identify) -> None:
    """Add the paths of this module to an application.

    Args:
        app: the application.
        server: a started dispatcher.
        identify: says whose a request is, with its scope; it raises the answer that refuses one.
    """
    blobs, rights = server.blobs, server.rights

    async def put_one(request: web.Request) -> web.Response:
        scope = (await identify(request)).environments
        sha = request.match_info["sha"]
        try:
            found = await blobs.put_stream(request.content.iter_chunked(1 << 18), sha)
        except BlobError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        await rights.grant(scope, [found])
        return web.Response(status=201)

    async def get_one(request: web.Request) -> web.StreamResponse:
        scope = (await identify(request)).environments
        sha = request.match_info["sha"]
        if scope and await rights.lacking(scope, [sha]):
            raise _not_here(sha)
        return await serve(sha, request, "application/octet-stream")

    async def artifact(request: web.Request) -> web.StreamResponse:
        # Nomad fetches these without credentials: bundles of code alone, by their hashes.
        sha = request.match_info["sha"]
        if sha == "runtime":
            # For jobs of operators, which outlive this version; there is no secret in it.
            sha = server.runtime_sha
        elif not await rights.is_artifact(sha):
            raise _not_here(sha)
        return await serve(sha, request, "application/zip")

    async def serve(sha: str, request: web.Request, content_type: str) -> web.StreamResponse:
        try:
            return await blobs.serve(sha, request, content_type)
        except BlobMissing:
            raise _not_here(sha) from None
        except BlobError as error:
            raise web.HTTPBadRequest(text=str(error)) from None

    async def missing(request: web.Request) -> web.Response:
        scope = (await identify(request)).environments
        try:
            return web.json_response({"missing": await rights.missing(scope, await _names(request))})
        except BlobError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except Error as error:
            return refusal(error)

    async def some(request: web.Request) -> web.Response:
        scope = (await identify(request)).environments
        try:
            names = await _names(request)
            if len(names) > blob_lists.MOST_NAMES:
                raise InvalidError(f"{len(names)} blobs are more than {blob_lists.MOST_NAMES} at once")
            lacking = frozenset(await rights.lacking(scope, names))
            if lacking:
                # Asked for alone, they are refused.
                names = names[: next(place for place, name in enumerate(names) if name in lacking)]
            found = await blobs.get_some(names)
            return web.Response(body=blob_lists.pack(found or [None]))
        except BlobError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except Error as error:
            return refusal(error)

    async def put(request: web.Request) -> web.Response:
        scope = (await identify(request)).environments
        try:
            # What the application takes is for requests that move nothing.
            whole = request.clone(client_max_size=2 * blob_lists.MOST_BYTES)
            contents = blob_lists.unpack(await whole.read())
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        given = [data for data in contents if data is not None]
        if len(given) < len(contents) or len(given) > blob_lists.MOST_NAMES:
            raise web.HTTPBadRequest(text=f"a request brings at most {blob_lists.MOST_NAMES} blobs")
        stored = await blobs.put_some(given)
        await rights.grant(scope, stored)
        return web.json_response({"stored": stored})

    app.router.add_put("/v1/blobs/{sha}", put_one)
    app.router.add_get("/v1/blobs/{sha}", get_one)
    app.router.add_get("/artifacts/{sha}.zip", artifact)
    app.router.add_post("/v1/blobs/missing", missing)
    app.router.add_post("/v1/blobs/put", put)
    app.router.add_post("/v1/blobs/some", some)


def _not_here(sha: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=f"there is no blob {sha}")


async def _names(request: web.Request) -> list[str]:
    try:
        names = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise InvalidError("the request is not JSON") from None
    if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
        raise InvalidError("the request needs a list of hashes")
    return names
