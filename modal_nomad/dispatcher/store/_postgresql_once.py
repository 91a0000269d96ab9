"""Writes of Queues that are carried out once, for many clients by the same few statements."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from modal_nomad.dispatcher.store._sql import Connection
from modal_nomad.dispatcher.store.objects import Item, Kept, Ticket


class Move(NamedTuple):
    """What ``queue_put`` or ``queue_take`` was called with, when, and what its client is told."""

    ticket: Ticket
    now: float
    object_id: str
    answer: Kept
    put: Sequence[tuple[Item, bytes]] = ()
    take: Collection[int] = ()


def move(db: Connection, moves: list[Move]) -> list[Kept]:
    """Put and take items, but for requests that were carried out before; returns the answers to all."""
    asked = list({x.ticket[:2] for x in moves})
    rows = db.execute(
        "SELECT client, number, value, payload, flags FROM object_answers WHERE (client, number) IN"
        " (SELECT * FROM unnest(CAST(?1 AS TEXT[]), CAST(?2 AS BIGINT[])))",
        _columns(asked, 2),
    )
    answers: dict[tuple[str, int], Kept] = {
        (client, number): Kept(json.loads(value), payload, flags)
        for client, number, value, payload, flags in rows
    }
    fresh: list[Move] = []
    for one in moves:
        if one.ticket[:2] not in answers:
            answers[one.ticket[:2]] = one.answer
            fresh.append(one)
    # What is taken was put by an earlier write, or by one of these.
    put = [
        (item.number, x.object_id, item.partition, payload, item.expires_at)
        for x in fresh
        for item, payload in x.put
    ]
    if put:
        db.execute(
            "INSERT INTO queue_items (number, object_id, part, payload, expires_at) SELECT * FROM"
            " unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS TEXT[]), CAST(?3 AS TEXT[]), CAST(?4 AS BYTEA[]),"
            " CAST(?5 AS DOUBLE PRECISION[]))",
            _columns(put, 5),
        )
    taken = [(number, x.object_id) for x in fresh for number in x.take]
    if taken:
        db.execute(
            "DELETE FROM queue_items USING unnest(CAST(?1 AS BIGINT[]), CAST(?2 AS TEXT[]))"
            " AS gone(number, object_id)"
            " WHERE queue_items.number = gone.number AND queue_items.object_id = gone.object_id",
            _columns(taken, 2),
        )
    if fresh:
        needed: dict[str, int] = {}
        for one in fresh:
            needed[one.ticket.client] = max(needed.get(one.ticket.client, 0), one.ticket.answered)
        db.execute(
            "DELETE FROM object_answers USING unnest(CAST(?1 AS TEXT[]), CAST(?2 AS BIGINT[]))"
            " AS needed(client, number)"
            " WHERE object_answers.client = needed.client AND object_answers.number < needed.number",
            (list(needed), list(needed.values())),
        )
        confirmed = [(x.ticket.client, number) for x in fresh for number in x.ticket.confirmed]
        if confirmed:
            db.execute(
                "DELETE FROM object_answers USING unnest(CAST(?1 AS TEXT[]), CAST(?2 AS BIGINT[]))"
                " AS gone(client, number)"
                " WHERE object_answers.client = gone.client AND object_answers.number = gone.number",
                _columns(confirmed, 2),
            )
        db.execute(
            "INSERT INTO object_answers (client, number, at, value, payload, flags) SELECT *, 0 FROM"
            " unnest(CAST(?1 AS TEXT[]), CAST(?2 AS BIGINT[]), CAST(?3 AS DOUBLE PRECISION[]),"
            " CAST(?4 AS TEXT[]), CAST(?5 AS BYTEA[]))",
            _columns(
                [(*x.ticket[:2], x.now, json.dumps(x.answer.value), x.answer.payload) for x in fresh],
                5,
            ),
        )
    return [answers[x.ticket[:2]] for x in moves]


def _columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    return [[row[x] for row in rows] for x in range(count)]
