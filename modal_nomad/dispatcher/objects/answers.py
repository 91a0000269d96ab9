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


def ticket(request: Request) -> Ticket:
    """Return what a store knows a request by. Raises InvalidError."""
    if request.number < 1:
        raise InvalidError("a request that changes something needs a number of its own")
    return Ticket(request.session.owner, request.number, min(request.answered, request.number))


def answer(kept: Kept) -> Answer:
    """Return an answer to a client from what is kept of it."""
    if kept.payload is None:
        return kept.value, []
    return {**kept.value, "flags": kept.flags}, [kept.payload]


class Answers:
    """Joins copies of a request.

    Args:
        store: keeps answers.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[tuple[str, int], asyncio.Task[Answer]] = {}

    async def once(self, request: Request, work: Callable[[Ticket], Coroutine[Any, Any, Answer]]) -> Answer:
        """Carry a request out unless that was done; gives its one answer."""
        pass_on = ticket(request)
        key = pass_on.client, pass_on.number
        running = self._running.get(key)
        if running is None:
            if request.repeated:
                kept = await self._store.kept_answer(pass_on)
                if kept is not None:
                    return answer(kept)
            running = self._running.get(key)
        if running is None:
            running = asyncio.get_running_loop().create_task(work(pass_on))
            self._running[key] = running
            running.add_done_callback(lambda _: self._running.pop(key, None))
        # Shielded: the copy that began it may lose its connection, and the other one waits on.
        return await asyncio.shield(running)
