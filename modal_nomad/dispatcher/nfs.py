"""NetworkFileSystems: directories that containers share, and what clients outside ask of their files."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import TypeVar

from modal_nomad.dispatcher._nfs_tree import Found, Shelf
from modal_nomad.dispatcher.objects.registry import ObjectRegistry
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.store.objects import ObjectRecord
from modal_nomad.exception import ExecutionError, InvalidError

logger = logging.getLogger("modal_nomad.dispatcher")

KIND = "nfs"
T = TypeVar("T")
_PART = 1 << 20


class NetworkFileSystems:
    """What is in all NetworkFileSystems.

    Args:
        settings: the configuration, which says where their directories are.
        objects: the registry of named objects.
    """

    def __init__(self, settings: Settings, objects: ObjectRegistry) -> None:
        self._objects = objects
        place = settings.nfs_place
        self._shelf = Shelf(place, shared=settings.engine != "local") if place is not None else None
        objects.on_create(KIND, self._created)
        objects.on_delete(KIND, self._deleted)

    async def open(self) -> None:
        """Make the directory ready."""
        if self._shelf is not None:
            try:
                await asyncio.to_thread(self._shelf.prepare)
            except OSError as error:
                logger.warning("NetworkFileSystems cannot be used from here: %s", error)

    async def list(self, object_id: str, path: str) -> list[Found]:
        """Return what a directory holds, or a glob matches.

        Raises:
            NotFoundError: the NetworkFileSystem is gone.
            FileNotFoundError: nothing is there.
            InvalidError: the path leads out, or this dispatcher has no directory.
        """
        shelf = await self._of(object_id)
        return await self._run(lambda: shelf.list(object_id, path))

    async def remove(self, object_id: str, path: str, recursive: bool) -> None:
        """Remove a file, or a directory with all that is in it. Raises as ``list``, IsADirectoryError."""
        shelf = await self._of(object_id)
        await self._run(lambda: shelf.remove(object_id, path, recursive))

    async def write(self, object_id: str, path: str, content: AsyncIterable[bytes]) -> int:
        """Write a file: it is there as a whole, on the disk, or as it was before.

        Returns:
            The number of its bytes.
        """
        shelf = await self._of(object_id)
        descriptor, upload = await self._run(shelf.upload)
        try:
            try:
                size = 0
                async for part in content:
                    await self._run(functools.partial(_write, descriptor, part))
                    size += len(part)
                await self._run(functools.partial(os.fsync, descriptor))
            finally:
                os.close(descriptor)
            await self._run(lambda: shelf.place(upload, object_id, path))
        finally:
            await asyncio.to_thread(shelf.abandon, upload)
        return size

    @contextlib.asynccontextmanager
    async def read(self, object_id: str, path: str) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Open a file: gives its size and its bytes in parts, of the file as it was when it was opened."""
        shelf = await self._of(object_id)
        descriptor = await self._run(lambda: shelf.open(object_id, path))

        async def content(left: int) -> AsyncIterator[bytes]:
            # One that grows meanwhile is read as long as it was; the answer's length has been said.
            while left > 0:
                part = await self._run(functools.partial(os.read, descriptor, min(left, _PART)))
                if not part:
                    return
                left -= len(part)
                yield part

        try:
            size = os.fstat(descriptor).st_size
            yield size, content(size)
        finally:
            os.close(descriptor)

    async def _of(self, object_id: str) -> Shelf:
        await self._objects.find(object_id, KIND)
        if self._shelf is None:
            raise InvalidError(
                "this dispatcher has no access to the shared directory: name where it is mounted there, as"
                " directory under [nfs] in the dispatcher's settings; containers have it at their paths"
            )
        return self._shelf

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except (FileNotFoundError, IsADirectoryError):
            raise
        except OSError as error:
            logger.warning("the shared directory cannot be used: %s", error)
            raise ExecutionError(
                f"the dispatcher cannot use the shared directory ({error.strerror}): see to its space and its"
                " permissions there"
            ) from None

    async def _created(self, record: ObjectRecord) -> None:
        if self._shelf is not None:
            shelf = self._shelf
            await self._run(lambda: shelf.create(record.object_id))

    async def _deleted(self, record: ObjectRecord) -> None:
        if self._shelf is None:
            logger.warning("%s is deleted; its directory has to be removed by hand", record.object_id)
            return
        shelf = self._shelf
        await self._run(lambda: shelf.drop(record.object_id))


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
