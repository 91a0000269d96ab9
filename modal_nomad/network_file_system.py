"""NetworkFileSystems: directories that containers share, where each sees at once what another writes."""

from __future__ import annotations

import asyncio
import os
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NoReturn, TypeVar

from . import exception
from ._bridge import blocking, blocking_function, blocking_function_context, blocking_gen, io
from ._object_manager import ObjectManager
from ._renamed import renamed
from .object import Object, _by_id
from .types import FileEntry, FileEntryType
from .wire.asking import Refused
from .wire.nfs import Listed, NfsClient, file_name

if TYPE_CHECKING:
    from .client import Client

__all__ = ["FileEntry", "FileEntryType", "NetworkFileSystem"]

T = TypeVar("T")
_PART = 1 << 20
_AT_ONCE = 8


class NetworkFileSystem(Object):
    """A directory that the containers of Functions share: what one writes, the others see at once.

    Example:
        >>> import io
        >>> with modal.NetworkFileSystem.ephemeral() as nfs:
        ...     nfs.write_file("/data/hello.txt", io.BytesIO(b"hello"))
        ...     [entry.path for entry in nfs.listdir("/data")], b"".join(nfs.read_file("data/hello.txt"))
        5
        (['hello.txt'], b'hello')
    """

    kind = "nfs"
    label = "NetworkFileSystem"
    objects: ClassVar[ObjectManager[NetworkFileSystem]]

    @staticmethod
    @renamed("label", "name")
    def from_name(
        name: str,
        namespace: Any = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        *,
        client: Client | None = None,
    ) -> NetworkFileSystem:
        """Refer to a NetworkFileSystem by name; nothing is asked of the server until it is used.

        Args:
            name: its name in the environment.
            namespace: ignored; older code passes it.
            environment_name: the environment, or the configured one.
            create_if_missing: whether it is created where there is none.
            client: the connection, or the configured one.

        Raises:
            InvalidError: for a name that cannot be; on first use, for one that a Volume has.
            NotFoundError: on first use, when there is none.

        Example:
            >>> shared = modal.NetworkFileSystem.from_name("shared", create_if_missing=True)
            >>> shared.listdir("/")
            []
            >>> modal.NetworkFileSystem.delete("shared")
        """
        return NetworkFileSystem._named(
            name, environment_name, create_if_missing=create_if_missing, client=client
        )

    @staticmethod
    @blocking_function
    @renamed("label", "name")
    async def lookup(
        name: str,
        namespace: Any = None,
        client: Client | None = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
    ) -> NetworkFileSystem:
        """Deprecated form of ``from_name(...).hydrate()``."""
        NetworkFileSystem._deprecated_lookup()
        made = NetworkFileSystem.from_name(name, None, environment_name, create_if_missing, client=client)
        await made._target()
        return made

    @staticmethod
    def from_id(object_id: str, client: Client | None = None) -> NetworkFileSystem:
        """Refer to a NetworkFileSystem by its id.

        Example:
            >>> with modal.NetworkFileSystem.ephemeral() as one:
            ...     modal.NetworkFileSystem.from_id(one.object_id).listdir("/")
            []
        """
        made = _by_id(NetworkFileSystem, object_id)
        made._client = client
        return made

    @staticmethod
    @blocking_function_context
    async def ephemeral(
        client: Client | None = None,
        environment_name: str | None = None,
        _heartbeat_sleep: float = 300.0,
    ) -> AsyncIterator[NetworkFileSystem]:
        """Create a NetworkFileSystem without a name, which is gone at the end of the block, or this program.

        Args:
            client: the connection, or the configured one.
            environment_name: the environment, or the configured one.

        Example:
            >>> with modal.NetworkFileSystem.ephemeral() as nfs:
            ...     nfs.listdir("/")
            []
        """
        body = NetworkFileSystem._ephemeral(client, environment_name)
        try:
            async for made in body:
                yield made
        finally:
            await body.aclose()  # type: ignore[attr-defined]

    @staticmethod
    @blocking_function
    @renamed("label", "name")
    async def delete(name: str, client: Client | None = None, environment_name: str | None = None) -> None:
        """Delete a named NetworkFileSystem with all that is in it.

        Raises:
            NotFoundError: there is none of that name.

        Example:
            >>> _ = modal.NetworkFileSystem.from_name("old", create_if_missing=True).hydrate()
            >>> modal.NetworkFileSystem.delete("old")
        """
        await NetworkFileSystem._delete(name, client, environment_name)

    if TYPE_CHECKING:

        @blocking
        async def hydrate(self, client: Client | None = None) -> NetworkFileSystem: ...

    # --- files, from outside of containers --------------------------------------------------------

    @blocking
    async def write_file(
        self, remote_path: str, fp: BinaryIO, progress_cb: Callable[..., Any] | None = None
    ) -> int:
        """Write a file: others see it as a whole, or as it was before. Directories above are made.

        Args:
            remote_path: where it goes; with a trailing slash, the directory for it, by its own name.
            fp: open for reading bytes.
            progress_cb: called with ``advance=`` bytes after each part.

        Returns:
            The number of bytes written.

        Raises:
            IsADirectoryError: a directory is at that path.
            InvalidError: the path leads out of the NetworkFileSystem, or names no file.

        Example:
            >>> import io
            >>> with modal.NetworkFileSystem.ephemeral() as nfs:
            ...     nfs.write_file("/hello.txt", io.BytesIO(b"hello"))
            5
        """
        path = str(remote_path)
        if path.endswith("/"):
            if not file_name(fp):
                raise exception.InvalidError(
                    f"{path!r} names a directory, and what is written has no name of its own: add one to it"
                )
            path += file_name(fp)
        told = _teller(progress_cb)
        return await self._ask(lambda client, nfs_id: client.write(nfs_id, path, fp, told))

    @blocking_gen
    async def read_file(self, path: str) -> AsyncIterator[bytes]:
        """Yield the bytes of a file, in parts.

        Raises:
            FileNotFoundError: there is no such file.
            IsADirectoryError: a directory is there.
            InvalidError: the path leads out of the NetworkFileSystem.

        Example:
            >>> import io
            >>> with modal.NetworkFileSystem.ephemeral() as nfs:
            ...     _ = nfs.write_file("/hello.txt", io.BytesIO(b"hello"))
            ...     b"".join(nfs.read_file("hello.txt"))
            b'hello'
        """
        answer = await self._ask(lambda client, nfs_id: client.read(nfs_id, path))
        try:
            while part := await self._in_thread(lambda: answer.read(_PART)):
                yield part
        finally:
            answer.close()

    @blocking_gen
    async def iterdir(self, path: str) -> AsyncIterator[FileEntry]:
        """Yield what is in a directory, by names.

        A file's path yields that file alone; a glob (``*`` within a directory, ``**`` across them) all that
        matches, by whole paths.

        Raises:
            FileNotFoundError: nothing is at that path.

        Example:
            >>> import io
            >>> with modal.NetworkFileSystem.ephemeral() as nfs:
            ...     _ = nfs.write_file("/a/b.txt", io.BytesIO(b""))
            ...     [x.path for x in nfs.iterdir("/a")], [x.path for x in nfs.iterdir("**/*.txt")]
            (['b.txt'], ['/a/b.txt'])
        """
        for entry in await self._list(path):
            yield entry

    @blocking
    async def listdir(self, path: str) -> list[FileEntry]:
        """Return what ``iterdir`` yields.

        Raises:
            FileNotFoundError: nothing is at that path.

        Example:
            >>> with modal.NetworkFileSystem.ephemeral() as nfs:
            ...     nfs.listdir("/")
            []
        """
        return await self._list(path)

    @blocking
    async def remove_file(self, path: str, recursive: bool = False) -> None:
        """Remove a file, or with ``recursive`` a directory and all below.

        Raises:
            FileNotFoundError: nothing is at that path.
            IsADirectoryError: it is a directory, and ``recursive`` is false.

        Example:
            >>> import io
            >>> with modal.NetworkFileSystem.ephemeral() as nfs:
            ...     _ = nfs.write_file("/a/b.txt", io.BytesIO(b""))
            ...     nfs.remove_file("/a", recursive=True)
        """
        await self._ask(lambda client, nfs_id: client.remove(nfs_id, path, recursive))

    @blocking
    async def add_local_file(
        self,
        local_path: str | Path,
        remote_path: str | PurePosixPath | None = None,
        progress_cb: Callable[..., Any] | None = None,
    ) -> int:
        """Write a local file, and return how many bytes it has.

        Args:
            local_path: the file.
            remote_path: where it goes; by default by its own name, at the top.
            progress_cb: called with ``advance=`` bytes after each part.

        Raises:
            FileNotFoundError: there is no such local file.

        Example:
            >>> _ = Path("words.txt").write_text("some words")
            >>> with modal.NetworkFileSystem.ephemeral() as nfs:
            ...     nfs.add_local_file("words.txt")
            10
        """
        local = Path(local_path)
        remote = "/" + local.name if remote_path is None else str(remote_path)
        if remote.endswith("/"):
            remote += local.name
        told = _teller(progress_cb)
        return await self._ask(lambda client, nfs_id: _write(client, nfs_id, local, remote, told))

    @blocking
    async def add_local_dir(
        self,
        local_path: str | Path,
        remote_path: str | PurePosixPath | None = None,
        progress_cb: Callable[..., Any] | None = None,
    ) -> None:
        """Write the files below a local directory. Links in it are followed to files, and to nothing else.

        Args:
            local_path: the directory.
            remote_path: where it goes; by default by its own name, at the top.
            progress_cb: called with ``advance=`` bytes after each part.

        Raises:
            NotADirectoryError: there is no such local directory.

        Example:
            >>> Path("assets").mkdir()
            >>> _ = Path("assets", "words.txt").write_text("some words")
            >>> with modal.NetworkFileSystem.ephemeral() as nfs:
            ...     nfs.add_local_dir("assets")
            ...     nfs.listdir("/assets")[0].size
            10
        """
        pairs = _pairs(Path(local_path), remote_path)
        told = _teller(progress_cb)
        await self._ask(lambda client, nfs_id: _write_all(client, nfs_id, pairs, told))

    # ---

    async def _list(self, path: str) -> list[FileEntry]:
        def ask(client: NfsClient, nfs_id: str) -> list[Listed]:
            return client.list(nfs_id, str(path))

        found = await self._ask(ask)
        return [FileEntry(x.path, FileEntryType(x.kind), x.mtime, x.size) for x in found]

    async def _ask(self, work: Callable[[NfsClient, str], T]) -> T:
        client, nfs_id = await self._target()
        files = NfsClient(client.server.address, client._token)
        return await self._in_thread(lambda: work(files, nfs_id))

    @staticmethod
    async def _in_thread(work: Callable[[], T]) -> T:
        from .client import _translate

        try:
            return await io(_on_a_thread(work))
        except Refused as error:
            builtin = _BUILTIN.get(error.kind)
            raise (builtin(str(error)) if builtin else _translate(error)) from None
        except OSError as error:
            raise exception.ConnectionError(f"the dispatcher did not answer: {error}") from None


_BUILTIN: dict[str, type[Exception]] = {
    "FileNotFoundError": FileNotFoundError,
    "IsADirectoryError": IsADirectoryError,
    "OSError": OSError,
    "PermissionError": PermissionError,
}


async def _on_a_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _teller(progress_cb: Callable[..., Any] | None) -> Callable[[int], None]:
    if progress_cb is None:
        return lambda size: None
    return lambda size: progress_cb(advance=size)


def _pairs(local: Path, remote_path: str | PurePosixPath | None) -> list[tuple[Path, str]]:
    if not local.is_dir():
        raise NotADirectoryError(f"{local} is no directory: use add_local_file for a file")
    remote = "/" + local.resolve().name if remote_path is None else str(remote_path)
    return [(x, posixpath.join(remote, x.relative_to(local).as_posix())) for x in _files(local)]


def _write(client: NfsClient, nfs_id: str, local: Path, remote: str, told: Callable[[int], None]) -> int:
    try:
        file = local.open("rb")
    except OSError as error:
        raise Refused(type(error).__name__, f"{local} cannot be read: {error.strerror}") from None
    with file:
        return client.write(nfs_id, remote, file, told)


def _write_all(
    client: NfsClient, nfs_id: str, pairs: list[tuple[Path, str]], told: Callable[[int], None]
) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        # The first failure ends it: what was not begun is left.
        futures = [threads.submit(_write, client, nfs_id, *pair, told) for pair in pairs]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def _files(top: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> NoReturn:
        raise exception.InvalidError(
            f"{error.filename!r} cannot be read ({error.strerror}), and nothing is sent: make it readable, or"
            " add the others without it"
        ) from None

    for folder, _, names in os.walk(top, onerror=refuse):
        for name in sorted(names):
            path = Path(folder, name)
            if not path.is_file():
                raise exception.InvalidError(
                    f"{str(path)!r} is no file, directory or link to one, and nothing is sent: remove it, or"
                    " add the others without it"
                )
            yield path


NetworkFileSystem.objects = ObjectManager(NetworkFileSystem)
