"""Local files that an Image asks for: found lazily, when it is published."""

from __future__ import annotations

import importlib.util
import operator
import os
import posixpath
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ._file_hashes import LocalFile, hashes_of, unreadable
from ._log import logger
from .exception import InvalidError, ModuleNotMountable
from .file_pattern_matcher import FilePatternMatcher, can_prune_directories
from .wire.spec import MountedFile

# Where Python sources of an Image lie in a container; on the import path of every Function.
SOURCE_ROOT = "/root"


@dataclass(frozen=True)
class LocalFiles:
    """A wish for local files, as one ``add_local_…`` step states it.

    Attributes:
        kind: ``file``, ``dir`` or ``python``.
        source: a local path, or the name of a module.
        remote: an absolute path in the container.
        ignore: says of a path relative to the directory whether to leave it out.
        condition: says of a file's local path whether it is taken.
        recursive: whether directories below are looked into.
    """

    kind: str
    source: str
    remote: str
    ignore: Callable[[Path], bool] | None = None
    condition: Callable[[str], bool] | None = None
    recursive: bool = True

    def found(self) -> list[LocalFile]:
        """Return the files, each with its path in the container.

        Raises:
            FileNotFoundError: when the local path does not exist.
            ModuleNotMountable: when there is no such module here.
        """
        found = self._all()
        return found if self.condition is None else [x for x in found if self.condition(x.path)]

    def _all(self) -> list[LocalFile]:
        if self.kind == "python":
            return self._python_source()
        path = Path(self.source).expanduser()
        if self.kind == "file":
            if not path.is_file():
                raise FileNotFoundError(f"add_local_file: there is no file {path}")
            return [LocalFile(self.remote, str(path), path_stat(path))]
        if not path.is_dir():
            raise FileNotFoundError(f"add_local_dir: there is no directory {path}")
        return walk(path, self.remote, self.ignore, recursive=self.recursive)

    def _python_source(self) -> list[LocalFile]:
        try:
            spec = importlib.util.find_spec(self.source)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise ModuleNotMountable(
                f"add_local_python_source: no module {self.source!r} can be imported here"
            )
        folder = posixpath.join(self.remote, *self.source.split("."))
        if spec.submodule_search_locations:
            places = map(Path, spec.submodule_search_locations)
            return [file for place in places for file in walk(place, folder, self.ignore, hidden=False)]
        if spec.origin and os.path.isfile(spec.origin):
            remote = folder + posixpath.splitext(spec.origin)[1]
            return [LocalFile(remote, spec.origin, path_stat(spec.origin))]
        raise ModuleNotMountable(f"add_local_python_source: {self.source!r} has no source file")


def walk(
    root: Path,
    remote: str,
    ignore: Callable[[Path], bool] | None,
    hidden: bool = True,
    recursive: bool = True,
    lenient: bool = False,
) -> list[LocalFile]:
    """Return the files under a directory, in the order of the directories' own lists.

    Sockets, pipes, devices and links that lead to no file have no content to send: they are left out with a
    warning, as a build of Docker's leaves out sockets.

    Args:
        root: the local directory.
        remote: where it goes.
        ignore: says of a path relative to ``root`` whether to leave the file out.
        hidden: whether dot-prefixed names and compiled Python are kept.
        recursive: whether directories below are looked into.
        lenient: whether what may not be looked into is left out.

    Raises:
        InvalidError: a directory cannot be read, and is not left out.
    """
    if type(ignore) is FilePatternMatcher and ignore._is_empty():
        ignore = None
    prunes = ignore is not None and can_prune_directories(ignore)
    before = posixpath.join(remote, "x")[:-1]
    files: list[LocalFile] = []
    folders = [(os.fspath(root), "")]
    # Thousands of files are usual: what pathlib, sorting or a call would do for each is most of the time.
    while folders:
        folder, relative = folders.pop()
        entries: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folder) as scanned:
                entries = list(scanned)
        except OSError as error:
            if not lenient and not (relative and ignore is not None and ignore(Path(relative))):
                raise unreadable(folder, error) from None
        for entry in entries:
            name = entry.name
            if not hidden and (name.startswith(".") or name.endswith(".pyc") or name == "__pycache__"):
                continue
            place = relative + name
            if entry.is_dir(follow_symlinks=False):
                if recursive and not (prunes and ignore is not None and ignore(Path(place))):
                    folders.append((entry.path, place + "/"))
                continue
            if ignore is not None and ignore(Path(place)):
                continue
            try:
                if entry.is_file():
                    files.append(LocalFile(before + place, entry.path, entry.stat()))
                elif not lenient:
                    what = "a link that leads to no file" if entry.is_symlink() else "no file"
                    logger().warning("%s is left out: it is %s (ignore= keeps this quiet)", entry.path, what)
            except FileNotFoundError:
                # Gone since its directory was read.
                continue
            except OSError as error:
                if not lenient:
                    raise unreadable(entry.path, error) from None
    return files


_place = operator.attrgetter("place")


def mounted(wishes: Iterable[LocalFiles]) -> tuple[tuple[MountedFile, ...], dict[str, os.PathLike[str]]]:
    """Hash the files of an Image; a later file wins over an earlier one at the same place.

    Returns:
        The files in the order of their paths, and where each blob's content is on this machine.

    Raises:
        InvalidError: a file cannot be read, or has a name that is no UTF-8.
    """
    files: dict[str, MountedFile] = {}
    contents: dict[str, os.PathLike[str]] = {}
    for wish in wishes:
        found = sorted(wish.found(), key=_place)
        for file, sha in zip(found, hashes_of(wish.source, found), strict=True):
            files[file.place] = MountedFile(check_text(file).place, sha, file_mode(file.said))
            contents[sha] = Path(file.path)
    return tuple(files[place] for place in sorted(files)), contents


def check_text(file: LocalFile) -> LocalFile:
    """Return a file whose name can travel. Raises InvalidError for others."""
    try:
        file.place.encode()
    except UnicodeEncodeError:
        raise InvalidError(
            f"the name of {os.fsencode(file.path)!r} is no UTF-8: rename the file, or leave it out with"
            " ignore="
        ) from None
    return file


def path_stat(path: str | os.PathLike[str]) -> os.stat_result:
    """Return what ``stat`` says of a file. Raises InvalidError."""
    try:
        return os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None


def file_mode(said: os.stat_result) -> int:
    """Return the mode that a file gets in a container: only whether it is a program counts."""
    return 0o755 if said.st_mode & stat.S_IXUSR else 0o644


def remote_file_path(local_path: str, remote_path: str) -> str:
    """Return where a file goes: a trailing slash keeps its local name.

    Raises:
        InvalidError: when the path is not absolute.
    """
    check_remote_path("add_local_file", remote_path)
    if remote_path.endswith("/"):
        return posixpath.join(remote_path, os.path.basename(local_path))
    return posixpath.normpath(remote_path)


def check_remote_path(where: str, remote_path: object) -> None:
    """Refuse a path that is not absolute.

    Raises:
        InvalidError: naming the path.
    """
    if not isinstance(remote_path, str) or not remote_path.startswith("/"):
        raise InvalidError(f"{where}: the remote path {remote_path!r} must be absolute, as '/assets'")
