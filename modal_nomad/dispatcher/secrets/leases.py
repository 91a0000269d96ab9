"""Leases of Vault that containers have: renewed while they live, revoked at their end.

A lease that has come near its longest time cannot be renewed any more, and what a process has in its
environment cannot be changed: its container is told to end after what it runs, and the next one has another.

On Nomad an allocation reads such Secrets itself and Nomad renews them; at their end it leaves them to their
time, so the container tells the dispatcher their ids. The ids are kept in the store, which a dispatcher that
was killed has no part in: the next one revokes what belongs to containers that are gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modal_nomad.dispatcher.store.base import StoreError
from modal_nomad.dispatcher.store.leases import LeaseRecord, LeaseStore
from modal_nomad.hashicorp.vault import Lease, VaultClient, VaultError, VaultUnavailable

logger = logging.getLogger("modal_nomad.dispatcher")

_RETRY_SECONDS = 5.0
_REVOKE_TRIES = 3
_SHORTEST = 1.0


@dataclass
class _Held:
    container_id: str
    path: str
    lease_id: str
    due: float
    seconds: float = 0.0
    renewable: bool = True


class Leases:
    """What was read for each container.

    Args:
        client: the adapter.
        clock: seconds, monotonic.
        book: keeps the ids beyond this process; None where nobody does.

    Attributes:
        ending: told the container whose lease comes to its end.
    """

    def __init__(
        self,
        client: VaultClient,
        clock: Callable[[], float] = time.monotonic,
        book: LeaseStore | None = None,
    ) -> None:
        self.ending: Callable[[str], None] = lambda container_id: None
        self._client = client
        self._clock = clock
        self._book = book
        self._unwritten: list[LeaseRecord] = []
        self._held: dict[str, _Held] = {}
        self._changed = asyncio.Event()

    async def take(self, container_id: str, path: str) -> Mapping[str, Any] | None:
        """Read a path for a container; None where there is nothing.

        Raises:
            VaultError: Vault refused or failed.
        """
        lease = await self._client.read(path)
        if lease is None:
            return None
        if lease.lease_id:
            due = self._clock() + lease.seconds / 2 if lease.seconds else float("inf")
            self._held[lease.lease_id] = _Held(
                container_id, path, lease.lease_id, due, lease.seconds, lease.renewable
            )
            self._changed.set()
            # Before the container has it: whatever happens now, somebody can revoke it.
            await self._write(LeaseRecord(lease.lease_id, container_id, path))
        return lease.data

    def adopt(self, container_id: str, lease_id: str) -> None:
        """Revoke, when a container ends, what it has leased and somebody else renews."""
        path = lease_id.rpartition("/")[0]
        if lease_id not in self._held:
            self._unwritten.append(LeaseRecord(lease_id, container_id, path))
            self._changed.set()
        self._held[lease_id] = _Held(container_id, path, lease_id, float("inf"))

    async def resume(self) -> set[str]:
        """Hold what an earlier process has left; returns whose it is. Raises StoreError."""
        if self._book is None:
            return set()
        found = [x for x in await self._book.leases() if x.lease_id not in self._held]
        for record in found:
            self._held[record.lease_id] = _Held(
                record.container_id, record.path, record.lease_id, float("inf")
            )
        return {record.container_id for record in found}

    async def end(self, container_id: str) -> None:
        """Revoke what a container had."""
        held = [x for x in self._held.values() if x.container_id == container_id]
        for lease in held:
            del self._held[lease.lease_id]
        self._unwritten = [x for x in self._unwritten if x.container_id != container_id]
        revoked = await asyncio.gather(*map(self._revoke, held))
        gone = [lease.lease_id for lease, done in zip(held, revoked, strict=True) if done]
        if gone and self._book is not None:
            try:
                await self._book.remove_leases(gone)
            except StoreError as error:
                # Revoked once more by the next process, which is no error.
                logger.warning("%d ended leases stay on record: %s", len(gone), error)

    async def close(self) -> None:
        """Revoke everything: an ending dispatcher's containers end with it, or are no more its own."""
        await asyncio.gather(*(self.end(x) for x in {h.container_id for h in self._held.values()}))

    async def run(self) -> None:
        """Renew, for ever."""
        own_due = self._clock()
        while True:
            while self._unwritten:
                await self._write(self._unwritten.pop())
            now = self._clock()
            if own_due <= now:
                own_due = now + await self._renew_own()
            await asyncio.gather(*(self._renew(x) for x in list(self._held.values()) if x.due <= now))
            wake = min([own_due, *(x.due for x in self._held.values())])
            self._changed.clear()
            if self._unwritten:
                continue
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, min(wake - self._clock(), 3600.0)))
            except asyncio.TimeoutError:
                continue

    async def _write(self, record: LeaseRecord) -> None:
        if self._book is None:
            return
        try:
            await self._book.put_lease(record)
        except StoreError as error:
            logger.warning("the lease of %s would outlive this dispatcher's end: %s", record.path, error)

    async def _renew_own(self) -> float:
        """Renew the dispatcher's own token; returns the seconds until the next time."""
        try:
            seconds = await self._client.renew_own()
        except VaultError as error:
            logger.warning("the dispatcher's own token cannot be renewed: %s", error)
            return _RETRY_SECONDS * 12
        return max(seconds / 2, 1.0) if seconds else 3600.0

    async def _renew(self, held: _Held) -> None:
        if not held.renewable:
            self._end_soon(held)
            return
        try:
            lease = await self._client.renew(held.lease_id)
        except VaultUnavailable as error:
            held.due = self._clock() + _RETRY_SECONDS
            logger.warning("the lease of %s for %s waits: %s", held.path, held.container_id, error)
            return
        except VaultError as error:
            lease = Lease("", 0.0, renewable=False)
            logger.warning("the lease of %s for %s ends: %s", held.path, held.container_id, error)
        # Near its longest time a lease gets less and less. Half of a full one is what is left to run out in.
        if lease.renewable and lease.seconds > max(_SHORTEST, held.seconds / 2):
            held.due = self._clock() + lease.seconds / 2
        else:
            self._end_soon(held)

    def _end_soon(self, held: _Held) -> None:
        held.due = float("inf")
        logger.info(
            "the lease of %s for %s is near its end: the container is replaced", held.path, held.container_id
        )
        self.ending(held.container_id)

    async def _revoke(self, held: _Held) -> bool:
        """End a lease; False when that must be left to the next process, or to its time."""
        for attempt in range(_REVOKE_TRIES):
            try:
                await self._client.revoke(held.lease_id)
                return True
            except VaultUnavailable:
                await asyncio.sleep(attempt)
            except VaultError as error:
                logger.warning("the lease of %s cannot be revoked: %s", held.path, error)
                # Of one that has ended meanwhile there is nothing to revoke, nor of any by this token.
                return True
        logger.warning("the lease of %s ends by itself: Vault cannot be reached to revoke it", held.path)
        return False
