"""Mounts: local files for containers, by the older way; ``Image.add_local_...`` is the newer one."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from . import exception
from ._bridge import blocking, io
from ._image_files import SOURCE_ROOT, LocalFiles, check_remote_path, mounted
from ._options import warn_deprecated
from .file_pattern_matcher import as_matcher
from .object import Object, _default_client
from .wire.spec import MountedFile, canonical_json

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Mount"]

T = TypeVar("T", bound="Mount")


class Mount(Object):
    """Local files that containers of a Function have. Deprecated: use ``Image.add_local_file`` and its like.

    A Mount never changes: each step returns a new one. Its files are read when the App is run or deployed.

    Example:
        >>> _ = Path("words.txt").write_text("some words")
        >>> words = modal.Mount.from_local_file("words.txt", "/data/words.txt")  # doctest: +SKIP
        >>> app = modal.App("example", mounts=[words])  # doctest: +SKIP
    """

    kind = "mount"
    label = "Mount"
    _wishes: tuple[LocalFiles, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise exception.InvalidError(
            "Mount has no constructor; use Image.add_local_file or Image.add_local_dir"
        )

    def __repr__(self) -> str:
        return f"Mount({', '.join(wish.source for wish in self._wishes)})"

    def __reduce__(self) -> Any:
        raise exception.InvalidError(
            "a Mount cannot be passed on: containers have its files at their paths, read them there"
        )

    @staticmethod
    def from_local_dir(
        local_path: str | Path,
        *,
        remote_path: str | PurePosixPath | None = None,
        condition: Callable[[str], bool] | None = None,
        recursive: bool = True,
    ) -> Mount:
        """Deprecated: use ``Image.add_local_dir``.

        Args:
            local_path: the directory.
            remote_path: where containers see it; by default by its own name, in the root directory.
            condition: says of each file's local path whether it is taken.
            recursive: whether what lies in directories below is taken, too.

        Raises:
            InvalidError: for a path or a condition that cannot be.
        """
        warn_deprecated("Mount.from_local_dir is deprecated: use Image.add_local_dir")
        return Mount._of(_directory(local_path, remote_path, condition, recursive))

    @staticmethod
    def from_local_file(local_path: str | Path, remote_path: str | PurePosixPath | None = None) -> Mount:
        """Deprecated: use ``Image.add_local_file``.

        Args:
            local_path: the file.
            remote_path: where containers see it; by default by its own name, in the root directory.

        Raises:
            InvalidError: for a path that cannot be.
        """
        warn_deprecated("Mount.from_local_file is deprecated: use Image.add_local_file")
        return Mount._of(_file(local_path, remote_path))

    @staticmethod
    def from_local_python_packages(
        *module_names: str,
        remote_dir: str | PurePosixPath = SOURCE_ROOT,
        condition: Callable[[str], bool] | None = None,
        ignore: Sequence[str] | Callable[[Path], bool] | None = None,
    ) -> Mount:
        """Deprecated: use ``Image.add_local_python_source``.

        Args:
            *module_names: names to import.
            remote_dir: a directory that containers import from.
            condition: says of each file's local path whether it is taken.
            ignore: what to leave out: patterns as in a ``.dockerignore``, or a callable that gets each path
                relative to the package. Dot-prefixed and compiled files always stay out.

        Raises:
            InvalidError: for a name that is no string, or ``condition`` and ``ignore`` together.
        """
        warn_deprecated("Mount.from_local_python_packages is deprecated: use Image.add_local_python_source")
        if condition is not None and ignore is not None:
            raise exception.InvalidError("a Mount takes condition= or ignore=, not both: keep ignore=")
        _check_condition(condition)
        remote = str(remote_dir)
        check_remote_path("Mount", remote)
        for name in module_names:
            if not isinstance(name, str):
                raise exception.InvalidError(f"a Mount got the module {name!r}; give names as strings")
        matcher = None if ignore is None else as_matcher(ignore)
        return Mount._of(*(LocalFiles("python", x, remote, matcher, condition) for x in module_names))

    def add_local_dir(
        self: T,
        local_path: str | Path,
        *,
        remote_path: str | PurePosixPath | None = None,
        condition: Callable[[str], bool] | None = None,
        recursive: bool = True,
    ) -> T:
        """Deprecated: use ``Image.add_local_dir``. Returns a Mount that has the directory as well."""
        warn_deprecated("Mount.add_local_dir is deprecated: use Image.add_local_dir")
        return self._of(*self._wishes, _directory(local_path, remote_path, condition, recursive))

    def add_local_file(self: T, local_path: str | Path, remote_path: str | PurePosixPath | None = None) -> T:
        """Deprecated: use ``Image.add_local_file``. Returns a Mount that has the file as well."""
        warn_deprecated("Mount.add_local_file is deprecated: use Image.add_local_file")
        return self._of(*self._wishes, _file(local_path, remote_path))

    @blocking
    async def hydrate(self, client: Client | None = None) -> Mount:
        """Deprecated: an App's Mounts are sent when it is run or deployed.

        Sends what the server lacks of the files, and gives the Mount its id, which is made of their content.

        Raises:
            FileNotFoundError: a local path does not exist.
            ModuleNotMountable: there is no such module here.
        """
        from ._uploads import upload_missing

        client = client or await _default_client()
        files, contents = mounted(self._wishes)
        manifest = canonical_json([[x.path, x.blob, x.mode] for x in files])
        await io(upload_missing(client, dict(contents)))
        self._client, self._object_id = client, f"mo-{hashlib.sha256(manifest).hexdigest()}"
        return self

    # --- below: for Images, Functions and Apps

    @classmethod
    def _of(cls: type[T], *wishes: LocalFiles) -> T:
        made = cls._new()
        made._wishes = wishes
        return made

    def _below(self, folder: str) -> tuple[LocalFiles, ...]:
        """Return the wishes with their paths taken as relative to a directory of the container."""
        return tuple(
            replace(wish, remote=posixpath.join(folder, wish.remote.lstrip("/"))) for wish in self._wishes
        )


def check_mounts(where: str, value: Any) -> tuple[Mount, ...]:
    """Return what was given as ``mounts=``, with a warning where there is any. Raises InvalidError."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(x, Mount) for x in value):
        raise exception.InvalidError(f"mounts of {where} is {value!r}; give a list of modal.Mount")
    if value:
        warn_deprecated(f"'mounts' of {where} is deprecated: add the files to the image, Image.add_local_dir")
    return tuple(value)


def with_mounts(
    files: tuple[MountedFile, ...], mounts: Sequence[Mount]
) -> tuple[tuple[MountedFile, ...], dict[str, os.PathLike[str]]]:
    """Return an image's files with those of Mounts, which win, and where the contents of the latter are."""
    added, contents = mounted(tuple(wish for mount in mounts for wish in mount._wishes))
    merged = {file.path: file for file in (*files, *added)}
    return tuple(merged[path] for path in sorted(merged)), contents


def _directory(
    local_path: str | Path,
    remote_path: str | PurePosixPath | None,
    condition: Callable[[str], bool] | None,
    recursive: bool,
) -> LocalFiles:
    _check_condition(condition)
    if not isinstance(recursive, bool):
        raise exception.InvalidError(f"recursive is {recursive!r}; give True or False")
    return LocalFiles("dir", str(local_path), _remote(local_path, remote_path), None, condition, recursive)


def _file(local_path: str | Path, remote_path: str | PurePosixPath | None) -> LocalFiles:
    return LocalFiles("file", str(local_path), _remote(local_path, remote_path))


def _remote(local_path: str | Path, remote_path: str | PurePosixPath | None) -> str:
    if not isinstance(local_path, (str, Path)):
        raise exception.InvalidError(f"a Mount got the local path {local_path!r}; give a string or a Path")
    # A relative path is one below the root, where older programs have always had it.
    path = posixpath.normpath("/" + str(Path(local_path).name if remote_path is None else remote_path))
    return "/" + path.lstrip("/")


def _check_condition(condition: Any) -> None:
    if condition is not None and not callable(condition):
        raise exception.InvalidError(f"condition is {condition!r}; give a function of a path")
