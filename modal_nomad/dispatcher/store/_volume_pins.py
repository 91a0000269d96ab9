"""Versions of Volumes that somebody reads: while pinned, what later commits replace is kept aside.

A pin is a version under an id of its own. A commit that replaces a row which a pinned version has puts it
into ``volume_past`` first, with the version that replaced it: so any pinned version can be read as it was.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from modal_nomad.dispatcher.store._sql import Connection, Cursor
from modal_nomad.dispatcher.store.volumes import ChangePage, Listing, VolumeConflict
from modal_nomad.wire.volumes.entries import DIRECTORY, Entry, from_bytes, to_bytes

COLUMNS = "path, kind, size, mtime, mode, chunks, data"
_PAST = "object_id, path, parent, version, kind, size, mtime, mode, chunks, data"
MOST_DIRECTORIES = 256
"""Directories of one answer: each costs a query."""


def entry_of(row: Sequence[Any]) -> Entry:
    """Return an entry from the columns of its row."""
    chunks = row[5].hex()
    names = tuple(chunks[start : start + 64] for start in range(0, len(chunks), 64))
    return Entry(from_bytes(row[0]), row[1], row[2], row[3], row[4], names, row[6])


def version_of(db: Connection, object_id: str) -> tuple[int, int]:
    """Return a Volume's version, and the one before which removals are forgotten."""
    row = db.execute("SELECT version, floor FROM volumes WHERE object_id = ?", (object_id,)).fetchone()
    return (row[0], row[1]) if row else (0, 0)


# --- pins ---------------------------------------------------------------------------------------------


def pin(db: Connection, object_id: str, pin_id: str, now: float) -> int:
    """Keep the version that a Volume has now; gives it. Raises VolumeConflict."""
    if db.execute("SELECT 1 FROM objects WHERE object_id = ?", (object_id,)).fetchone() is None:
        raise VolumeConflict("deleted", f"Volume {object_id} is not here: it was deleted")
    version, _ = version_of(db, object_id)
    db.execute(
        "INSERT INTO volume_pins (object_id, pin_id, version, at) VALUES (?,?,?,?)"
        " ON CONFLICT (object_id, pin_id) DO UPDATE SET version = excluded.version, at = excluded.at",
        (object_id, pin_id, version, now),
    )
    return version


def pinned(db: Connection, object_id: str, pin_id: str) -> int:
    """Return the version of a pin. Raises VolumeConflict."""
    row = db.execute(
        "SELECT version FROM volume_pins WHERE object_id = ? AND pin_id = ?", (object_id, pin_id)
    ).fetchone()
    if row is None:
        raise VolumeConflict("unpinned", "the version of the Volume that was asked for is no longer kept")
    return int(row[0])


def renew(db: Connection, object_id: str, pin_id: str, now: float) -> bool:
    """Keep a pin for longer; says whether it is there."""
    if (
        db.execute(
            "SELECT 1 FROM volume_pins WHERE object_id = ? AND pin_id = ?", (object_id, pin_id)
        ).fetchone()
        is None
    ):
        return False
    db.execute("UPDATE volume_pins SET at = ? WHERE object_id = ? AND pin_id = ?", (now, object_id, pin_id))
    return True


def expired(db: Connection, before: float) -> list[tuple[str, str]]:
    """Return the pins that were not renewed since a time: each Volume's id and its own."""
    rows = db.execute("SELECT object_id, pin_id FROM volume_pins WHERE at < ?", (before,)).fetchall()
    return [(row[0], row[1]) for row in rows]


def unpin(db: Connection, object_id: str, pin_id: str, limit: int) -> bool:
    """Forget so many rows that only this pin kept, and the pin with the last; says whether there are more."""
    row = db.execute(
        "SELECT version FROM volume_pins WHERE object_id = ? AND pin_id = ?", (object_id, pin_id)
    ).fetchone()
    if row is None:
        return False
    version = row[0]
    others = db.execute(
        "SELECT max(CASE WHEN version <= ?2 THEN version END), min(CASE WHEN version >= ?2 THEN version END)"
        " FROM volume_pins WHERE object_id = ?1 AND pin_id != ?3",
        (object_id, version, pin_id),
    ).fetchone()
    below = -1 if others[0] is None else others[0]
    above = (1 << 62) if others[1] is None else others[1]
    more = False
    if below < version < above:
        # What the next pinned versions have as well stays.
        alone = "object_id = ?1 AND until > ?2 AND until <= ?3 AND version > ?4"
        bounds = (object_id, version, above, below)
        keys = db.execute(
            f"SELECT until, path FROM volume_past WHERE {alone} LIMIT {int(limit)}", bounds
        ).fetchall()
        same = db.dialect.same("path", "?")
        db.executemany(
            f"DELETE FROM volume_past WHERE object_id = ? AND until = ? AND {same}",
            [(object_id, until, path) for until, path in keys],
        )
        more = len(keys) == limit
    if not more:
        db.execute("DELETE FROM volume_pins WHERE object_id = ? AND pin_id = ?", (object_id, pin_id))
    return more


def highest(db: Connection, object_id: str) -> int | None:
    """Return the highest version that is pinned."""
    found: int | None = db.execute(
        "SELECT max(version) FROM volume_pins WHERE object_id = ?", (object_id,)
    ).fetchone()[0]
    return found


def keep(db: Connection, object_id: str, paths: Sequence[bytes], pinned: int, until: int) -> None:
    """Put rows aside that a commit is about to replace.

    Args:
        db: inside the commit's transaction.
        object_id: the Volume.
        paths: of the rows, as many as one statement takes.
        pinned: the highest version that is pinned: newer rows are in none.
        until: the commit's version.
    """
    places = [f"?{i}" for i in range(4, len(paths) + 4)]
    rows = db.dialect.each(
        f"{_PAST}, CAST(?3 AS BIGINT)", "volume_files", "object_id = ?1 AND version <= ?2", "path", places
    )
    db.execute(
        f"INSERT INTO volume_past ({_PAST}, until) {rows} ON CONFLICT DO NOTHING",
        (object_id, pinned, until, *paths),
    )


# --- reading what is pinned ---------------------------------------------------------------------------


def listings(
    db: Connection,
    object_id: str,
    pin_id: str,
    paths: Sequence[str],
    after: str | None,
    name: str | None,
    max_rows: int,
    max_bytes: int,
) -> tuple[list[Listing], Entry | None]:
    """Return what directories, and those in them, hold in a pinned version: as many as go into an answer."""
    version = pinned(db, object_id, pin_id)
    waiting = deque(paths)
    done: list[Listing] = []
    named: Entry | None = None
    while waiting and max_rows > 0 and max_bytes > 0 and len(done) < MOST_DIRECTORIES:
        path = waiting.popleft()
        first = not done
        entries: list[Entry] = []
        size = 0
        complete = True
        start = to_bytes(after) if first and after is not None else b""
        for row in _in_directory(db, object_id, version, to_bytes(path), start, max_rows + 1):
            if len(entries) >= max_rows or size >= max_bytes:
                complete = False
                break
            entries.append(entry_of(row))
            size += weight(entries[-1])
        if not (complete or first):
            break
        done.append(Listing(path, entries, complete))
        if not complete:
            if name is not None:
                named = at(db, object_id, version, f"{path}/{name}" if path else name)
            break
        max_rows -= len(entries) + 1
        max_bytes -= size
        waiting.extend(x.path for x in entries if x.kind == DIRECTORY)
    return done, named


def weight(entry: Entry) -> int:
    """Return about how many bytes of an answer an entry takes."""
    return len(entry.data) + 64 * len(entry.chunks) + len(entry.path) + 100


def _in_directory(
    db: Connection, object_id: str, version: int, folder: bytes, after: bytes, limit: int
) -> Iterator[Any]:
    where = (
        f"object_id = ?1 AND {db.dialect.same('parent', '?2')} AND version <= ?3 AND kind != 0"
        f" AND {db.dialect.beyond(['path'], '>', ['?4'])}"
    )
    values = (object_id, folder, version, after, limit)
    end = f"ORDER BY {db.dialect.order('path')} LIMIT ?5"
    now = db.execute(f"SELECT {COLUMNS} FROM volume_files WHERE {where} {end}", values)
    past = db.execute(f"SELECT {COLUMNS} FROM volume_past WHERE {where} AND until > ?3 {end}", values)
    return _merged(now, past, lambda row: bytes(row[0]))


def _merged(now: Cursor, past: Cursor, key: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield the rows that stand and those put aside in order; one that was put aside in between once."""
    last: Any = None
    for row in heapq.merge(now, past, key=key):
        mark = key(row)
        if mark != last:
            last = mark
            yield row


def at(db: Connection, object_id: str, version: int, path: str) -> Entry | None:
    """Return what stands at a path in a pinned version."""
    raw = to_bytes(path)
    row = db.execute(
        f"SELECT {COLUMNS} FROM volume_files WHERE object_id = ?1 AND {db.dialect.same('path', '?2')}"
        " AND version <= ?3 AND kind != 0",
        (object_id, raw, version),
    ).fetchone()
    if row is None:
        row = db.execute(
            f"SELECT {COLUMNS} FROM volume_past WHERE object_id = ?1 AND {db.dialect.same('parent', '?4')}"
            f" AND {db.dialect.beyond(['path'], '=', ['?2'])} AND version <= ?3 AND until > ?3 AND kind != 0",
            (object_id, raw, version, raw.rpartition(b"/")[0]),
        ).fetchone()
    return entry_of(row) if row else None


def below(
    db: Connection, object_id: str, pin_id: str, path: str, after: str | None, limit: int
) -> list[Entry]:
    """Return so many entries below a directory in a pinned version, by path."""
    version = pinned(db, object_id, pin_id)
    # "0" is the character after "/".
    low, high = (to_bytes(path + "/"), to_bytes(path + "0")) if path else (b"", b"\xff" * 4096)
    where = (
        "object_id = ?1 AND version <= ?2 AND kind != 0"
        f" AND {db.dialect.beyond(['path'], '>', ['?3'])} AND {db.dialect.beyond(['path'], '<', ['?4'])}"
    )
    start = low if after is None else to_bytes(after)
    values = (object_id, version, start, high, limit)
    end = f"ORDER BY {db.dialect.order('path')} LIMIT ?5"
    now = db.execute(f"SELECT {COLUMNS} FROM volume_files WHERE {where} {end}", values)
    past = db.execute(f"SELECT {COLUMNS} FROM volume_past WHERE {where} AND until > ?2 {end}", values)
    found = _merged(now, past, lambda row: bytes(row[0]))
    return [entry_of(row) for row in itertools.islice(found, limit)]


def changes(
    db: Connection,
    object_id: str,
    since: int,
    pin_id: str,
    after: tuple[int, str] | None,
    max_rows: int,
    max_bytes: int,
) -> ChangePage:
    """Return a page of what changed after a version up to a pinned one."""
    version = pinned(db, object_id, pin_id)
    _, floor = version_of(db, object_id)
    whole = since < floor
    start = (after[0], to_bytes(after[1])) if after is not None else (0 if whole else since, b"\xff" * 4096)
    where = (
        f"object_id = ?1 AND {db.dialect.beyond(['version', 'path'], '>', ['?2', '?3'])} AND version <= ?4"
    )
    values = (object_id, *start, version, max_rows + 1)
    end = f"ORDER BY version, {db.dialect.order('path')} LIMIT ?5"
    now = db.execute(f"SELECT version, {COLUMNS} FROM volume_files WHERE {where} {end}", values)
    past = db.execute(
        f"SELECT version, {COLUMNS} FROM volume_past WHERE {where} AND until > ?4 {end}", values
    )
    entries: list[Entry] = []
    size = 0
    last: tuple[int, str] | None = None
    for row in _merged(now, past, lambda row: (row[0], bytes(row[1]))):
        if len(entries) >= max_rows or size >= max_bytes:
            break
        entry = entry_of(row[1:])
        last = (row[0], entry.path)
        entries.append(entry)
        size += weight(entry)
    else:
        last = None
    return ChangePage(entries, version, last, whole)
