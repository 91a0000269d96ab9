"""Versions of Volumes that containers read as they were: pinned, renewed, and forgotten in small steps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from modal_nomad.dispatcher._gates import Gates
from modal_nomad.dispatcher.store.base import Store, StoreError

logger = logging.getLogger("modal_nomad.dispatcher")

PIN_SECONDS = 6 * 3600.0
"""A pin that nobody renewed for this long is forgotten: its container was killed with its machine."""
_LOOK_EVERY = 600.0
_SLICE = 500


class Pins:
    """Pins of all Volumes.

    Args:
        store: an open store.
        gates: of the trees, by Volume.
        clock: the time in seconds.
    """

    def __init__(self, store: Store, gates: Gates, clock: Callable[[], float]) -> None:
        self._store = store
        self._gates = gates
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def pin(self, object_id: str, pin_id: str) -> int:
        """Pin the version that a Volume has, and return it. Raises VolumeConflict."""
        # A commit that is half carried out has put aside what was pinned before it alone.
        async with self._gates.shared(object_id):
            return await self._store.volume_pin(object_id, pin_id, self._clock())

    async def renew(self, object_id: str, pin_id: str) -> bool:
        """Keep a pin for longer; says whether it is there."""
        return await self._store.volume_renew(object_id, pin_id, self._clock())

    def unpin(self, object_id: str, pin_id: str) -> None:
        """Begin to forget a pin, and what only it kept."""
        task = asyncio.get_running_loop().create_task(self._unpin(object_id, pin_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def expire(self) -> None:
        """Forget the pins that nobody renewed."""
        for object_id, pin_id in await self._store.volume_expired(self._clock() - PIN_SECONDS):
            await self._unpin(object_id, pin_id)

    async def run(self) -> None:
        """Forget what expires, for ever."""
        while True:
            try:
                await self.expire()
            except StoreError as error:
                logger.warning("old versions of Volumes stay for now: %s", error)
            await asyncio.sleep(_LOOK_EVERY)

    def close(self) -> None:
        """Stop; what is not forgotten is so when it expires."""
        for task in self._tasks:
            task.cancel()

    async def _unpin(self, object_id: str, pin_id: str) -> None:
        try:
            while await self._store.volume_unpin(object_id, pin_id, _SLICE):
                pass
        except StoreError as error:
            logger.warning("an old version of Volume %s stays for now: %s", object_id, error)
