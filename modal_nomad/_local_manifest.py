"""What a build step copies: a list of local files, known by its hash without reading them where none changed.

Thousands of files are looked at one by one (their entries are all that tells of a change) and no more: what
the list of exactly these entries came to is kept, and who needs the files themselves asks for them.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from ._file_hashes import SETTLED_NS, Kept, LocalFile, hashes_of, worth_keeping
from ._image_files import check_text, file_mode
from .exception import ExecutionError
from .wire.spec import MountedFile, canonical_json

_KEPT = 16
"""Lists that are kept of one directory: steps differ in where it goes, and in what they leave out of it."""


class LocalManifest:
    """The list of (place, SHA-256, mode) of local files; of several at one place the last one counts.

    Args:
        top: the directory that they are of.
        found: the files.

    Attributes:
        sha: the SHA-256 of the list.

    Raises:
        InvalidError: a file has a name that is no UTF-8.
    """

    def __init__(self, top: str, found: Sequence[LocalFile]) -> None:
        self._top = top
        self._found = found
        self._files: tuple[MountedFile, ...] | None = None
        self._contents: dict[str, bytes | os.PathLike[str]] = {}
        self._kept = Kept(top, "lists") if worth_keeping(found) else None
        self.sha = self._known() or self._read()

    @property
    def paths(self) -> list[str]:
        """Where the files are on this machine."""
        return [file.path for file in self._found]

    def files(self) -> tuple[MountedFile, ...]:
        """Return the files, with their hashes."""
        self._ensure_read()
        return self._files or ()

    def contents(self) -> dict[str, bytes | os.PathLike[str]]:
        """Return the list and where the content of each file is, by SHA-256."""
        self._ensure_read()
        return self._contents

    def _known(self) -> str:
        """Return the hash that a list of these very entries had; empty when it is not kept."""
        if self._kept is None:
            return ""
        entries = [
            (
                place,
                said.st_mtime_ns,
                said.st_ctime_ns,
                said.st_size,
                said.st_ino,
                said.st_mode & stat.S_IXUSR,
            )
            for place, _, said in self._found
        ]
        self._entries = hashlib.sha256(marshal.dumps(entries, 2)).hexdigest()
        return str(self._kept.lines.get(self._entries, ""))

    def _read(self) -> str:
        """Hash the files; return the hash of the list."""
        before = time.time_ns() - SETTLED_NS
        files: dict[str, MountedFile] = {}
        for file, sha in zip(self._found, hashes_of(self._top, self._found), strict=True):
            files[file.place] = MountedFile(check_text(file).place, sha, file_mode(file.said))
            self._contents[sha] = Path(file.path)
        self._files = tuple(files[place] for place in sorted(files))
        manifest = canonical_json([[x.path, x.blob, x.mode] for x in self._files])
        sha = hashlib.sha256(manifest).hexdigest()
        self._contents[sha] = manifest
        settled = all(x.said.st_mtime_ns < before and x.said.st_ctime_ns < before for x in self._found)
        if self._kept is not None and settled and self._kept.lines.get(self._entries) != sha:
            others = [x for x in self._kept.lines.items() if x[0] != self._entries]
            self._kept.write(dict([*others[1 - _KEPT :], (self._entries, sha)]))
        return sha

    def _ensure_read(self) -> None:
        if self._files is None and self._read() != self.sha:
            raise ExecutionError(
                f"files in {self._top} changed while they were looked at: try again when nothing writes there"
            )
