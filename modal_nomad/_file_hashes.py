"""SHA-256 of many local files, known again for as long as the file system says that they are the same.

Reading thousands of files only to find that none has changed is most of what publishing an unchanged
Image would cost. So what their hashes were is kept under this user's home folder, one file for each large
directory, with what ``stat`` said of each then: when its content and its entry changed, size and inode.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ._home import home
from .exception import InvalidError

WORTH_KEEPING = 200
"""Of fewer files nothing is kept, unless they are large: to read them is as fast."""
_LARGE = 8 << 20
SETTLED_NS = 2_000_000_000
"""A file may change twice within what a file system's clock can tell apart; after this long it shows."""


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, read in pieces. Raises InvalidError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise unreadable(path, error) from None
    return digest.hexdigest()


def unreadable(path: str | os.PathLike[str], error: OSError) -> InvalidError:
    """Return the error for a local file or directory that is to be sent, and cannot be read."""
    return InvalidError(
        f"{os.fspath(path)!r} cannot be read ({error.strerror}), and nothing was sent: make it readable, or"
        " leave it out with ignore="
    )


class LocalFile(NamedTuple):
    """A local file that goes somewhere.

    Attributes:
        place: where it goes.
        path: where it is.
        said: what ``stat`` says of it.
    """

    place: str
    path: str
    said: os.stat_result


def worth_keeping(files: Sequence[LocalFile]) -> bool:
    """Tell whether it takes long to read these files."""
    return len(files) >= WORTH_KEEPING or sum(file.said.st_size for file in files) >= _LARGE


def hashes_of(top: str, files: Sequence[LocalFile]) -> list[str]:
    """Return the SHA-256 of each file.

    Args:
        top: the directory that they are of, under whose name the hashes are kept.
        files: the files, as they are now.

    Raises:
        InvalidError: one cannot be read.
    """
    if not worth_keeping(files):
        return [file_sha256(file.path) for file in files]
    kept = Kept(top)
    before = time.time_ns() - SETTLED_NS
    found, now, read = [], {}, 0
    for _, path, said in files:
        state = f"{said.st_mtime_ns} {said.st_ctime_ns} {said.st_size} {said.st_ino} "
        known = kept.lines.get(path, "")
        if known.startswith(state):
            sha = known[len(state) :]
        else:
            read += 1
            sha = file_sha256(path)
        found.append(sha)
        if said.st_mtime_ns < before and said.st_ctime_ns < before:
            now[path] = state + sha
    if read and now != kept.lines:
        kept.write(now)
    return found


class Kept:
    """A file of this user's with what is known of one directory's files.

    Args:
        top: the directory.
        what: a word for it, where there are several.

    Attributes:
        lines: it.
    """

    def __init__(self, top: str, what: str = "") -> None:
        name = hashlib.sha256(os.path.abspath(top).encode("utf-8", "surrogateescape")).hexdigest()
        self._path = Path(home(), "file-hashes", f"{name[:32]}{what and '.'}{what}.json")
        self.lines: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_bytes())
            if isinstance(found, dict):
                self.lines = found

    def write(self, lines: dict[str, str]) -> None:
        """Replace it."""
        # It only saves time: a full disk must not keep an Image from being published.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            half = self._path.with_suffix(f".{os.getpid()}")
            half.write_text(json.dumps(lines))
            half.replace(self._path)
