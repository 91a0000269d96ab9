"""A directory that nothing leads out of: each step of a path is opened by itself, and no link is followed.

Containers write into such a directory at any moment, links to anywhere included. So no path is ever handed
to the kernel as a whole. All of it blocks: for threads.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from modal_nomad.exception import InvalidError
from modal_nomad.wire.nfs import DIRECTORY, FIFO, FILE, SOCKET, SYMLINK, is_glob

logger = logging.getLogger("modal_nomad.dispatcher")

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = _OPEN | os.O_DIRECTORY
_MAX_NAME = 255
_UPLOADS, _TRASH = ".uploads", ".trash"
_STALE_SECONDS = 86400.0
_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFSOCK: SOCKET,
}


class Found(NamedTuple):
    """An entry of a listing: its path as asked for, what it is, its size in bytes, its time in seconds."""

    path: str
    kind: int
    size: int
    mtime: int


class Shelf:
    """The directory that has one directory for each NetworkFileSystem, named by its id.

    Args:
        root: an absolute path; it is made where it is not.
        shared: whether users other than this process's write into it, as containers on other nodes do.
    """

    def __init__(self, root: Path, shared: bool) -> None:
        self._root = root
        self._folder_mode = 0o777 if shared else 0o700
        self._file_mode = 0o666 if shared else 0o644

    def prepare(self) -> None:
        """Make what has to be there, and remove what a killed dispatcher left half done. Raises OSError."""
        self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in (_UPLOADS, _TRASH):
            # Nobody else looks in here: what is in it is nobody's file yet, or no longer.
            (self._root / name).mkdir(mode=0o700, exist_ok=True)
        limit = time.time() - _STALE_SECONDS
        for entry in os.scandir(self._root / _UPLOADS):
            # Another dispatcher's upload may be under way.
            if entry.stat(follow_symlinks=False).st_mtime < limit:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
        for entry in os.scandir(self._root / _TRASH):
            shutil.rmtree(entry.path, ignore_errors=True)

    def create(self, object_id: str) -> None:
        """Make the directory of a NetworkFileSystem, where it is not. Raises OSError."""
        path = self._root / object_id
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            # In a second step: the process's umask is not asked.
            path.chmod(self._folder_mode)

    def drop(self, object_id: str) -> None:
        """Remove the directory of a NetworkFileSystem with all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            self._discard(lambda trash: os.rename(self._root / object_id, trash))

    # --- in one NetworkFileSystem -----------------------------------------------------------------

    def list(self, object_id: str, path: str) -> list[Found]:
        """Return what a directory holds by names, a file by its own, what a glob matches by whole paths.

        Raises:
            FileNotFoundError: nothing is there.
            InvalidError: the path leads out.
        """
        words = parts(path)
        with self._top(object_id) as top:
            if is_glob(path):
                return sorted(_matches(top, words))
            if not words:
                return sorted(_scan(top))
            with _parent(top, words, path) as parent:
                there = _look(parent, words[-1], path)
                if there.kind != DIRECTORY:
                    return [there]
                with _opened(os.open(words[-1], _DIRECTORY, dir_fd=parent)) as folder:
                    return sorted(_scan(folder))

    def open(self, object_id: str, path: str) -> int:
        """Return a descriptor of a file, to read from.

        Raises:
            FileNotFoundError: nothing is there.
            IsADirectoryError: a directory is there.
            InvalidError: the path leads out, or to something that is no file.
        """
        words = parts(path)
        if not words:
            raise IsADirectoryError(path)
        with self._top(object_id) as top, _parent(top, words, path) as parent:
            try:
                # A FIFO without a writer would keep us waiting.
                found = os.open(words[-1], _OPEN | os.O_NONBLOCK, dir_fd=parent)
            except OSError as error:
                _explain(error, path)
        kind = stat.S_IFMT(os.fstat(found).st_mode)
        if kind != stat.S_IFREG:
            os.close(found)
            if kind == stat.S_IFDIR:
                raise IsADirectoryError(path)
            raise InvalidError(f"{path!r} is no file: only files can be read")
        return found

    def upload(self) -> tuple[int, str]:
        """Return a descriptor to write a new file to, and the name to ``place`` it by. Raises OSError."""
        name = secrets.token_hex(16)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._root / _UPLOADS / name, flags, 0o600), name

    def place(self, upload: str, object_id: str, path: str) -> None:
        """Let an uploaded file be the one at a path: at once, in place of what is there.

        Raises:
            IsADirectoryError: a directory is there.
            InvalidError: the path leads out, or a file stands where a directory is needed.
        """
        words = parts(path)
        if not words:
            raise IsADirectoryError(path)
        source = self._root / _UPLOADS / upload
        source.chmod(self._file_mode)
        with self._top(object_id) as top, _parent(top, words, path, self._folder_mode) as parent:
            try:
                os.rename(source, words[-1], dst_dir_fd=parent)
            except OSError as error:
                _explain(error, path)

    def abandon(self, upload: str) -> None:
        """Remove an uploaded file that was not placed."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._root / _UPLOADS / upload)

    def remove(self, object_id: str, path: str, recursive: bool) -> None:
        """Remove a file, or a directory with all that is in it.

        Raises:
            FileNotFoundError: nothing is there.
            IsADirectoryError: a directory is there, and ``recursive`` is false.
            InvalidError: the path leads out, or is the top.
        """
        words = parts(path)
        if not words:
            raise InvalidError("the top of a NetworkFileSystem stays: name what in it is to be removed")
        with self._top(object_id) as top, _parent(top, words, path) as parent:
            if _look(parent, words[-1], path).kind == DIRECTORY:
                if not recursive:
                    raise IsADirectoryError(path)
                self._discard(lambda trash: os.rename(words[-1], trash, src_dir_fd=parent))
                return
            try:
                os.unlink(words[-1], dir_fd=parent)
            except OSError as error:
                _explain(error, path)

    def _discard(self, move: Callable[[Path], None]) -> None:
        """Move a tree out of sight at once, then remove it: who reads it never sees half of it."""
        trash = self._root / _TRASH / secrets.token_hex(16)
        move(trash)
        shutil.rmtree(trash, ignore_errors=True)
        if trash.exists():
            logger.warning("%s cannot be removed: its files belong to another user; remove it as root", trash)

    @contextlib.contextmanager
    def _top(self, object_id: str) -> Iterator[int]:
        self.create(object_id)
        with _opened(os.open(self._root / object_id, _DIRECTORY)) as top:
            yield top


def parts(path: str) -> list[str]:
    """Return the names that a path is made of; a leading slash is the top. Raises InvalidError."""
    words = [word for word in path.split("/") if word not in ("", ".")]
    if ".." in words or "\0" in path:
        raise InvalidError(f"{path!r} is no path in a NetworkFileSystem: leave out '..'")
    if not all(map(_can_be, words)):
        raise InvalidError(
            f"{path[:80]!r} is no path in a NetworkFileSystem: a name has at most {_MAX_NAME} bytes, and no"
            " lone surrogates"
        )
    return words


def _can_be(name: str) -> bool:
    try:
        return len(name.encode("utf-8", "surrogateescape")) <= _MAX_NAME
    except UnicodeEncodeError:
        return False


@contextlib.contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _parent(top: int, words: list[str], path: str, make: int = 0) -> Iterator[int]:
    """Open the directory that the last of the names is in; ``make`` is the mode of those that are missing."""
    current = os.dup(top)
    try:
        for word in words[:-1]:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(word, dir_fd=current)
                    os.chmod(word, make, dir_fd=current)
            try:
                following = os.open(word, _DIRECTORY, dir_fd=current)
            except OSError as error:
                _explain(error, path)
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


def _explain(error: OSError, path: str) -> NoReturn:
    if error.errno == errno.ELOOP:
        raise InvalidError(
            f"{path!r} is, or goes through, a symbolic link, which may lead out: name what it leads to"
        ) from None
    if error.errno == errno.ENOTDIR:
        raise InvalidError(f"{path!r} goes through a file or a link, as if it were a directory") from None
    if error.errno == errno.ENXIO:
        raise InvalidError(f"{path!r} is no file: only files can be read") from None
    raise error


def _look(parent: int, name: str, path: str) -> Found:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        _explain(error, path)
    return _found(name, found)


def _found(path: str, found: os.stat_result) -> Found:
    return Found(path, _KINDS.get(stat.S_IFMT(found.st_mode), 0), found.st_size, int(found.st_mtime))


def _scan(folder: int, below: str = "") -> Iterator[Found]:
    with os.scandir(folder) as entries:
        for entry in entries:
            # What is removed meanwhile is not there.
            with contextlib.suppress(FileNotFoundError):
                yield _found(below + entry.name, entry.stat(follow_symlinks=False))


def _matches(top: int, words: list[str]) -> Iterator[Found]:
    """Yield what a glob matches, by whole paths; ``**`` is any number of directories, but no links."""
    patterns = [None if word == "**" else re.compile(fnmatch.translate(word)) for word in words]
    waiting: list[tuple[str, frozenset[int]]] = [("/", _reached(frozenset({0}), patterns))]
    while waiting:
        below, states = waiting.pop()
        for found in _entries(top, below):
            name = found.path[len(below) :]
            stepped = _step(states, name, patterns)
            following = _reached(stepped, patterns)
            # At its end ``**`` is what lies in a directory, and not the directory.
            if len(patterns) in stepped or (patterns[-1] is None and len(patterns) - 1 in states):
                yield found
            if found.kind == DIRECTORY and following - {len(patterns)}:
                waiting.append((found.path + "/", following))


def _reached(states: frozenset[int], patterns: list[re.Pattern[str] | None]) -> frozenset[int]:
    """Add the places that no directory at all leads to: behind each ``**``."""
    grown = set(states)
    for state in sorted(states):
        while state < len(patterns) and patterns[state] is None:
            state += 1
            grown.add(state)
    return frozenset(grown)


def _step(states: frozenset[int], name: str, patterns: list[re.Pattern[str] | None]) -> frozenset[int]:
    following = set()
    for state in states:
        if state == len(patterns):
            continue
        pattern = patterns[state]
        if pattern is None:
            following.add(state)
        elif pattern.match(name):
            following.add(state + 1)
    return frozenset(following)


def _entries(top: int, below: str) -> list[Found]:
    words = [*parts(below), ""]
    # A directory may have become something else since it was listed.
    with contextlib.suppress(OSError, InvalidError), _parent(top, words, below) as folder:
        return list(_scan(folder, below))
    return []
