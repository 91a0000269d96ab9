"""One connection to PostgreSQL that a thread may block on, and its failures in words."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import asyncpg

from modal_nomad.dispatcher.store._postgresql_schema import PostgresqlDialect, translate
from modal_nomad.dispatcher.store._postgresql_watch import Watch
from modal_nomad.dispatcher.store.base import StoreError, StoreFull
from modal_nomad.dispatcher.store.migrations import STEPS, VERSION

T = TypeVar("T")
SCHEMA = "modal_nomad"
OLDEST = 13
CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 600.0
"""A statement that takes longer is given up, whatever the server says of it."""
BEAT_SECONDS = 10.0
"""A server that does not answer the shortest of statements by then is cut off."""
_DISPATCHER_LOCK = 0x6D6E6D64_00000001
_MIGRATION_LOCK = 0x6D6E6D64_00000002
_PLACE = re.compile(r"\?(\d*)")
_DIALECT = PostgresqlDialect()
_SETTINGS = {
    "search_path": SCHEMA,
    "application_name": "modal-nomad",
    # Short statements, many of them, each planned once and by its index: also while tables are so small
    # that reading them whole looks cheaper, for they grow.
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # The server gives up a dispatcher whose machine is gone, and with it the dispatcher's lock, in seconds.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_SOCKET_OPTIONS = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 10_000,
}
_GONE = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
)


class Away(Exception):
    """There is no connection; another try may get one. The text is a ``StoreError``'s."""


class Rows(list[tuple[Any, ...]]):
    """What a statement returned."""

    def fetchone(self) -> tuple[Any, ...] | None:
        return self[0] if self else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class Session:
    """A connection with an event loop of its own: used by one thread at a time, never by one with a loop.

    Args:
        dsn: ``postgresql://…``.
        read_only: only looks.
    """

    dialect = _DIALECT

    def __init__(self, dsn: str, *, read_only: bool = False) -> None:
        self._dsn = dsn
        self.where = _without_password(dsn)
        self._settings = {**_SETTINGS, **({"default_transaction_read_only": "on"} if read_only else {})}
        self._loop = _new_loop()
        self._connection: Any = None
        self._texts: dict[str, str] = {}
        self._backend: tuple[Any, ...] = ()

    # --- life

    @property
    def connected(self) -> bool:
        """Whether there is a connection, for all that is known."""
        return self._connection is not None and not self._connection.is_closed()

    def connect(self) -> None:
        """Connect and check the server. Raises Away or StoreError."""
        self.drop()
        try:
            self._connection = self._loop.run_until_complete(
                asyncpg.connect(
                    self._dsn,
                    timeout=CONNECT_SECONDS,
                    statement_cache_size=512,
                    max_cached_statement_lifetime=0,
                    server_settings=self._settings,
                )
            )
        except Exception as exc:
            raise self._refused(exc) from exc
        self._watch_network()
        version = self._connection.get_server_version()
        if version.major < OLDEST:
            self.drop()
            raise StoreError(
                f"{self.where} is PostgreSQL {version.major}: the store needs {OLDEST} or newer, upgrade it"
            )
        row = self.execute(
            "SELECT pg_is_in_recovery(), current_setting('server_encoding'),"
            " current_setting('synchronous_commit'), pg_backend_pid()"
        )[0]
        if row[0]:
            self.drop()
            raise Away(
                f"{self.where} is a read-only replica: name the primary, or several hosts with "
                "target_session_attrs=primary"
            )
        if row[1] != "UTF8":
            self.drop()
            raise StoreError(
                f"the database {self.where} has the encoding {row[1]}: create one with ENCODING 'UTF8'"
            )
        if row[2] == "off":
            # What is acknowledged is on the disk, whatever the server's habit.
            self.execute("SET synchronous_commit = on")
        self.former, self._backend = (
            self._backend,
            self.execute("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")[0],
        )

    def _watch_network(self) -> None:
        """Have the kernel give up a server that is cut off, as soon as the server gives us up."""
        transport = getattr(self._connection, "_transport", None)
        found = transport.get_extra_info("socket") if transport is not None else None
        if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
            return
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _SOCKET_OPTIONS.items():
            # Not every system has them all.
            if hasattr(socket, option):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    former: tuple[Any, ...] = ()
    """The server's process for the connection before this one."""

    def drop(self) -> None:
        """Let go of the connection without a word."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def close(self) -> None:
        """End the connection and the loop."""
        if self.connected:
            try:
                self._loop.run_until_complete(self._connection.close(timeout=2.0))
            except Exception:
                self.drop()
        self._connection = None
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def lock(self) -> bool:
        """Take the lock that one dispatcher of a database holds; it is the connection's."""
        return bool(self.execute("SELECT pg_try_advisory_lock(?1)", (_DISPATCHER_LOCK,))[0][0])

    def end_former(self) -> bool:
        """End the connection before this one if the server still has it, and with it its lock."""
        return bool(
            self.former
            and self.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid = ?1 AND backend_start = ?2",
                self.former,
            )
        )

    def beat(self) -> None:
        """Make sure that the server answers. Raises Away, or what asyncpg raises."""
        self._run(lambda db: db.fetch("SELECT 1"), BEAT_SECONDS)

    def migrate(self) -> None:
        """Bring the schema to this program's version. Raises StoreError."""
        try:
            self.script("BEGIN")
            self.execute("SELECT pg_advisory_xact_lock(?1)", (_MIGRATION_LOCK,))
            if self.execute("SELECT to_regclass(?1)", (f"{SCHEMA}.schema_version",))[0][0] is None:
                self.script(
                    f"CREATE SCHEMA IF NOT EXISTS {SCHEMA};"
                    f"CREATE TABLE {SCHEMA}.schema_version (version BIGINT NOT NULL);"
                    f"INSERT INTO {SCHEMA}.schema_version VALUES (0)"
                )
            version = self.execute("SELECT version FROM schema_version")[0][0]
            if version > VERSION:
                raise StoreError(
                    f"the store {self.where} has schema {version}, written by a newer modal-nomad; this one "
                    f"knows {VERSION}: upgrade modal-nomad, or name another database"
                )
            for step in STEPS[version:]:
                self.script(translate(step))
            self.execute("UPDATE schema_version SET version = ?1", (VERSION,))
            self.script("COMMIT")
        except asyncpg.PostgresError as exc:
            raise self.describe(exc) from exc
        finally:
            if self.connected and self._connection.is_in_transaction():
                self.script("ROLLBACK")

    # --- statements

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Run one statement. Raises Away, or what asyncpg raises."""
        text = self._texts.get(sql)
        if text is None:
            text = self._texts[sql] = _numbered(sql)
        return Rows(map(tuple, self._run(lambda db: db.fetch(text, *parameters))))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for many rows of parameters."""
        text = self._texts.get(sql)
        if text is None:
            text = self._texts[sql] = _numbered(sql)
        self._run(lambda db: db.executemany(text, list(rows)))

    def script(self, sql: str) -> None:
        """Run statements without parameters."""
        self._run(lambda db: db.execute(sql))

    def scan(self, sql: str, rows: int = 1000) -> Iterator[tuple[Any, ...]]:
        """Yield a statement's rows as they come; inside a transaction."""
        cursor = self._run(lambda db: _cursor(db, sql))
        while page := self._run(lambda db: cursor.fetch(rows)):
            yield from map(tuple, page)

    def _run(self, statement: Callable[[Any], Coroutine[Any, Any, T]], seconds: float | None = None) -> T:
        connection = self._connection
        if connection is None or connection.is_closed():
            raise Away(self.describe(ConnectionError("the connection is closed")))
        guard = self._loop.call_later(seconds or STATEMENT_SECONDS, connection.terminate)
        watch = Watch(self._loop, connection, self._dsn) if seconds is None else None
        try:
            return self._loop.run_until_complete(statement(connection))
        except Exception as exc:
            if isinstance(exc, _GONE) or connection.is_closed():
                self.drop()
                reason = ConnectionError(watch.reason) if watch is not None and watch.reason else exc
                raise Away(str(self.describe(reason))) from exc
            raise
        finally:
            guard.cancel()
            if watch is not None:
                watch.end()

    # --- words

    def describe(self, exc: BaseException) -> StoreError:
        """Say what happened, and what to do."""
        text = str(exc).split("\n")[0] or type(exc).__name__
        if isinstance(exc, asyncpg.DiskFullError):
            return StoreFull(f"no space left for the store {self.where}: free some disk space there")
        if isinstance(exc, asyncpg.InsufficientPrivilegeError):
            return StoreError(
                f"the store {self.where} refuses its user: {text}; GRANT CREATE ON DATABASE to it, or make "
                f"it the owner of the schema {SCHEMA}"
            )
        if isinstance(exc, _GONE):
            return StoreError(f"the store {self.where} went away ({text}): see that PostgreSQL runs")
        return StoreError(f"the store {self.where} failed: {text}; see PostgreSQL's log")

    def _refused(self, exc: Exception) -> Exception:
        text = str(exc).split("\n")[0] or type(exc).__name__
        if isinstance(exc, asyncpg.InvalidAuthorizationSpecificationError):
            return StoreError(
                f"{self.where} refused the user ({text}): check user and password in `store`, or PGPASSWORD "
                "or PGPASSFILE in the environment"
            )
        if isinstance(exc, asyncpg.InvalidCatalogNameError):
            return StoreError(f"there is no database {self.where} ({text}): create it with createdb")
        if isinstance(exc, asyncpg.InsufficientPrivilegeError):
            return self.describe(exc)
        if isinstance(exc, asyncpg.TooManyConnectionsError):
            return Away(f"{self.where} has no connection left ({text}): raise its max_connections")
        if isinstance(exc, ssl.SSLError):
            return StoreError(f"no TLS connection to {self.where} ({text}): check sslmode and sslrootcert")
        if isinstance(exc, (asyncpg.ClientConfigurationError, ValueError, TypeError)):
            return StoreError(f"`store` cannot be used ({text}): give postgresql://user@host:port/database")
        if isinstance(exc, (asyncio.TimeoutError, TimeoutError)):
            text = f"no answer within {CONNECT_SECONDS:g} s"
        if isinstance(exc, (*_GONE, asyncio.TimeoutError, TimeoutError)):
            return Away(f"no PostgreSQL answers at {self.where} ({text}): start it, or mend `store`")
        return StoreError(f"{self.where} refused the connection: {text}; see PostgreSQL's log")


async def _cursor(connection: Any, sql: str) -> Any:
    return await connection.cursor(sql)


def _numbered(sql: str) -> str:
    count = 0

    def place(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"${match[1] or count}"

    return _PLACE.sub(place, sql)


def _without_password(dsn: str) -> str:
    try:
        parts = urlsplit(dsn)
    except ValueError:
        return "PostgreSQL"
    return f"postgresql://{unquote(parts.netloc.rpartition('@')[2])}{parts.path}"
