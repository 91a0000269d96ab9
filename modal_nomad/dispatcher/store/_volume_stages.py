"""The rows of large commits of Volumes: staged in slices, decided at once, carried out in slices.

A stage is a commit's entries under an id of its own, which nobody sees. It becomes a switch in one
transaction: from then on the commit has happened, and whoever opens the store carries out what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from modal_nomad.dispatcher.store._sql import Connection
from modal_nomad.dispatcher.store._volume_pins import COLUMNS, entry_of
from modal_nomad.dispatcher.store._volume_rows import Change
from modal_nomad.dispatcher.store.volumes import Committed, Switch, VolumeConflict
from modal_nomad.wire.volumes.entries import REMOVED, Entry, to_bytes


class _Tried(Change):
    """A commit that is only tried: its conflicts are found, and nothing is written."""

    def flush(self) -> None:
        self._unwritten.clear()


def stage(db: Connection, object_id: str, stage_id: str, first: int, entries: Sequence[Entry]) -> None:
    """Keep a slice of a commit; the first one begins the stage. Raises VolumeConflict."""
    if first == 0:
        if db.execute("SELECT 1 FROM objects WHERE object_id = ?", (object_id,)).fetchone() is None:
            raise VolumeConflict("deleted", f"Volume {object_id} is not here: it was deleted")
        db.execute(
            "INSERT INTO volume_stages (stage_id, object_id, commit_id, at) VALUES (?,?,'',0)",
            (stage_id, object_id),
        )
    db.executemany(
        f"INSERT INTO volume_staged (object_id, stage_id, number, {COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)",
        [
            (
                object_id,
                stage_id,
                number,
                to_bytes(entry.path),
                entry.kind,
                entry.size,
                entry.mtime,
                entry.mode,
                bytes.fromhex("".join(entry.chunks)),
                entry.data,
            )
            for number, entry in enumerate(entries, first)
        ],
    )


def check(
    db: Connection, object_id: str, stage_id: str, first: int, limit: int, rule: str, now: float
) -> bool:
    """Look for conflicts of a slice with the tree; says whether there are more. Raises VolumeConflict."""
    entries = _slice(db, object_id, stage_id, first, limit)
    tried = _Tried(db, object_id, now)
    tried.expect(x for x in entries if x.kind != REMOVED)
    for entry in entries:
        if entry.kind != REMOVED:
            tried.put(entry, rule)
    return len(entries) == limit


def switch(db: Connection, object_id: str, stage_id: str, commit_id: str, now: float) -> None:
    """Make a stage a commit that has happened. Raises VolumeConflict."""
    # Raises where the Volume is gone.
    Change(db, object_id, now)
    db.execute(
        "UPDATE volume_stages SET commit_id = ?, at = ? WHERE stage_id = ?", (commit_id, now, stage_id)
    )


def stages(db: Connection) -> list[Switch]:
    """Return all stages; those without a commit's id have not become switches."""
    rows = db.execute("SELECT object_id, stage_id, commit_id, at FROM volume_stages").fetchall()
    return [Switch(*row) for row in rows]


def carry_out(db: Connection, of: Switch, limit: int) -> frozenset[str] | None:
    """Bring a slice into the tree; gives the chunks that it displaced, None when nothing is left."""
    change = Change(db, of.object_id, of.at)
    entries = _slice(db, of.object_id, of.stage_id, 0, limit)
    if not entries:
        return None
    change.expect(entries)
    for entry in entries:
        if entry.kind == REMOVED:
            change.remove(entry.path)
        else:
            change.put(entry)
    change.flush()
    _forget(db, of.object_id, of.stage_id, limit)
    return frozenset(change.displaced)


def finish(db: Connection, of: Switch) -> Committed:
    """Let the tree be what it is by now: the commit's version."""
    finished = Change(db, of.object_id, of.at).finish(of.commit_id, touched=True)
    db.execute("DELETE FROM volume_stages WHERE stage_id = ?", (of.stage_id,))
    return finished


def drop(db: Connection, object_id: str, stage_id: str, limit: int) -> bool:
    """Forget the first slice of a stage, and the stage with the last one; says whether there is more."""
    row = db.execute("SELECT commit_id FROM volume_stages WHERE stage_id = ?", (stage_id,)).fetchone()
    if row is not None and row[0]:
        # It has become a switch: what is staged has happened.
        return False
    more = _forget(db, object_id, stage_id, limit)
    if not more:
        db.execute("DELETE FROM volume_stages WHERE stage_id = ?", (stage_id,))
    return more


def _forget(db: Connection, object_id: str, stage_id: str, limit: int) -> bool:
    row = db.execute(
        "SELECT number FROM volume_staged WHERE object_id = ?1 AND stage_id = ?2"
        " ORDER BY number LIMIT 1 OFFSET ?3",
        (object_id, stage_id, limit),
    ).fetchone()
    if row is not None:
        db.execute(
            "DELETE FROM volume_staged WHERE object_id = ? AND stage_id = ? AND number < ?",
            (object_id, stage_id, row[0]),
        )
        return True
    db.execute("DELETE FROM volume_staged WHERE object_id = ? AND stage_id = ?", (object_id, stage_id))
    return False


def _slice(db: Connection, object_id: str, stage_id: str, first: int, limit: int) -> list[Entry]:
    rows = db.execute(
        f"SELECT {COLUMNS} FROM volume_staged WHERE object_id = ?1 AND stage_id = ?2 AND number >= ?3"
        " ORDER BY number LIMIT ?4",
        (object_id, stage_id, first, limit),
    )
    return [entry_of(row) for row in rows]
