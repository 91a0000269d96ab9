"""Room ahead in SQLite's log changes how long writes take, and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modal_nomad.dispatcher.store._wal import Room


def connect(path: Path) -> sqlite3.Connection:
    made = sqlite3.connect(path, isolation_level=None, timeout=0)
    made.execute("PRAGMA journal_mode = WAL")
    return made


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(connect(tmp_path / "x.db")) as made:
        made.execute("CREATE TABLE x (n INTEGER)")
        yield made


def size(tmp_path: Path) -> int:
    return (tmp_path / "x.db-wal").stat().st_size


def count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM x").fetchone()[0])


def test_room_is_made_once_and_moves_on_with_what_is_used(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    room = Room(tmp_path / "x.db", database)
    room.make()
    first = size(tmp_path)
    assert first > 8 << 20
    room.make()
    assert size(tmp_path) == first
    database.execute("CREATE TABLE y AS SELECT zeroblob(6000000) AS z")
    room.make()
    assert size(tmp_path) > first


def test_what_is_written_into_the_room_is_there_after_a_kill(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    Room(tmp_path / "x.db", database).make()
    database.executemany("INSERT INTO x VALUES (?)", [(n,) for n in range(100)])
    # As a kill leaves them: the log with its room, and no index of it.
    for end in ("", "-wal"):
        (tmp_path / f"copy.db{end}").write_bytes((tmp_path / f"x.db{end}").read_bytes())
    copy = connect(tmp_path / "copy.db")
    assert count(copy) == 100 and copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    Room(tmp_path / "copy.db", copy).make()
    copy.execute("INSERT INTO x VALUES (1)")
    assert count(copy) == 101
    copy.close()


def test_another_programs_writes_and_ours_take_turns(tmp_path: Path, database: sqlite3.Connection) -> None:
    other = connect(tmp_path / "x.db")
    room = Room(tmp_path / "x.db", database)
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO x VALUES (1)")
    before = size(tmp_path)
    room.make()
    assert size(tmp_path) == before and not database.in_transaction
    other.execute("COMMIT")
    room.make()
    other.execute("INSERT INTO x VALUES (2)")
    database.execute("INSERT INTO x VALUES (3)")
    assert count(database) == 3 == count(other) and size(tmp_path) > before
    other.close()
