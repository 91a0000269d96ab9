"""Volumes: trees of files that outlive containers and are shared between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypeVar

from . import exception
from ._bridge import blocking, blocking_function, blocking_function_context, blocking_gen, io
from ._object_manager import ObjectManager
from ._options import check_object_name
from ._renamed import renamed
from ._volume_mounts import check_sub_path
from ._volume_requests import in_thread
from .object import Object, _by_id, _default_client, check_environment_name, environment
from .types import FileEntry, FileEntryType, VolumeInfo, described
from .wire.volumes.entries import CHUNK_BYTES, DIRECTORY, FILE, HOLE, Entry

if TYPE_CHECKING:
    from ._volume_upload import VolumeUpload
    from .client import Client
    from .wire.mounts import VolumeMount
    from .wire.volumes.client import VolumeClient

    _Page = tuple[list[Entry], str | None]

__all__ = ["FileEntry", "FileEntryType", "Volume"]

T = TypeVar("T")
_AHEAD = 4
_VERSIONS = (None, 1, 2)


class Volume(Object):
    """A tree of files on the server, shown as a directory in the containers of a Function.

    A container sees the tree as it was when it started, and its own changes; ``commit`` makes these seen
    by others, ``reload`` shows the others'. Whoever commits a file last has it.

    Example:
        >>> import io
        >>> with modal.Volume.ephemeral() as volume:
        ...     with volume.batch_upload() as batch:
        ...         batch.put_file(io.BytesIO(b"some data"), "/models/a.bin")
        ...     [entry.path for entry in volume.iterdir("/")], b"".join(volume.read_file("models/a.bin"))
        (['models', 'models/a.bin'], b'some data')
    """

    kind = "volume"
    label = "Volume"
    objects: ClassVar[ObjectManager[Volume]]
    _read_only: bool = False
    _sub_path: str = ""

    @staticmethod
    @renamed("label", "name")
    def from_name(
        name: str,
        namespace: Any = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        version: int | None = None,
        *,
        client: Client | None = None,
        backend: str | None = None,
        access_mode: str | None = None,
    ) -> Volume:
        """Refer to a Volume by name; nothing is asked of the server until it is used.

        Args:
            name: its name in the environment.
            namespace: ignored; older code passes it.
            environment_name: the environment, or the configured one.
            create_if_missing: whether it is created where there is none.
            version: 1, 2 or None; all are the same here.
            client: the connection, or the configured one.
            backend: ``"csi"`` or ``"host"`` for a volume of that name that Nomad has and mounts. It must be
                there; files are shared at once, and only containers see them.
            access_mode: Nomad's, for such a volume; by default any number of writers.

        Raises:
            InvalidError: for a name or version that cannot be.
            NotFoundError: on first use, when there is none.

        Example:
            >>> models = modal.Volume.from_name("models", create_if_missing=True)
            >>> models.listdir("/")
            []
            >>> modal.Volume.delete("models")
        """
        _check_version(version)
        if backend is not None or access_mode is not None:
            from ._nomad_volume import NomadVolume

            check_object_name("Volume", name)
            if create_if_missing or environment_name is not None:
                raise exception.InvalidError(
                    f"Volume {name!r} is Nomad's: leave out create_if_missing and environment_name, and make"
                    " it with `nomad volume create`"
                )
            return NomadVolume._of(name, backend, access_mode)
        return Volume._named(name, environment_name, create_if_missing=create_if_missing, client=client)

    @staticmethod
    @blocking_function
    @renamed("label", "name")
    async def lookup(
        name: str,
        namespace: Any = None,
        client: Client | None = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        version: int | None = None,
    ) -> Volume:
        """Deprecated form of ``from_name(...).hydrate()``."""
        Volume._deprecated_lookup()
        made = Volume.from_name(name, None, environment_name, create_if_missing, version, client=client)
        await made._target()
        return made

    @staticmethod
    def from_id(object_id: str, client: Client | None = None) -> Volume:
        """Refer to a Volume by its id.

        Example:
            >>> with modal.Volume.ephemeral() as one:
            ...     modal.Volume.from_id(one.object_id).listdir("/")
            []
        """
        made = _by_id(Volume, object_id)
        made._client = client
        return made

    @staticmethod
    @blocking_function_context
    async def ephemeral(
        client: Client | None = None,
        environment_name: str | None = None,
        version: int | None = None,
        _heartbeat_sleep: float = 300.0,
    ) -> AsyncIterator[Volume]:
        """Create a Volume without a name, which is gone at the end of the block, or with this program.

        Args:
            client: the connection, or the configured one.
            environment_name: the environment, or the configured one.
            version: 1, 2 or None; all are the same here.

        Example:
            >>> with modal.Volume.ephemeral() as volume:
            ...     volume.listdir("/")
            []
        """
        _check_version(version)
        body = Volume._ephemeral(client, environment_name)
        try:
            async for made in body:
                yield made
        finally:
            await body.aclose()  # type: ignore[attr-defined]

    @staticmethod
    @blocking_function
    @renamed("label", "name")
    async def delete(name: str, client: Client | None = None, environment_name: str | None = None) -> None:
        """Delete a named Volume with all that is in it.

        Raises:
            NotFoundError: there is none of that name.

        Example:
            >>> _ = modal.Volume.from_name("old", create_if_missing=True).hydrate()
            >>> modal.Volume.delete("old")
        """
        await Volume._delete(name, client, environment_name)

    @staticmethod
    @blocking_function
    async def rename(
        old_name: str,
        new_name: str,
        *,
        client: Client | None = None,
        environment_name: str | None = None,
    ) -> None:
        """Give a Volume another name. Containers that have it mounted keep it.

        Raises:
            NotFoundError: there is none of the old name.
            AlreadyExistsError: there is one of the new name.

        Example:
            >>> _ = modal.Volume.from_name("draft", create_if_missing=True).hydrate()
            >>> modal.Volume.rename("draft", "final")
            >>> modal.Volume.delete("final")
        """
        check_object_name("Volume", old_name)
        check_object_name("Volume", new_name)
        client = client or await _default_client()
        request = {
            "kind": Volume.kind,
            "name": old_name,
            "new_name": new_name,
            "environment": environment(check_environment_name(environment_name)),
        }
        await io(client._request("object.rename", request))

    if TYPE_CHECKING:

        @blocking
        async def hydrate(self, client: Client | None = None) -> Volume: ...

    @blocking
    async def info(self) -> VolumeInfo:
        """Return its name, when it was made and by whom.

        Example:
            >>> with modal.Volume.ephemeral() as volume:
            ...     volume.info().name is None
            True
        """
        info: VolumeInfo = described(VolumeInfo, await self._described())
        return info

    def read_only(self) -> Volume:
        """Return the same Volume, to be mounted such that containers cannot write to it.

        Example:
            >>> models = modal.Volume.from_name("models").read_only()
        """
        return self.with_mount_options(read_only=True)

    def with_mount_options(self, *, read_only: bool | None = None, sub_path: str | None = None) -> Volume:
        """Return the same Volume, to be mounted otherwise; what is not given stays.

        Args:
            read_only: whether containers cannot write to it.
            sub_path: the directory of it that containers see; the first commit makes it where it is missing.

        Raises:
            InvalidError: for a path that leads out of the Volume.

        Example:
            >>> one = modal.Volume.from_name("models").with_mount_options(sub_path="one", read_only=True)
        """
        made = Volume._new(self._client, self._object_id)
        made._name, made._environment, made._create = self._name, self._environment, self._create
        made._read_only = self._read_only if read_only is None else read_only
        made._sub_path = self._sub_path if sub_path is None else check_sub_path(sub_path)
        return made

    def _mount(self, path: str) -> VolumeMount:
        from .wire.mounts import VolumeMount

        return VolumeMount(path, self._object_id or "", self._read_only, sub_path=self._sub_path)

    # --- in a container that has it mounted -------------------------------------------------------

    @blocking
    async def commit(self) -> None:
        """Make the changes of this container seen by others; returns when they are on the disk.

        Raises:
            InvalidError: it is not mounted here, or only for reading.
            ConnectionError: the dispatcher could not be reached; nothing was committed.

        Example:
            >>> modal.Volume.from_name("models").commit()  # doctest: +SKIP
        """
        mounted = await self._mounted("commit")
        await in_thread(mounted.commit)

    @blocking
    async def reload(self) -> None:
        """Show what others committed. Changes of this container are committed before.

        Raises:
            RuntimeError: a file of the Volume is open, or the working directory is in it.
            InvalidError: it is not mounted here.

        Example:
            >>> modal.Volume.from_name("models").reload()  # doctest: +SKIP
        """
        mounted = await self._mounted("reload")
        await in_thread(mounted.reload)

    async def _mounted(self, what: str) -> Any:
        from .wire.volumes.mounted import mounts

        mounted = mounts.find((await self._target())[1])
        if mounted is None:
            raise exception.InvalidError(
                f"{self!r} is not mounted here: {what}() is for containers of Functions with it in volumes="
            )
        return mounted

    # --- the committed tree -----------------------------------------------------------------------

    @blocking_gen
    async def iterdir(self, path: str, *, recursive: bool = True) -> AsyncIterator[FileEntry]:
        """Yield what is in a directory, by default with all below; a file's path yields that file alone.

        Raises:
            FileNotFoundError: nothing is at that path.

        Example:
            >>> with modal.Volume.ephemeral() as volume:
            ...     list(volume.iterdir("/"))
            []
        """
        after: str | None = None
        while True:
            page, after = await self._ask(_lister(path, recursive, after))
            for entry in page:
                yield FileEntry(entry.path, FileEntryType(entry.kind), entry.mtime // 10**9, entry.size)
            if after is None:
                return

    @blocking
    async def listdir(self, path: str, *, recursive: bool = False) -> list[FileEntry]:
        """Return what is in a directory; a file's path gives that file alone.

        Raises:
            FileNotFoundError: nothing is at that path.

        Example:
            >>> with modal.Volume.ephemeral() as volume:
            ...     volume.listdir("/")
            []
        """
        return [entry async for entry in self.iterdir.aio(path, recursive=recursive)]

    @blocking_gen
    async def read_file(self, path: str) -> AsyncIterator[bytes]:
        """Yield the bytes of a committed file, in parts.

        Raises:
            FileNotFoundError: there is no such file.
            IsADirectoryError: a directory is there.

        Example:
            >>> import io
            >>> with modal.Volume.ephemeral() as volume:
            ...     with volume.batch_upload() as batch:
            ...         batch.put_file(io.BytesIO(b"abc"), "a.txt")
            ...     b"".join(volume.read_file("a.txt"))
            b'abc'
        """
        entry: Entry | None = await self._ask(lambda client, volume_id: client.entry(volume_id, path))
        if entry is None or entry.kind == DIRECTORY:
            raise IsADirectoryError(f"{path!r} is a directory in the Volume")
        if entry.kind != FILE:
            raise exception.InvalidError(f"{path!r} is a link in the Volume, to {entry.data!r}: read that")
        if entry.data:
            yield entry.data
        running: deque[asyncio.Future[bytes]] = deque()
        wanted = deque(enumerate(entry.chunks))
        try:
            while wanted or running:
                while wanted and len(running) < _AHEAD:
                    number, sha = wanted.popleft()
                    size = min(CHUNK_BYTES, entry.size - number * CHUNK_BYTES)
                    running.append(await io(self._fetch(sha, size)))
                future = running.popleft()
                yield await io(_result(future))
        finally:
            # This is the reader's thread; the futures are the library's loop's.
            for future in running:
                future.get_loop().call_soon_threadsafe(future.cancel)

    @blocking
    async def _read_link(self, path: str) -> bytes:
        entry: Entry | None = await self._ask(lambda client, volume_id: client.entry(volume_id, path))
        return entry.data if entry is not None else b""

    @blocking
    async def read_file_into_fileobj(
        self, path: str, fileobj: BinaryIO, progress_cb: Callable[..., Any] | None = None
    ) -> int:
        """Write the bytes of a committed file into an open one, and return how many they were.

        Args:
            path: the file in the Volume.
            fileobj: open for writing bytes.
            progress_cb: called with ``advance=`` bytes after each part.

        Raises:
            FileNotFoundError: there is no such file.

        Example:
            >>> import io
            >>> with modal.Volume.ephemeral() as volume:
            ...     with volume.batch_upload() as batch:
            ...         batch.put_file(io.BytesIO(b"abc"), "a.txt")
            ...     volume.read_file_into_fileobj("a.txt", io.BytesIO())
            3
        """
        total = 0
        async for part in self.read_file.aio(path):
            fileobj.write(part)
            total += len(part)
            if progress_cb is not None:
                progress_cb(advance=len(part))
        return total

    @blocking
    async def remove_file(self, path: str, recursive: bool = False) -> None:
        """Remove a file, or with ``recursive`` a directory and all below.

        Raises:
            FileNotFoundError: nothing is at that path.
            InvalidError: it is a directory, and ``recursive`` is false.

        Example:
            >>> import io
            >>> with modal.Volume.ephemeral() as volume:
            ...     with volume.batch_upload() as batch:
            ...         batch.put_file(io.BytesIO(b"abc"), "a.txt")
            ...     volume.remove_file("a.txt")
        """
        await self._ask(lambda client, volume_id: client.remove(volume_id, path, recursive))

    @blocking
    async def copy_files(self, src_paths: Sequence[str], dst_path: str, recursive: bool = False) -> None:
        """Copy within the Volume, as ``cp`` does; no content is moved.

        Args:
            src_paths: what is copied.
            dst_path: a directory, or for a single source its new name.
            recursive: whether directories are copied.

        Raises:
            FileNotFoundError: a source, or the directory to copy into, is not there.
            InvalidError: a source is a directory, and ``recursive`` is false.

        Example:
            >>> import io
            >>> with modal.Volume.ephemeral() as volume:
            ...     with volume.batch_upload() as batch:
            ...         batch.put_file(io.BytesIO(b"abc"), "a.txt")
            ...     volume.copy_files(["a.txt"], "b.txt")
            ...     len(volume.listdir("/"))
            2
        """
        if isinstance(src_paths, str) or not src_paths:
            raise exception.InvalidError(f"src_paths is {src_paths!r}; give a list of paths")
        sources = list(src_paths)
        await self._ask(lambda client, volume_id: client.copy(volume_id, sources, dst_path, recursive))

    def batch_upload(self, force: bool = False) -> VolumeUpload:
        """Return a context manager that gathers files, and uploads them when its block ends.

        Args:
            force: whether files that are there are replaced; directories never are.

        Raises:
            FileExistsError: at the end of the block, for what is there already.
            VolumeUploadTimeoutError: at the end of the block, when the upload is stuck.

        Example:
            >>> import io
            >>> with modal.Volume.ephemeral() as volume:
            ...     with volume.batch_upload() as batch:
            ...         batch.put_file(io.BytesIO(b"abc"), "/a.txt")
            ...     volume.listdir("/")[0].size
            3
        """
        from ._volume_upload import VolumeUpload

        async def send(work: Callable[[VolumeClient, str], None]) -> None:
            try:
                await self._ask(work)
            except TimeoutError as error:
                raise exception.VolumeUploadTimeoutError(
                    f"an upload to {self!r} is stuck ({error}): see whether the dispatcher is well"
                ) from None

        return VolumeUpload(send, force)

    # --- requests: blocking ones, each on a thread ------------------------------------------------

    async def _ask(self, work: Callable[[VolumeClient, str], T]) -> T:
        from .wire.volumes.client import VolumeClient

        client, volume_id = await self._target()
        files = VolumeClient(client.server.address, client._token)
        return await in_thread(lambda: work(files, volume_id))

    async def _fetch(self, sha: str, size: int) -> asyncio.Future[bytes]:
        """Begin to fetch a chunk."""
        client = self._client
        assert client is not None

        async def fetch() -> bytes:
            return bytes(size) if sha == HOLE else await client._get_blob(sha)

        return asyncio.ensure_future(fetch())


async def _result(future: asyncio.Future[bytes]) -> bytes:
    return await future


def _lister(path: str, recursive: bool, after: str | None) -> Callable[[VolumeClient, str], _Page]:
    return lambda client, volume_id: client.list(volume_id, path, recursive, after)


def _check_version(version: Any) -> None:
    if version not in _VERSIONS or isinstance(version, bool):
        raise exception.InvalidError(f"version is {version!r}; give 1, 2 or nothing")


Volume.objects = ObjectManager(Volume)
