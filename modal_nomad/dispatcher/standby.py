"""A dispatcher whose store another one has: it says so to whoever asks, and takes over when that one ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from modal_nomad import __version__
from modal_nomad.dispatcher.store.base import Store, StoreBusy, StoreError

logger = logging.getLogger("modal_nomad.dispatcher")

LOOK_SECONDS = 0.5
"""How often a standby looks whether the store is free: there is no way to be told."""
Listen = Callable[[web.Application, contextlib.AsyncExitStack], Awaitable[None]]


async def wait_for_turn(store: Store, listen: Listen, stop: asyncio.Event) -> bool:
    """Open the store, waiting while another dispatcher has it; False when told to stop before.

    Args:
        store: not open.
        listen: serves an application until the stack is closed.
        stop: ends the wait.

    Raises:
        StoreError: the store cannot be used, or is one that nobody waits for.
    """
    try:
        await store.open()
        return True
    except StoreBusy:
        if not store.shared:
            raise
    async with contextlib.AsyncExitStack() as stack:
        await listen(application(), stack)
        logger.info("another dispatcher is at work on the store: standing by")
        warned = False
        while not stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
                return False
            try:
                await store.open()
                logger.info("taking over")
                return True
            except StoreBusy:
                warned = False
            except StoreError as error:
                if not warned:
                    logger.warning("standing by without the store: %s", error)
                    warned = True
    return False


def application() -> web.Application:
    """Return what a standby answers: 503 everywhere, so that a balancer sends nobody here."""
    app = web.Application()
    app.router.add_get("/healthz", _healthz)
    app.router.add_route("*", "/{path:.*}", _elsewhere)
    return app


async def _healthz(request: web.Request) -> web.Response:
    return web.json_response({"status": "standby", "version": __version__}, status=503)


async def _elsewhere(request: web.Request) -> web.Response:
    text = "this dispatcher stands by: another one is at work, ask that one"
    return web.Response(status=503, text=text, headers={"Retry-After": "1"})
