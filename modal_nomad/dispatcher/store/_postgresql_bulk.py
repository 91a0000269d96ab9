"""What a PostgreSQL store writes most, for many callers by the same few statements."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from modal_nomad.dispatcher.store._sql import Connection
from modal_nomad.dispatcher.store.base import StoredInput, StoredOutput


class NewInputs(NamedTuple):
    """What ``add_inputs`` was called with, and when."""

    call_id: str
    function_id: str
    inputs: Sequence[StoredInput]
    kind: str
    now: float
    num_inputs: int | None
    expires_at: float | None
    method: str
    environment: str


class NewOutputs(NamedTuple):
    """What ``add_outputs`` was called with."""

    call_id: str
    outputs: Sequence[StoredOutput]
    expires_at: float | None


def add_inputs(db: Connection, writes: list[NewInputs]) -> list[Collection[int]]:
    """Accept inputs of calls; returns which were answered already."""
    calls: dict[str, list[Any]] = {}
    for write in writes:
        call = calls.setdefault(
            write.call_id,
            [
                write.call_id,
                write.function_id,
                write.kind,
                write.now,
                None,
                None,
                write.method,
                write.environment,
            ],
        )
        if write.num_inputs is not None:
            call[4] = write.num_inputs
        if write.expires_at is not None:
            call[5] = write.expires_at
    made = db.execute(
        "INSERT INTO calls AS c (call_id, function_id, kind, created_at, num_inputs, expires_at, method,"
        " environment)"
        " SELECT * FROM unnest(CAST(?1 AS TEXT[]), CAST(?2 AS TEXT[]), CAST(?3 AS TEXT[]),"
        " CAST(?4 AS DOUBLE PRECISION[]), CAST(?5 AS BIGINT[]), CAST(?6 AS DOUBLE PRECISION[]),"
        " CAST(?7 AS TEXT[]), CAST(?8 AS TEXT[])) ON CONFLICT (call_id) DO UPDATE SET"
        " num_inputs = coalesce(excluded.num_inputs, c.num_inputs),"
        # A row without an older version was made just now.
        " expires_at = coalesce(excluded.expires_at, c.expires_at) RETURNING call_id, key, xmax = 0",
        list(zip(*calls.values(), strict=True)),
    ).fetchall()
    keys = {call_id: key for call_id, key, _ in made}
    known = {call_id for call_id, _, fresh in made if not fresh}
    answered: dict[str, set[int]] = {}
    again = [(keys[x.call_id], item.index) for x in writes if x.call_id in known for item in x.inputs]
    if again:
        found = db.execute(
            "SELECT call, idx FROM outputs WHERE (call, idx) IN"
            " (SELECT * FROM unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS BIGINT[])))",
            _columns(again, 2),
        )
        names = {key: call_id for call_id, key in keys.items()}
        for key, index in found:
            answered.setdefault(names[key], set()).add(index)
    rows = [
        (keys[x.call_id], item.index, item.payload, item.flags, item.losses, item.attempts)
        for x in writes
        for item in x.inputs
        if item.index not in answered.get(x.call_id, ())
    ]
    if rows:
        db.execute(
            "INSERT INTO inputs (call, idx, payload, flags, losses, attempts) SELECT * FROM"
            " unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS BIGINT[]), CAST(?3 AS BYTEA[]),"
            " CAST(?4 AS BIGINT[]), CAST(?5 AS BIGINT[]), CAST(?6 AS BIGINT[]))"
            " ON CONFLICT DO NOTHING",
            _columns(rows, 6),
        )
    return [
        frozenset(x.index for x in write.inputs) & answered[write.call_id]
        if write.call_id in answered
        else ()
        for write in writes
    ]


def add_outputs(db: Connection, writes: list[NewOutputs]) -> list[None]:
    """Keep answers; the first answer to an input stands. Unknown calls are ignored."""
    keys: dict[str, int] = dict(
        db.execute(
            "SELECT call_id, key FROM calls WHERE call_id = ANY(CAST(?1 AS TEXT[]))",
            (list({x.call_id for x in writes}),),
        ).fetchall()
    )
    rows = [
        (keys[x.call_id], item.index, item.status, item.payload, item.flags, item.task_id)
        for x in writes
        if x.call_id in keys
        for item in x.outputs
    ]
    if rows:
        db.execute(
            "INSERT INTO outputs (call, idx, status, payload, flags, task_id) SELECT * FROM"
            " unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS BIGINT[]), CAST(?3 AS BIGINT[]), CAST(?4 AS BYTEA[]),"
            " CAST(?5 AS BIGINT[]), CAST(?6 AS TEXT[])) ON CONFLICT DO NOTHING",
            _columns(rows, 6),
        )
        db.execute(
            "DELETE FROM inputs USING unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS BIGINT[])) AS done(call, idx)"
            " WHERE inputs.call = done.call AND inputs.idx = done.idx",
            _columns(rows, 6)[:2],
        )
    expiries = {
        keys[x.call_id]: x.expires_at for x in writes if x.call_id in keys and x.expires_at is not None
    }
    if expiries:
        db.execute(
            "UPDATE calls SET expires_at = later.at"
            " FROM unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS DOUBLE PRECISION[])) AS later(key, at)"
            " WHERE calls.key = later.key",
            (list(expiries), list(expiries.values())),
        )
    return [None] * len(writes)


def _columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    return [[row[x] for row in rows] for x in range(count)]
