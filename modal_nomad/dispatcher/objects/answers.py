"""Requests that are carried out once, however often they come.

A client that lost its connection sends again what was not answered. The first copy may still be under way,
or done: its answer is in the store then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from modal_nomad.dispatcher._requests import Answer, Request
from modal_nomad.dispatcher.store.base import Store
from modal_nomad.dispatcher.store.objects import Kept, Ticket
from modal_nomad.exception import InvalidError
from modal_nomad.wire import frames


def ticket(request: Request) -> Ticket:
    """Return what a store knows a request by. Raises InvalidError."""
    if request.number < 1:
        raise InvalidError("a request that changes something needs a number of its own")
    session, answered = request.session, min(request.answered, request.number)
    return Ticket(session.owner, request.number, answered, session.answers.confirmed(answered))


def answer(kept: Kept) -> Answer:
    """Return an answer to a client from what is kept of it."""
    if kept.payload is None:
        return kept.value, []
    sizes = kept.value.get("sizes")
    if sizes is not None:
        return kept.value, frames.split(kept.payload, 0, sizes)
    return {**kept.value, "flags": kept.flags}, [kept.payload]


class Unfinished(Exception):
    """The dispatcher ended while a request was carried out."""


class Answers:
    """Joins copies of a request.

    Args:
        store: keeps answers.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[tuple[str, int], asyncio.Future[Answer]] = {}

    async def once(self, request: Request, work: Callable[[Ticket], Coroutine[Any, Any, Answer]]) -> Answer:
        """Carry a request out unless that was done; gives its one answer."""
        pass_on = ticket(request)
        key = pass_on.client, pass_on.number
        if key not in self._running and request.repeated:
            kept = await self._store.kept_answer(pass_on)
            if kept is not None:
                return answer(kept)
        running = self._running.get(key)
        if running is not None:
            return await asyncio.shield(running)
        # No task of its own: a request goes on though the connection that it came over is gone.
        running = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            made = await work(pass_on)
            request.session.answers.keep(request.number)
            running.set_result(made)
            return made
        except BaseException as error:
            running.set_exception(error if isinstance(error, Exception) else Unfinished())
            # Nobody may have come to wait for it.
            running.exception()
            raise
        finally:
            del self._running[key]
