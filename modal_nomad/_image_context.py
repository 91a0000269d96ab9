"""The local files that build steps copy from: found and hashed when the Image is published."""

from __future__ import annotations

import fnmatch
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._file_hashes import LocalFile
from ._image_files import LocalFiles, path_stat, walk
from ._local_manifest import LocalManifest
from .exception import InvalidError
from .file_pattern_matcher import FilePatternMatcher, as_matcher
from .wire.dockerfile import copied, instructions

if TYPE_CHECKING:
    from .mount import Mount

Ignore = Callable[[Path], bool]


class _AutoDockerignore:
    """Stands for the ``.dockerignore`` file that is there when the App is published."""

    def __repr__(self) -> str:
        return "AUTO_DOCKERIGNORE"


AUTO_DOCKERIGNORE: Any = _AutoDockerignore()
"""What ``ignore=`` is by default: ``<Dockerfile>.dockerignore``, else the context's ``.dockerignore``."""


@dataclass(frozen=True)
class Context:
    """What a step's ``COPY`` and ``ADD`` may take.

    Attributes:
        dockerfile: a local Dockerfile whose lines are the step's; empty for none.
        files: place in the context and local path of single files.
        directory: the local directory of the context; None is the working directory.
        mounted: what a Mount brings instead of a directory; None for no Mount.
        ignore: what of the directory stays out.
    """

    dockerfile: str = ""
    files: tuple[tuple[str, str], ...] = ()
    directory: str | None = None
    mounted: tuple[LocalFiles, ...] | None = None
    ignore: Ignore = AUTO_DOCKERIGNORE

    def definition(self) -> Any:
        """Return what makes two contexts the same one, wherever the files lie."""
        return [os.path.basename(self.dockerfile), [place for place, _ in self.files]]

    def lines(self, step: str) -> list[str]:
        """Return the lines of the Dockerfile.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not self.dockerfile:
            return []
        try:
            return Path(self.dockerfile).expanduser().read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise FileNotFoundError(f"{step}: there is no file {self.dockerfile}") from None

    def gather(self, step: str, lines: Sequence[str]) -> LocalManifest | None:
        """Look at what the lines copy; None where that is nothing.

        Raises:
            FileNotFoundError: naming what is copied and is not there.
        """
        found = list(self._found(step, copied(instructions(lines))))
        return LocalManifest(self.directory or ".", found) if found else None

    def _found(self, step: str, sources: Sequence[str]) -> Iterator[LocalFile]:
        given = {posixpath.normpath(place.lstrip("/")): path for place, path in self.files}
        if self.mounted is not None:
            for wish in self.mounted:
                for file in wish.found():
                    yield file._replace(place=posixpath.normpath(file.place.lstrip("/")))
        else:
            directory = Path(self.directory or ".").expanduser()
            ignore = self._matcher(directory)
            for source in sources:
                yield from _sources(step, source, directory, ignore, set(given))
        for place, local in given.items():
            path = Path(local).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"{step}: there is no file {path}")
            yield LocalFile(place, str(path), path_stat(path))

    def _matcher(self, directory: Path) -> Ignore:
        if self.ignore is not AUTO_DOCKERIGNORE:
            return self.ignore
        beside = Path(f"{self.dockerfile}.dockerignore").expanduser() if self.dockerfile else None
        for path in (beside, directory / ".dockerignore"):
            if path is not None and path.is_file():
                return FilePatternMatcher.from_file(path)
        return FilePatternMatcher()


def _sources(step: str, source: str, directory: Path, ignore: Ignore, given: set[str]) -> Iterator[LocalFile]:
    # A variable may stand for anything.
    name = "." if "$" in source else posixpath.normpath(source.lstrip("/") or ".")
    if name.startswith(".."):
        raise InvalidError(f"{step}: {source!r} is outside of the build context {directory.absolute()}")
    path = directory / name
    if path.is_file():
        if not ignore(Path(name)):
            yield LocalFile(name, str(path), path_stat(path))
        return
    if path.is_dir():
        matched = walk(directory, "", lambda p: ignore(p) or not _below(p.as_posix(), name))
    elif any(char in name for char in "*?["):
        matched = walk(directory, "", lambda p: ignore(p) or not _fits(p.as_posix(), name))
    elif name in given or any(place.startswith(name + "/") for place in given):
        return
    else:
        raise FileNotFoundError(f"{step} copies {source!r}, which is not in {directory.absolute()}")
    yield from matched


def _below(path: str, folder: str) -> bool:
    return folder == "." or path.startswith(folder + "/")


def _fits(path: str, pattern: str) -> bool:
    wanted, parts = pattern.split("/"), path.split("/")
    return len(parts) >= len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def context(
    name: str,
    *,
    dockerfile: str | Path | None = None,
    context_files: Any = None,
    context_mount: Mount | None = None,
    context_dir: str | Path | None = None,
    ignore: Any = AUTO_DOCKERIGNORE,
) -> Context:
    """Check the parameters of a step that copies local files.

    Raises:
        InvalidError: naming the parameter.
    """
    if dockerfile is not None and (not isinstance(dockerfile, (str, Path)) or not str(dockerfile)):
        raise InvalidError(f"path of {name} is {dockerfile!r}; give the path of a Dockerfile")
    files = {} if context_files is None else context_files
    if not isinstance(files, Mapping) or not all(isinstance(x, str) for pair in files.items() for x in pair):
        raise InvalidError(f"context_files of {name} is {files!r}; give a dict of paths")
    mounted = None
    if context_mount is not None:
        from ._options import warn_deprecated
        from .mount import Mount

        if not isinstance(context_mount, Mount):
            raise InvalidError(f"context_mount of {name} is {context_mount!r}; give a modal.Mount")
        if ignore is not AUTO_DOCKERIGNORE:
            raise InvalidError(f"{name} takes context_mount= or ignore=, not both: keep ignore=")
        warn_deprecated(f"'context_mount' of {name} is deprecated: local files are found by themselves")
        mounted = context_mount._wishes
    if context_dir is not None and not isinstance(context_dir, (str, Path)):
        raise InvalidError(f"context_dir of {name} is {context_dir!r}; give the path of a directory")
    return Context(
        dockerfile=str(dockerfile or ""),
        files=tuple(sorted(files.items())),
        directory=None if context_dir is None else str(context_dir),
        mounted=mounted,
        ignore=ignore if ignore is AUTO_DOCKERIGNORE else as_matcher(ignore),
    )
