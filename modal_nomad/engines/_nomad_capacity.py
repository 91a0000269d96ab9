"""How many cores the cluster has for containers, kept current by the event stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from modal_nomad.engines._nomad_words import capacity_of
from modal_nomad.engines.base import Capacity
from modal_nomad.hashicorp.nomad import NomadClient, NomadDenied

_log = logging.getLogger(__name__)


class NomadCapacity:
    """The capacity of the nodes that containers are placed on.

    Args:
        client: the adapter.
        node_pool: whose nodes count; ``all`` for every node.
        datacenters: patterns of those that count.
    """

    def __init__(self, client: NomadClient, node_pool: str, datacenters: Sequence[str]) -> None:
        self._client = client
        self._node_pool = node_pool
        self._datacenters = datacenters
        self._now: Capacity | None = None
        self._queues: set[asyncio.Queue[Capacity | None]] = set()
        self._denied = False

    @property
    def topics(self) -> tuple[str, ...]:
        """The event stream's topics whose events mean: read again."""
        # A topic that the token may not see would have Nomad refuse the whole stream.
        return () if self._denied else ("Node:*",)

    async def read(self) -> None:
        """Ask Nomad for its nodes. A token that may not see them leaves the capacity unknown."""
        if self._denied:
            return
        try:
            nodes = await self._client.nodes()
        except NomadDenied as error:
            self._denied = True
            _log.warning(
                "the cluster's cores are not known, so they limit no Function: %s (node read)", error
            )
            return
        now = capacity_of(nodes, pool=self._node_pool, datacenters=self._datacenters)
        if now != self._now:
            self._now = now
            for queue in self._queues:
                queue.put_nowait(now)

    async def watch(self) -> AsyncIterator[Capacity]:
        """Yield the capacity now, where it is known, then each change, until ``close``."""
        queue: asyncio.Queue[Capacity | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            if self._now is not None:
                yield self._now
            while (capacity := await queue.get()) is not None:
                yield capacity
        finally:
            self._queues.discard(queue)

    def close(self) -> None:
        """End every ``watch``."""
        for queue in self._queues:
            queue.put_nowait(None)
