"""Which blobs the rows of a SQLite store name."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

from modal_nomad.dispatcher.store._volume_rows import chunk_names

_NAME = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def referenced_blobs(path: Path) -> set[str]:
    """Return the names in payloads that are flagged as blobs, and all that read like one elsewhere.

    It goes by the schema, so that a table that comes later is not forgotten: payloads are in tables with
    the columns ``payload`` and ``flags``, chunks of files in a column ``chunks``, the rest in columns
    ``spec``, ``job`` and ``params``. Functions of stopped Apps count no more. Reads over a connection of
    its own: a long look keeps nobody waiting.
    """
    names: set[str] = set()
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        db.execute("BEGIN")
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
            indexes = {row[1] for row in db.execute(f"PRAGMA index_list({table})")}
            if {"payload", "flags"} <= columns:
                # Said by name: the planner may think a walk over all payloads cheaper.
                index = f"{table}_by_blob"
                by = f" INDEXED BY {index}" if index in indexes else ""
                for (payload,) in db.execute(f"SELECT payload FROM {table}{by} WHERE flags & 1"):
                    names.add(bytes(payload).decode("ascii", "replace"))
            if "chunks" in columns:
                names.update(chunk_names(db))
            live = "app_id IN (SELECT app_id FROM apps WHERE state != 'stopped')"
            where = f" WHERE {live}" if "app_id" in columns else ""
            for column in columns & {"spec", "job", "params"}:
                for (value,) in db.execute(f"SELECT {column} FROM {table}{where}"):
                    if value:
                        data = value.encode() if isinstance(value, str) else value
                        names.update(name.decode() for name in _NAME.findall(data))
    return names
