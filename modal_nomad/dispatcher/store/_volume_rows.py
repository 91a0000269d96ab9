"""The rows of Volumes: plain SQL inside one transaction of the caller's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from modal_nomad.dispatcher.store import _volume_pins as pins
from modal_nomad.dispatcher.store._sql import Connection
from modal_nomad.dispatcher.store._volume_pins import COLUMNS, entry_of, version_of, weight
from modal_nomad.dispatcher.store.volumes import KEEP_MODE, ChangePage, Committed, VolumeConflict
from modal_nomad.wire.volumes.entries import (
    DIRECTORY,
    HOLE,
    REMOVED,
    Entry,
    from_bytes,
    to_bytes,
)

T = TypeVar("T")
_TOP = Entry("", DIRECTORY, mode=0o755)
REMEMBER_SECONDS = 7 * 86400.0
"""A container that has not looked for this long reads the whole tree again."""
_FORGET_EVERY = 64
_LAST = b"\xff" * 4096
"""Comes after every path."""
_GROUPS = (1, 16, 256)
"""How many paths are looked up by one statement; few sizes make few statements."""


def find(db: Connection, object_id: str, path: str) -> Entry | None:
    """Return what stands at a path."""
    if not path:
        return _TOP
    row = db.execute(
        f"SELECT {COLUMNS} FROM volume_files WHERE object_id = ?1 AND {db.dialect.same('path', '?2')}"
        " AND kind != 0",
        (object_id, to_bytes(path)),
    ).fetchone()
    return entry_of(row) if row else None


def below(db: Connection, object_id: str, path: str) -> list[Entry]:
    """Return everything below a directory, by path."""
    # "0" is the character after "/".
    low, high = (to_bytes(path + "/"), to_bytes(path + "0")) if path else (b"", _LAST)
    rows = db.execute(
        f"SELECT {COLUMNS} FROM volume_files WHERE object_id = ?1 AND kind != 0"
        f" AND {db.dialect.beyond(['path'], '>=', ['?2'])} AND {db.dialect.beyond(['path'], '<', ['?3'])}"
        f" ORDER BY {db.dialect.order('path')}",
        (object_id, low, high),
    )
    return [entry_of(row) for row in rows]


class Change:
    """One commit in the making: rows are looked up and written many at a time.

    Args:
        db: inside a transaction.
        object_id: the Volume.
        now: seconds since 1970.
    """

    def __init__(self, db: Connection, object_id: str, now: float) -> None:
        self._db = db
        self._object_id = object_id
        self._now = int(now * 1e9)
        if db.execute("SELECT 1 FROM objects WHERE object_id = ?", (object_id,)).fetchone() is None:
            raise VolumeConflict("deleted", f"Volume {object_id} is not here: it was deleted")
        self._before, self._floor = version_of(db, object_id)
        self._pinned = pins.highest(db, object_id)
        self._directories = {""}
        self.displaced: set[str] = set()
        self._touched = False
        self._known: dict[str, Entry | None] = {"": _TOP}
        self._unwritten: dict[str, Entry] = {}

    def find(self, path: str) -> Entry | None:
        """Return what stands at a path by now."""
        if path not in self._known:
            self._known[path] = find(self._db, self._object_id, path)
        return self._known[path]

    def expect(self, entries: Iterable[Entry]) -> None:
        """Look up what stands where entries are to be put or removed."""
        wanted: set[str] = set()
        for entry in entries:
            wanted.add(entry.path)
            parent = entry.parent
            while parent and parent not in self._directories and parent not in wanted:
                wanted.add(parent)
                parent = parent.rpartition("/")[0]
        self.flush()
        self._known = {"": _TOP}
        paths = [to_bytes(path) for path in wanted if path]
        for group in _groups(paths):
            group = _filled(group)
            places = [f"?{i}" for i in range(2, len(group) + 2)]
            query = self._db.dialect.each(
                COLUMNS, "volume_files", "object_id = ?1 AND kind != 0", "path", places
            )
            rows = self._db.execute(query, (self._object_id, *group))
            for row in rows:
                entry = entry_of(row)
                self._known[entry.path] = entry
        for path in wanted:
            self._known.setdefault(path, None)

    def flush(self) -> None:
        """Write what was put, for statements that look at many rows."""
        if self._unwritten:
            if self._pinned is not None:
                for group in _groups(map(to_bytes, self._unwritten)):
                    pins.keep(self._db, self._object_id, _filled(group), self._pinned, self._before + 1)
            self._db.executemany(
                "INSERT INTO volume_files"
                " (object_id, path, parent, version, kind, size, mtime, mode, chunks, data)"
                f" VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT ({self._db.dialect.target('object_id', 'path')})"
                " DO UPDATE SET version = excluded.version, kind = excluded.kind, size = excluded.size,"
                " mtime = excluded.mtime, mode = excluded.mode, chunks = excluded.chunks,"
                " data = excluded.data",
                [self._row(entry) for entry in self._unwritten.values()],
            )
            self._unwritten.clear()

    def _row(self, entry: Entry) -> tuple[Any, ...]:
        return (
            self._object_id,
            to_bytes(entry.path),
            to_bytes(entry.parent),
            self._before + 1,
            entry.kind,
            entry.size,
            entry.mtime,
            entry.mode,
            bytes.fromhex("".join(entry.chunks)),
            entry.data,
        )

    def put(self, entry: Entry, rule: str = "last") -> None:
        """Write an entry and the directories that it stands in. Raises VolumeConflict."""
        there = self.find(entry.path)
        if entry.kind == DIRECTORY:
            if there is not None and there.kind != DIRECTORY and rule != "last":
                raise VolumeConflict("exists", f"{entry.path} is a file in the Volume, not a directory")
            self._make_parents(entry.parent, rule)
            keeps = rule != "last" or entry.mode & KEEP_MODE
            entry = entry._replace(mode=entry.mode & ~KEEP_MODE)
            if there is None or there.kind != DIRECTORY or (there.mode != entry.mode and not keeps):
                self._write(entry, there)
            self._directories.add(entry.path)
            return
        if there is not None and there.kind == DIRECTORY:
            if rule != "last":
                raise VolumeConflict("exists", f"{entry.path} is a directory in the Volume")
            self._remove_below(entry.path)
            # It may have been made for an earlier entry of this very commit.
            self._directories.discard(entry.path)
        elif there is not None and rule == "new":
            raise VolumeConflict("exists", f"{entry.path} exists in the Volume already")
        self._make_parents(entry.parent, rule)
        if there != entry:
            self._write(entry, there)

    def remove(self, path: str) -> None:
        """Remove a path; a directory that still has something in it stays."""
        there = self.find(path)
        if there is None or not path:
            return
        if there.kind == DIRECTORY:
            self.flush()
            child = self._db.execute(
                "SELECT 1 FROM volume_files WHERE object_id = ?1"
                f" AND {self._db.dialect.same('parent', '?2')} AND kind != 0 LIMIT 1",
                (self._object_id, to_bytes(path)),
            ).fetchone()
            if child is not None:
                return
        self._erase(there)

    def remove_tree(self, path: str) -> None:
        """Remove a path with all below it."""
        self._remove_below(path)
        there = self.find(path)
        if there is not None and path:
            self._erase(there)

    def below(self, path: str) -> list[Entry]:
        """Return everything below a directory by now, by path."""
        self.flush()
        return below(self._db, self._object_id, path)

    def finish(self, commit_id: str, *, touched: bool = False) -> Committed:
        """Set the Volume's new version; returns what was done.

        Args:
            commit_id: is remembered.
            touched: whether something changed already, by others than this.
        """
        self.flush()
        touched = touched or self._touched
        version = self._before + (1 if touched else 0)
        floor = self._floor
        if version % _FORGET_EVERY == 0 and touched:
            floor = self._forget()
        self._db.execute(
            "INSERT INTO volumes (object_id, version, floor) VALUES (?,?,?)"
            " ON CONFLICT (object_id) DO UPDATE SET version = excluded.version, floor = excluded.floor",
            (self._object_id, version, floor),
        )
        recent = self._now - 3600 * 10**9
        self._db.execute(
            "DELETE FROM volume_commits WHERE object_id = ? AND at < ?", (self._object_id, recent)
        )
        self._db.execute(
            "INSERT INTO volume_commits (object_id, commit_id, at, before, version) VALUES (?,?,?,?,?)",
            (self._object_id, commit_id, self._now, self._before, version),
        )
        return Committed(self._before, version, frozenset(self.displaced))

    def _make_parents(self, path: str, rule: str) -> None:
        if path in self._directories:
            return
        self._make_parents(path.rpartition("/")[0], rule)
        there = self.find(path)
        if there is None or there.kind != DIRECTORY:
            if there is not None and rule != "last":
                raise VolumeConflict("exists", f"{path} is a file in the Volume, not a directory")
            self._write(Entry(path, DIRECTORY, mtime=self._now, mode=0o755), there)
        self._directories.add(path)

    def _remove_below(self, path: str) -> None:
        for entry in self.below(path):
            self._erase(entry)

    def _erase(self, there: Entry) -> None:
        # The time of a removed path is when it was removed.
        self._write(Entry(there.path, REMOVED, mtime=self._now, mode=0), there)
        self._directories.discard(there.path)

    def _write(self, entry: Entry, there: Entry | None) -> None:
        self._touched = True
        if there is not None and there.chunks:
            self.displaced.update(there.chunks)
        self._known[entry.path] = entry if entry.kind != REMOVED else None
        self._unwritten[entry.path] = entry
        if len(self._unwritten) >= _GROUPS[-1]:
            self.flush()

    def _forget(self) -> int:
        old = self._now - int(REMEMBER_SECONDS * 1e9)
        row = self._db.execute(
            "SELECT max(version) FROM volume_files WHERE object_id = ? AND kind = 0 AND mtime < ?",
            (self._object_id, old),
        ).fetchone()
        if row[0] is None:
            return self._floor
        self._db.execute(
            "DELETE FROM volume_files WHERE object_id = ? AND kind = 0 AND mtime < ?",
            (self._object_id, old),
        )
        return max(self._floor, int(row[0]))


def commit(
    db: Connection,
    object_id: str,
    commit_id: str,
    entries: Iterable[Entry],
    rule: str,
    now: float,
) -> Committed:
    """Write entries, all or none (the caller's transaction). Raises VolumeConflict."""
    before = done(db, object_id, commit_id)
    if before is not None:
        return before
    change = Change(db, object_id, now)
    removed: list[Entry] = []
    for group in _groups(entries):
        change.expect(x for x in group if x.kind != REMOVED)
        for entry in group:
            if entry.kind == REMOVED:
                removed.append(entry)
            else:
                change.put(entry, rule)
    # What is deepest goes first: then a directory is empty unless somebody else put something there.
    removed.sort(key=lambda x: x.path.count("/"), reverse=True)
    for group in _groups(removed):
        change.expect(group)
        for entry in group:
            change.remove(entry.path)
    return change.finish(commit_id)


def _groups(things: Iterable[T]) -> Iterator[list[T]]:
    """Cut into lists of what one statement takes."""
    iterator = iter(things)
    while group := list(itertools.islice(iterator, _GROUPS[-1])):
        yield group


def _filled(group: list[T]) -> list[T]:
    """Repeat the last one up to one of few sizes: so there are few statements."""
    return group + [group[-1]] * (next(x for x in _GROUPS if x >= len(group)) - len(group))


def done(db: Connection, object_id: str, commit_id: str) -> Committed | None:
    """Return what a commit did that was carried out lately."""
    row = db.execute(
        "SELECT before, version FROM volume_commits WHERE object_id = ? AND commit_id = ?",
        (object_id, commit_id),
    ).fetchone()
    return Committed(row[0], row[1], frozenset()) if row else None


def remove(
    db: Connection, object_id: str, commit_id: str, path: str, recursive: bool, now: float
) -> Committed:
    """Remove a file, or a directory with all below. Raises VolumeConflict."""
    before = done(db, object_id, commit_id)
    if before is not None:
        return before
    there = find(db, object_id, path)
    if there is None:
        raise VolumeConflict("missing", f"there is no {path or '/'} in the Volume")
    if there.kind == DIRECTORY and not recursive:
        raise VolumeConflict("directory", f"{path or '/'} is a directory: remove it with recursive=True")
    change = Change(db, object_id, now)
    change.remove_tree(path)
    return change.finish(commit_id)


def copy(
    db: Connection,
    object_id: str,
    commit_id: str,
    sources: Sequence[str],
    target: str,
    recursive: bool,
    now: float,
) -> Committed:
    """Copy within a Volume, as ``cp`` does. Raises VolumeConflict."""
    before = done(db, object_id, commit_id)
    if before is not None:
        return before
    change = Change(db, object_id, now)
    for found, place in copies(change, sources, target, recursive):
        # Read before anything is written below the target.
        inside = change.below(found.path) if found.kind == DIRECTORY else []
        change.put(found._replace(path=place), "over")
        for entry in inside:
            change.put(entry._replace(path=place + entry.path[len(found.path) :]), "over")
    return change.finish(commit_id)


def plan_copy(
    db: Connection, object_id: str, sources: Sequence[str], target: str, recursive: bool
) -> list[tuple[Entry, str]]:
    """Return what a copy would take, and where to; it only looks. Raises VolumeConflict."""
    return list(copies(Change(db, object_id, 0.0), sources, target, recursive))


def copies(
    change: Change, sources: Sequence[str], target: str, recursive: bool
) -> Iterator[tuple[Entry, str]]:
    """Yield sources of a copy, each with its place. Raises VolumeConflict."""
    there = change.find(target)
    into = there is not None and there.kind == DIRECTORY
    if len(sources) > 1 and not into:
        raise VolumeConflict("missing", f"{target} is no directory in the Volume: several files go into one")
    for source in sources:
        found = change.find(source)
        if found is None:
            raise VolumeConflict("missing", f"there is no {source} in the Volume")
        name = source.rpartition("/")[2]
        place = "/".join(part for part in (target, name) if part) if into else target
        if found.kind != DIRECTORY:
            if place == source:
                raise VolumeConflict("invalid", f"{source} and the place it is to be copied to are the same")
            _check_place(change, place)
        elif not recursive:
            raise VolumeConflict("directory", f"{source} is a directory: copy it with recursive=True")
        elif f"{place}/".startswith(f"{source}/") or not source:
            raise VolumeConflict("invalid", f"{source or '/'} cannot be copied into itself")
        yield found, place


def _check_place(change: Change, place: str) -> None:
    parent = place.rpartition("/")[0]
    there = change.find(parent)
    if there is None or there.kind != DIRECTORY:
        raise VolumeConflict("missing", f"there is no directory {parent} in the Volume")


def changes(
    db: Connection,
    object_id: str,
    since: int,
    after: tuple[int, str] | None,
    max_rows: int,
    max_bytes: int,
) -> ChangePage:
    """Return a page of what changed after a version."""
    version, floor = version_of(db, object_id)
    whole = since < floor
    start = (after[0], to_bytes(after[1])) if after is not None else (0 if whole else since, _LAST)
    entries: list[Entry] = []
    size = 0
    last: tuple[int, str] | None = None
    cursor = db.execute(
        f"SELECT version, {COLUMNS} FROM volume_files WHERE object_id = ?1"
        f" AND {db.dialect.beyond(['version', 'path'], '>', ['?2', '?3'])}"
        f" ORDER BY version, {db.dialect.order('path')} LIMIT ?4",
        (object_id, *start, max_rows + 1),
    )
    for row in cursor:
        if len(entries) >= max_rows or size >= max_bytes:
            break
        entry = entry_of(row[1:])
        last = (row[0], entry.path)
        entries.append(entry)
        size += weight(entry)
    else:
        last = None
    return ChangePage(entries, version, last, whole)


def listing(
    db: Connection, object_id: str, path: str, recursive: bool, after: str | None, limit: int
) -> list[Entry]:
    """Return what is in a directory, by path, without contents."""
    start = to_bytes(after) if after is not None else b""
    if recursive:
        low, high = (to_bytes(path + "/"), to_bytes(path + "0")) if path else (b"", _LAST)
        start = max(start, low)
        where, value = db.dialect.beyond(["path"], "<", ["?4"]), high
    else:
        where, value = db.dialect.same("parent", "?4"), to_bytes(path)
    rows = db.execute(
        "SELECT path, kind, size, mtime, mode FROM volume_files WHERE object_id = ?1 AND kind != 0"
        f" AND {db.dialect.beyond(['path'], '>', ['?2'])} AND {where}"
        f" ORDER BY {db.dialect.order('path')} LIMIT ?3",
        (object_id, start, limit, value),
    )
    return [Entry(from_bytes(row[0]), *row[1:]) for row in rows]


def chunks_of(table: str) -> str:
    """Return the query for the chunks that files of a table name."""
    return f"SELECT chunks FROM {table} WHERE kind = 1 AND length(chunks) > 0"


def chunk_names(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the chunks that rows of ``chunks_of`` name."""
    for (chunks,) in rows:
        text = chunks.hex()
        for start in range(0, len(text), 64):
            if text[start : start + 64] != HOLE:
                yield text[start : start + 64]
