"""Room ahead in the log of SQLite: a write that makes the file longer takes far longer to sync."""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

CHECKPOINT_PAGES = 8000
"""The log begins anew after so many, which is as long as it becomes by itself."""
_AHEAD = 8 << 20
_HEADER, _FRAME_HEADER = 32, 24
_FRAMES = struct.Struct("=I")
_FRAMES_AT = 16
"""Where the log's index says how many frames are in use: part of SQLite's file format."""


class Room:
    """Keeps the log longer than what is in use of it; zeros behind the last frame mean nothing to SQLite.

    Args:
        path: the database.
        connection: the one that writes.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._log, self._index = f"{path}-wal", f"{path}-shm"
        self._connection = connection
        self._page = int(connection.execute("PRAGMA page_size").fetchone()[0])

    def make(self) -> None:
        """Make room where there is little left, unless somebody writes. Trouble is not raised."""
        try:
            used = self._used()
            size = os.stat(self._log).st_size
            target = min(used + _AHEAD, self._bytes(CHECKPOINT_PAGES))
            if target - size < _AHEAD // 2:
                return
            # Whoever writes next finds the end of the file where we left it.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                with open(self._log, "ab") as log:
                    log.write(bytes(max(0, target - log.tell())))
                    log.flush()
                    os.fdatasync(log.fileno())
            finally:
                self._connection.execute("ROLLBACK")
        except (OSError, sqlite3.Error):
            # Another program writes, or the disk is full: then writes take what they take.
            return

    def _used(self) -> int:
        with open(self._index, "rb") as index:
            return self._bytes(_FRAMES.unpack_from(index.read(_FRAMES_AT + _FRAMES.size), _FRAMES_AT)[0])

    def _bytes(self, frames: int) -> int:
        return _HEADER + frames * (self._page + _FRAME_HEADER)
