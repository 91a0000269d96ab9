"""The seam between the SQL that is written once and the databases that run it.

Statements are plain SQL with ``?`` or ``?1`` for parameters. What the databases say differently is a word of
the connection's ``Dialect``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
ALL = 1 << 62
"""A limit that is none."""


class Cursor(Protocol):
    """The rows of one statement."""

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """What an operation sees of a database: inside a transaction, and on a thread that may block."""

    @property
    def dialect(self) -> Dialect: ...

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor: ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Any: ...


class Dialect:
    """What SQLite says; other databases override it.

    ``same``, ``each``, ``beyond``, ``order`` and ``target`` are for columns of long bytes (keys of Dicts,
    paths), whose index may have to be one over something shorter.
    """

    def among(self, column: str, numbers: str) -> str:
        """Return the condition that a column is one of the whole numbers in a JSON parameter."""
        return f"{column} IN (SELECT value FROM json_each({numbers}))"

    def text(self, value: str) -> str:
        """Return a parameter that is to be a column of text."""
        return f"CAST({value} AS TEXT)"

    def same(self, column: str, value: str) -> str:
        """Return the condition that a column is a parameter."""
        return f"{column} = {value}"

    def each(self, columns: str, table: str, where: str, column: str, values: Sequence[str]) -> str:
        """Return the query for the rows of which a column is one of some parameters."""
        return f"SELECT {columns} FROM {table} WHERE {where} AND {column} IN ({', '.join(values)})"

    def beyond(self, columns: Sequence[str], sign: str, values: Sequence[str]) -> str:
        """Compare columns, of which the last one is long, with parameters."""
        if len(columns) == 1:
            return f"{columns[0]} {sign} {values[0]}"
        return f"({', '.join(columns)}) {sign} ({', '.join(values)})"

    def order(self, column: str) -> str:
        """Return how to order by a column."""
        return column

    def target(self, *columns: str) -> str:
        """Return the unique columns that an upsert is about, of which the last one is long."""
        return ", ".join(columns)


def upsert(table: str, columns: str, keys: int) -> str:
    """Return a statement that writes a row, replacing the one with the same first ``keys`` columns."""
    names = [x.strip() for x in columns.split(",")]
    rest = ", ".join(f"{x} = excluded.{x}" for x in names[keys:])
    return (
        f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(names))})"
        f" ON CONFLICT ({', '.join(names[:keys])}) DO UPDATE SET {rest}"
    )


class SqlPart(abc.ABC):
    """A part of a store that is written in SQL.

    An operation may be run again after it failed: it changes nothing but the database.
    """

    _clock: Callable[[], float]

    @abc.abstractmethod
    async def _write(self, operation: Callable[[Connection], T]) -> T:
        """Run an operation that writes; returns when it is on the disk."""

    @abc.abstractmethod
    async def _look(self, operation: Callable[[Connection], T]) -> T:
        """Run an operation that only reads."""

    async def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return await self._look(lambda db: db.execute(query, parameters).fetchall())

    async def _execute(self, statement: str, parameters: Sequence[Any]) -> None:
        def write(db: Connection) -> None:
            db.execute(statement, parameters)

        await self._write(write)
