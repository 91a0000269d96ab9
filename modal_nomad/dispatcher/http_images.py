"""What the Nomad job of the image builder asks, under its workload identity.

``GET /v1/image-builds/{id}/plan`` is what to build; ``POST /v1/image-builds/{id}/events`` what happens, one
JSON object a line.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from modal_nomad.dispatcher.auth import Authenticator
from modal_nomad.dispatcher.images.on_nomad import OnNomad
from modal_nomad.exception import AuthError, NotFoundError

logger = logging.getLogger("modal_nomad.dispatcher")


def add_routes(app: web.Application, builder: OnNomad, authenticator: Authenticator) -> None:
    """Add the paths of this module to an application."""

    def asker(request: web.Request) -> Callable[[], Awaitable[tuple[str, str]]]:
        _, _, token = request.headers.get("Authorization", "").partition(" ")

        async def launched() -> tuple[str, str]:
            try:
                return await authenticator.check_launch(token.strip())
            except AuthError as error:
                logger.info("%s was refused: %s", request.remote or "a local peer", error)
                raise web.HTTPUnauthorized(text=str(error)) from None

        return launched

    async def plan(request: web.Request) -> web.Response:
        try:
            body = await builder.plan_of(request.match_info["id"], asker(request))
        except NotFoundError as error:
            raise web.HTTPNotFound(text=str(error)) from None
        return web.Response(body=body, content_type="application/json")

    async def events(request: web.Request) -> web.Response:
        try:
            await builder.told(request.match_info["id"], asker(request), await request.read())
        except NotFoundError as error:
            raise web.HTTPNotFound(text=str(error)) from None
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"the events cannot be read: {error}") from None
        return web.Response(status=204)

    app.router.add_get("/v1/image-builds/{id}/plan", plan)
    app.router.add_post("/v1/image-builds/{id}/events", events)
