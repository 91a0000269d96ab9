"""Call graphs in SQL: the calls that inputs made, and how their inputs ended."""

from __future__ import annotations

from collections.abc import Sequence

from modal_nomad.dispatcher.store._sql import ALL, Connection, upsert
from modal_nomad.dispatcher.store.base import GraphCall, GraphInput


def _tree(db: Connection) -> str:
    return (
        f"WITH RECURSIVE walk(key, call_id) AS (SELECT CAST(0 AS BIGINT), {db.dialect.text('?1')} UNION"
        " SELECT g.key, g.call_id FROM graph_calls g JOIN walk ON g.parent_call = walk.call_id),"
        " tree AS (SELECT key, call_id FROM walk LIMIT ?2)"
    )


def write(db: Connection, calls: Sequence[GraphCall], inputs: Sequence[GraphInput]) -> None:
    """Keep calls, and what is known of inputs by now."""
    db.executemany(
        "INSERT INTO graph_calls (call_id, parent_call, parent, name, module) VALUES (?,?,?,?,?)"
        " ON CONFLICT DO NOTHING",
        calls,
    )
    db.executemany(upsert("graph_inputs", "call_id, idx, status, task_id", 2), inputs)


def read(db: Connection, call_id: str, limit: int) -> tuple[list[GraphCall], list[GraphInput]]:
    """Return a call and all below it, parents first, and their inputs; nothing for an unknown call."""
    rows = db.execute(
        f"{_tree(db)} SELECT tree.call_id, coalesce(parent_call, ''), coalesce(parent, ''),"
        " coalesce(name, ''), coalesce(module, '')"
        " FROM tree LEFT JOIN graph_calls USING (call_id) ORDER BY tree.key",
        (call_id, limit),
    ).fetchall()
    calls = [GraphCall(*row) for row in rows]
    if len(calls) == 1 and not calls[0].parent_call:
        found = db.execute("SELECT 1 FROM calls WHERE call_id = ?", (call_id,)).fetchone()
        if found is None:
            return [], []
    inputs = db.execute(
        f"{_tree(db)} SELECT call_id, idx, status, task_id FROM tree JOIN graph_inputs USING (call_id)"
        " UNION ALL SELECT call_id, idx, status, task_id FROM tree JOIN calls USING (call_id)"
        " JOIN outputs ON outputs.call = calls.key"
        " UNION ALL SELECT call_id, idx, NULL, '' FROM tree JOIN calls USING (call_id)"
        " JOIN inputs ON inputs.call = calls.key ORDER BY 1, 2 LIMIT ?2",
        (call_id, limit),
    )
    return calls, [GraphInput(*row) for row in inputs]


def forget(db: Connection, call_ids: Sequence[str]) -> None:
    """Drop what is below these calls."""
    for call_id in call_ids:
        below = [row[0] for row in db.execute(f"{_tree(db)} SELECT call_id FROM tree", (call_id, ALL))]
        db.executemany("DELETE FROM graph_inputs WHERE call_id = ?", [(x,) for x in below])
        db.executemany("DELETE FROM graph_calls WHERE call_id = ?", [(x,) for x in below])
