"""The one request of a launched periodic job: make the call that I am for, and tell me how it ends.

``POST /v1/schedules/launch`` under the allocation's workload identity. 200 with a byte that is
the output's status, and its payload; 202 when the call has not ended within ``?wait=`` seconds: ask again.
"""

from __future__ import annotations

import logging

from aiohttp import web

from modal_nomad.dispatcher.auth import Authenticator
from modal_nomad.dispatcher.schedules import Schedules
from modal_nomad.dispatcher.store.base import StoreError
from modal_nomad.exception import AuthError, NotFoundError
from modal_nomad.wire.frames import FLAG_BLOB

logger = logging.getLogger("modal_nomad.dispatcher")

_LONGEST_WAIT = 60.0


def add_routes(app: web.Application, schedules: Schedules, authenticator: Authenticator) -> None:
    """Add the path of this module to an application."""

    async def launch(request: web.Request) -> web.Response:
        _, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            job_id, namespace = await authenticator.check_launch(token.strip())
        except AuthError as error:
            logger.info("%s was refused: %s", request.remote or "a local peer", error)
            raise web.HTTPUnauthorized(text=str(error)) from None
        try:
            output = await schedules.launched(job_id, namespace, _wait(request))
        except NotFoundError as error:
            raise web.HTTPNotFound(text=str(error)) from None
        except StoreError as error:
            logger.error("a launch of %s waits for the store: %s", job_id, error)
            raise web.HTTPServiceUnavailable(text=str(error)) from None
        if output is None:
            return web.Response(status=202)
        # What is in a blob is too large to be worth its way: nobody but a log reads it.
        body = b"" if output.flags & FLAG_BLOB else output.payload
        return web.Response(body=bytes([output.status]) + body)

    app.router.add_post("/v1/schedules/launch", launch)


def _wait(request: web.Request) -> float:
    try:
        return min(_LONGEST_WAIT, max(0.0, float(request.query.get("wait", "0"))))
    except ValueError:
        raise web.HTTPBadRequest(text="wait= is the number of seconds to wait at most") from None
