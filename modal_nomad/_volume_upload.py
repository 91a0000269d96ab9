"""``Volume.batch_upload``: files are gathered in the block and sent, and committed at once, at its end."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from . import exception
from ._bridge import run_async, run_blocking
from .wire.volumes.chunks import ChunkUploader, take_file
from .wire.volumes.client import NEW, OVER, VolumeClient
from .wire.volumes.entries import DIRECTORY, FILE, SYMLINK, Entry, clean_path

_SPOOLED = 8 << 20


class _Upload(NamedTuple):
    source: Path | BinaryIO | None
    remote: str
    mode: int | None
    kind: int = FILE
    target: bytes = b""


class VolumeUpload:
    """Gathers files for a Volume; at the end of its block they are sent, and all of them are there at once.

    ``Volume.batch_upload`` makes it. When the block ends with an exception nothing is changed.

    Args:
        send: takes the function that does the work, to be called on a thread.
        force: whether files that are there are replaced.
    """

    def __init__(
        self, send: Callable[[Callable[[VolumeClient, str], None]], Awaitable[None]], force: bool
    ) -> None:
        self._send = send
        self._force = force
        self._uploads: list[_Upload] = []

    def __enter__(self) -> VolumeUpload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            run_blocking(self._finish())

    async def __aenter__(self) -> VolumeUpload:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if kind is None:
            await run_async(self._finish())

    def put_file(
        self, local_file: str | os.PathLike[str] | BinaryIO, remote_path: str, mode: int | None = None
    ) -> None:
        """Have a file uploaded.

        Args:
            local_file: its path, or an open binary file, which is read at the end of the block.
            remote_path: where it goes in the Volume.
            mode: its permission bits; by default those of the local file, ``0o644`` for an open one.

        Raises:
            ValueError: ``remote_path`` ends in ``/``, or is no path in a Volume.
            FileNotFoundError: there is no such local file.
        """
        remote = os.fspath(remote_path)
        if remote.endswith("/"):
            raise ValueError(
                f"remote_path {remote!r} ends in '/', and names no file: add the file's name to it"
            )
        clean = clean_path(remote)
        if not clean:
            raise ValueError("remote_path is empty: name the file in the Volume")
        if isinstance(local_file, (str, os.PathLike)):
            path = Path(local_file)
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path} to upload")
            self._uploads.append(_Upload(path, clean, mode))
        elif callable(getattr(local_file, "read", None)):
            self._uploads.append(_Upload(local_file, clean, mode))
        else:
            raise ValueError(f"local_file is {local_file!r}; give a path or an open binary file")

    def put_directory(
        self, local_path: str | os.PathLike[str], remote_path: str, recursive: bool = True
    ) -> None:
        """Have the files below a directory uploaded.

        A symbolic link that stays inside the directory remains one; of one that leads out, the file's
        content is taken.

        Args:
            local_path: the directory.
            remote_path: where its contents go in the Volume.
            recursive: whether its subdirectories go too.

        Raises:
            NotADirectoryError: ``local_path`` is none.
            InvalidError: something in it cannot be read, is a socket, a pipe or a device, or is a link to a
                directory outside, or to nothing.
        """
        top = Path(local_path)
        if not top.is_dir():
            raise NotADirectoryError(f"{top} is no directory: use put_file for a file")
        remote = clean_path(os.fspath(remote_path))
        if remote:
            self._uploads.append(_Upload(None, remote, stat.S_IMODE(top.stat().st_mode), DIRECTORY))
        self._uploads.extend(_walk(top, remote, recursive))

    # --- at the end -------------------------------------------------------------------------------

    async def _finish(self) -> None:
        if self._uploads:
            await self._send(self._upload)

    def _upload(self, client: VolumeClient, volume_id: str) -> None:
        uploader = ChunkUploader(client.missing, client.put_chunk)
        try:
            entries = [self._entry(upload, uploader) for upload in self._uploads]
            uploader.flush()
        finally:
            uploader.close()
        client.commit(volume_id, entries, OVER if self._force else NEW)

    @staticmethod
    def _entry(upload: _Upload, uploader: ChunkUploader) -> Entry:
        now = time.time_ns()
        if upload.kind != FILE:
            size = len(upload.target)
            return Entry(upload.remote, upload.kind, size, now, upload.mode or 0o755, (), upload.target)
        if isinstance(upload.source, Path):
            with _opened(upload.source) as file:
                found = os.fstat(file.fileno())
                size, chunks, data = take_file(file.fileno(), found.st_size, uploader)
                mode = stat.S_IMODE(found.st_mode)
        else:
            assert upload.source is not None
            with tempfile.TemporaryFile() as file:
                shutil.copyfileobj(upload.source, file)
                file.flush()
                size, chunks, data = take_file(file.fileno(), file.tell(), uploader)
                mode = 0o644
        return Entry(
            upload.remote, FILE, size, now, mode if upload.mode is None else upload.mode, chunks, data
        )


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str | os.PathLike[str], error: OSError) -> exception.InvalidError:
    return exception.InvalidError(
        f"{os.fspath(path)!r} cannot be read ({error.strerror}), and nothing is uploaded: make it readable,"
        " or upload the others without it, with put_file and put_directory"
    )


def _walk(top: Path, remote: str, recursive: bool) -> Iterator[_Upload]:
    inside = top.resolve()

    def refuse(error: OSError) -> NoReturn:
        raise _unreadable(error.filename, error) from None

    for folder, folders, files in os.walk(top, onerror=refuse):
        below = os.path.relpath(folder, top)
        for name in sorted(folders) + sorted(files):
            path = Path(folder, name)
            target = clean_path(posixpath.join(remote, *Path(below).parts, name))
            if path.is_symlink():
                yield _link(path, inside, target)
            elif path.is_dir():
                if recursive:
                    yield _Upload(None, target, stat.S_IMODE(path.stat().st_mode), DIRECTORY)
            elif path.is_file():
                yield _Upload(path, target, None)
            else:
                raise exception.InvalidError(f"{path} is no file, directory or link: leave it out")
        # Links to directories are links here; they are not walked into.
        folders[:] = [x for x in sorted(folders) if recursive and not os.path.islink(os.path.join(folder, x))]


def _link(path: Path, inside: Path, target: str) -> _Upload:
    text = os.readlink(path)
    there = (path.parent / text).resolve()
    if not os.path.isabs(text) and there.is_relative_to(inside):
        return _Upload(None, target, 0o777, SYMLINK, os.fsencode(text))
    if there.is_file():
        return _Upload(path, target, None)
    raise exception.InvalidError(
        f"{path} is a link to {text}, which is {'outside' if there.exists() else 'not there'}:"
        " remove the link, or put_directory what it leads to"
    )
