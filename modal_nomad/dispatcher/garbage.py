"""What nothing refers to any more is removed: blobs of old deploys and values, bundles laid out for them.

A blob is kept while anything that can still be asked for names it: a Function that may be called or has
containers, an input or output that is stored or held, this process's runtime. What nobody names is kept
for ``garbage_age`` seconds after it was last put or asked for: it may be about to be published.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec

from modal_nomad.dispatcher._call import Input
from modal_nomad.dispatcher._containers import Containers, FunctionState
from modal_nomad.dispatcher.blob_rights import BlobRights
from modal_nomad.dispatcher.blobs import BlobStore
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.copied_files import CopiedFiles
from modal_nomad.dispatcher.loghub import LogHub
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.store.base import Store
from modal_nomad.engines.base import Engine
from modal_nomad.wire.frames import FLAG_BLOB

logger = logging.getLogger("modal_nomad.dispatcher")

FIRST_SECONDS = 600.0
"""Clients have this long after a start to come back and say again what they wait for."""

_NAME = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def blob_names(value: Any) -> set[str]:
    """Return whatever in a JSON value reads like the name of a blob: rather too much than too little."""
    return set(_NAME.findall(msgspec.json.encode(value).decode()))


def manifests_in(spec: Any) -> set[str]:
    """Return the manifests that the image of a Function's specification names."""
    layers = (spec.get("image") or {}).get("layers") or ()
    found = ((layer.get("options") or {}).get("manifest") for layer in layers)
    return {sha for sha in found if sha}


class Garbage:
    """Looks for what nothing refers to, and removes it.

    Args:
        store: an open store.
        blobs: the blob store.
        rights: who may read them.
        copied: the files that images copy.
        engine: may have bundles laid out on this machine.
        calls: the call engine.
        functions: the live Functions, by id.
        containers: every container, also of Functions that are gone.
        hub: keeps containers' output.
        settings: the configuration.
        bundles: those of this process.
        clock: the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        rights: BlobRights,
        copied: CopiedFiles,
        engine: Engine,
        calls: CallEngine,
        functions: dict[str, FunctionState],
        containers: Containers,
        hub: LogHub,
        settings: Settings,
        bundles: frozenset[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._rights = rights
        self._copied = copied
        self._engine = engine
        self._calls = calls
        self._functions = functions
        self._containers = containers
        self._hub = hub
        self._age = settings.garbage_age
        self._interval = settings.garbage_interval
        self._bundles = bundles
        self._clock = clock

    async def spare(self, value: Any) -> None:
        """Keep for now the blobs that a JSON value names: it is about to be stored."""
        await self._blobs.missing(blob_names(value))

    async def run(self) -> None:
        """Collect every ``garbage_interval`` seconds, for ever."""
        await asyncio.sleep(min(FIRST_SECONDS, self._interval))
        while True:
            try:
                await self.collect()
            except Exception:
                logger.exception("old blobs and bundles cannot be removed; the next attempt follows")
            await asyncio.sleep(self._interval)

    async def collect(self) -> list[str]:
        """Remove now what may be removed; gives the removed blobs."""
        keep = await self._referenced()
        blobs = await self._blobs.collect(keep, older_than=self._age)
        await self._rights.forget(blobs, self._age)
        bundles = await self._engine.collect(keep, older_than=self._age)
        if blobs or bundles:
            logger.info("%d blobs and %d bundles that nothing refers to were removed", len(blobs), bundles)
        await self._forget_output()
        return blobs

    async def _referenced(self) -> set[str]:
        # Memory first: what leaves it for the store meanwhile is found there.
        held = self._calls.held()
        states = [*self._functions.values(), *(c.function for c in self._containers.values())]
        specs = [state.spec_dict for state in states]
        names, stored = await asyncio.gather(
            asyncio.to_thread(_held_names, held, specs), self._store.referenced_blobs()
        )
        copied = await self._copied.names(stored.manifests.union(*map(manifests_in, specs)))
        return names | stored.names | copied | self._bundles

    async def _forget_output(self) -> None:
        before = self._clock() - self._age
        for app_id in self._hub.apps():
            app = await self._store.app(app_id)
            if app is None or (app.stopped_at is not None and app.stopped_at < before):
                self._hub.forget(app_id)


def _held_names(held: list[list[Any]], specs: list[Any]) -> set[str]:
    names = set().union(*map(blob_names, specs))
    for entries in held:
        for entry in entries:
            if type(entry) is Input:
                payload, flags = entry.payload, entry.flags
            else:
                payload, flags = entry[-2:]
            if flags & FLAG_BLOB:
                names.add(payload.decode("ascii", "replace"))
    return names
