"""Call graphs in a SQLite store: the calls that inputs made, and how their inputs ended."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from modal_nomad.dispatcher.store.base import GraphCall, GraphInput

_TREE = (
    "WITH RECURSIVE tree(key, call_id) AS (SELECT 0, :call UNION"
    " SELECT g.key, g.call_id FROM graph_calls g JOIN tree ON g.parent_call = tree.call_id LIMIT :limit)"
)


def write(db: sqlite3.Connection, calls: Sequence[GraphCall], inputs: Sequence[GraphInput]) -> None:
    """Keep calls, and what is known of inputs by now."""
    db.executemany(
        "INSERT OR IGNORE INTO graph_calls (call_id, parent_call, parent, name, module) VALUES (?,?,?,?,?)",
        calls,
    )
    db.executemany("INSERT OR REPLACE INTO graph_inputs VALUES (?,?,?,?)", inputs)


def read(db: sqlite3.Connection, call_id: str, limit: int) -> tuple[list[GraphCall], list[GraphInput]]:
    """Return a call and all below it, parents first, and their inputs; nothing for an unknown call."""
    rows = db.execute(
        f"{_TREE} SELECT tree.call_id, coalesce(parent_call, ''), coalesce(parent, ''), coalesce(name, ''),"
        " coalesce(module, '') FROM tree LEFT JOIN graph_calls USING (call_id) ORDER BY tree.key",
        {"call": call_id, "limit": limit},
    ).fetchall()
    calls = [GraphCall(*row) for row in rows]
    if len(calls) == 1 and not calls[0].parent_call:
        found = db.execute("SELECT 1 FROM calls WHERE call_id = ?", (call_id,)).fetchone()
        if found is None:
            return [], []
    inputs = db.execute(
        f"{_TREE} SELECT call_id, idx, status, task_id FROM tree JOIN graph_inputs USING (call_id)"
        " UNION ALL SELECT call_id, idx, status, task_id FROM tree JOIN calls USING (call_id)"
        " JOIN outputs ON outputs.call = calls.key"
        " UNION ALL SELECT call_id, idx, NULL, '' FROM tree JOIN calls USING (call_id)"
        " JOIN inputs ON inputs.call = calls.key ORDER BY 1, 2 LIMIT :limit",
        {"call": call_id, "limit": limit},
    )
    return calls, [GraphInput(*row) for row in inputs]


def forget(db: sqlite3.Connection, call_ids: Sequence[str]) -> None:
    """Drop what is below these calls."""
    for call_id in call_ids:
        below = [
            row[0] for row in db.execute(f"{_TREE} SELECT call_id FROM tree", {"call": call_id, "limit": -1})
        ]
        db.executemany("DELETE FROM graph_inputs WHERE call_id = ?", [(x,) for x in below])
        db.executemany("DELETE FROM graph_calls WHERE call_id = ?", [(x,) for x in below])
