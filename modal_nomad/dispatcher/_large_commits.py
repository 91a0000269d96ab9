"""Commits of many files: other writers have their turns in between, and nobody sees half of one.

The entries are staged in slices. Then, alone with the Volume's tree, the commit is decided in one transaction
and carried out in slices; a dispatcher that is killed in between carries on where it was.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from modal_nomad.dispatcher._gates import Gates
from modal_nomad.dispatcher.store.base import Store, StoreError
from modal_nomad.dispatcher.store.volumes import KEEP_MODE, Committed, Switch, VolumeConflict
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.volumes.client import LAST
from modal_nomad.wire.volumes.entries import DIRECTORY, Entry

logger = logging.getLogger("modal_nomad.dispatcher")

T = TypeVar("T")
SLICE = 500
"""Entries of one transaction: some 50 ms that another writer waits at most."""
_RETRY_SECONDS = 1.0


class LargeCommits:
    """Carries out commits in slices.

    Args:
        store: an open store.
        gates: of the trees, by Volume.
        spare: keeps chunks from collection that no path names by now.
        slice_entries: entries of one transaction.
    """

    def __init__(
        self,
        store: Store,
        gates: Gates,
        spare: Callable[[frozenset[str]], Awaitable[None]],
        slice_entries: int = SLICE,
    ) -> None:
        self._store = store
        self._gates = gates
        self._spare = spare
        self.slice_entries = slice_entries
        self._tasks: set[asyncio.Task[Any]] = set()

    async def resume(self) -> None:
        """Carry on with what an earlier process began; trees that it left half changed are waited for."""
        for found in await self._store.volume_stages():
            if not found.commit_id:
                self._begin(self._drop(found.object_id, found.stage_id))
                continue
            closed = asyncio.Event()
            self._begin(self._carry_on(found, closed))
            await closed.wait()

    def close(self) -> None:
        """Stop; what is not done is done by whoever opens the store next."""
        for task in self._tasks:
            task.cancel()

    async def commit(
        self, object_id: str, commit_id: str, rule: str, entries: Iterable[Entry], now: float
    ) -> Committed:
        """Carry out a commit, all or nothing. Raises VolumeConflict, StoreError.

        Args:
            object_id: the Volume.
            commit_id: one that was carried out before is not carried out again.
            rule: as for ``VolumeStore.volume_commit``.
            entries: what is written, then what is removed, the deepest first; read in another thread.
            now: seconds since 1970.
        """
        rest = iter(entries)

        async def slices() -> AsyncIterator[list[Entry]]:
            while some := await asyncio.to_thread(lambda: list(itertools.islice(rest, self.slice_entries))):
                yield some

        return await self.commit_slices(object_id, commit_id, rule, slices(), now)

    async def commit_slices(
        self, object_id: str, commit_id: str, rule: str, slices: AsyncIterator[list[Entry]], now: float
    ) -> Committed:
        """Carry out a commit whose entries come in slices, each for one transaction; see ``commit``."""
        stage_id = new_id("sg")
        number = 0
        try:
            async for some in slices:
                if rule != LAST:
                    some = [_keeping(x) if x.kind == DIRECTORY else x for x in some]
                await self._store.volume_stage(object_id, stage_id, number, some)
                number += len(some)
        except BaseException:
            self._begin(self._drop(object_id, stage_id))
            raise
        switch = Switch(object_id, stage_id, commit_id, now)
        # On its own from here: who asked for it may go, and a tree is not left half changed.
        return await asyncio.shield(self._begin(self._switch(switch, rule)))

    async def _switch(self, switch: Switch, rule: str) -> Committed:
        object_id, stage_id, commit_id, now = switch
        try:
            async with self._gates.alone(object_id):
                done = await self._store.volume_done(object_id, commit_id)
                # One that comes again does not conflict with itself.
                first, more = 0, done is None and rule != LAST
                while more:
                    more = await self._store.volume_check(
                        object_id, stage_id, first, self.slice_entries, rule, now
                    )
                    first += self.slice_entries
                if done is None:
                    await self._store.volume_switch(object_id, stage_id, commit_id, now)
                    return await self._carry_out(switch)
        except BaseException:
            self._begin(self._drop(object_id, stage_id))
            raise
        self._begin(self._drop(object_id, stage_id))
        return done

    async def _carry_on(self, switch: Switch, closed: asyncio.Event) -> None:
        async with self._gates.alone(switch.object_id):
            closed.set()
            logger.info("a commit of Volume %s is carried on with", switch.object_id)
            try:
                await self._carry_out(switch)
            except VolumeConflict:
                # It was deleted, with all that was staged.
                return

    async def _carry_out(self, switch: Switch) -> Committed:
        while True:
            displaced = await self._insist(lambda: self._store.volume_carry_out(switch, self.slice_entries))
            if displaced is None:
                return await self._insist(lambda: self._store.volume_finish(switch))
            if displaced:
                await self._spare(displaced)

    async def _insist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step of what is decided, once the store can."""
        while True:
            try:
                return await step()
            except StoreError as error:
                logger.error("a commit waits for the store: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _drop(self, object_id: str, stage_id: str) -> None:
        try:
            while await self._store.volume_drop_stage(object_id, stage_id, self.slice_entries):
                pass
        except StoreError as error:
            # The next start finds it.
            logger.warning("what was staged of a commit stays for now: %s", error)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Who waits for it has it as well.
            task.exception()


def _keeping(entry: Entry) -> Entry:
    return entry._replace(mode=entry.mode | KEEP_MODE)
