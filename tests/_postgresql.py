"""A real PostgreSQL for tests: Debian's programs, a server on a free port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tests._ports import free_ports
from tests.engine_contract._nomad_agent import wait_until

NO_POSTGRESQL = "no PostgreSQL server here (apt-get install postgresql)"
PASSWORD = "of/tests"
PREPARED = "prepared"
"""A database with the schema in it: copying one is quicker than making its tables."""
_PR_SET_PDEATHSIG = 1


def postgresql_programs() -> Path | None:
    """Return the folder of ``initdb`` and ``postgres``, the newest one; None where there is none."""
    found = [x.parent for x in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    found = [x for x in found if (x / "postgres").exists()]
    return max(found, key=lambda x: [int(n) if n.isdigit() else 0 for n in x.parts[-2:]]) if found else None


def _user() -> dict[str, Any]:
    """Say whom the server runs as: it refuses root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("no user but root for a PostgreSQL of tests")


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


@dataclass
class Postgresql:
    """A server.

    Attributes:
        programs: where its programs are.
        folder: its own.
        port: on 127.0.0.1.
    """

    programs: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    _names: Iterator[int] = field(default_factory=count)

    def dsn(self, database: str = "postgres", user: str = "postgres", password: str = PASSWORD) -> str:
        secret = password.replace("/", "%2F")
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def initialize(self) -> None:
        """Make the files of a server, as ``initdb`` does."""
        self._own()
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        self._run("initdb", "-D", "data", "-U", "postgres", "-A", "scram-sha-256", "-N",
                  "--pwfile=password", "-E", "UTF8", "--locale=C.UTF-8")  # fmt: skip

    def copy(self, other: Path) -> None:
        """Take the files that were made for another one."""
        subprocess.run(["cp", "-a", str(other / "data"), str(self.folder)], check=True)
        self._own()

    def _own(self) -> None:
        if os.geteuid() == 0:
            user = _user()
            os.chown(self.folder, user["user"], user["group"])

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / program, *arguments], cwd=self.folder, capture_output=True, text=True, **_user()
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start it and wait until it takes connections. Files outlive a SIGKILL without being synced."""
        log = self.folder / "log"
        options = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off",
            "max_connections": 100, "shared_buffers": "16MB", "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", "data", *(f"-c{k}={v}" for k, v in options.items())],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=_die_with_us,
                **_user(),
            )  # fmt: skip
        wait_until(self._ready, self.process, log)

    def _ready(self) -> bool:
        done = subprocess.run(
            [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        )
        return done.returncode == 0

    def kill(self) -> None:
        """SIGKILL it with all its processes, as a machine's end would."""
        assert self.process is not None
        pids = family(self.process.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(60)

    def stop(self) -> None:
        """Stop it at once: connections are cut."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(60)

    def database(self, template: str = "template1") -> str:
        """Make a database; returns its address."""
        name = f"t{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.dsn(name)

    def prepare(self) -> None:
        """Make the database that others are copies of."""
        from modal_nomad.dispatcher.store.postgresql import PostgresqlStore

        async def migrate() -> None:
            store = PostgresqlStore(self.dsn(PREPARED))
            await store.open()
            await store.close()

        self.execute(f"CREATE DATABASE {PREPARED}")
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(migrate())).result()

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser."""
        import asyncpg

        async def run() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.dsn(database), timeout=60)
            try:
                return [tuple(row) for row in await connection.fetch(statement)]
            finally:
                await connection.close()

        # On a thread: the caller's may have a loop that runs.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(run())).result()


def contents(dsn: str) -> list[tuple[Any, ...]]:
    """Return all rows of all tables of a database."""
    import asyncpg

    async def run() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(dsn, timeout=60)
        try:
            tables = await connection.fetch(
                "SELECT schemaname, tablename FROM pg_tables"
                " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            found: list[tuple[Any, ...]] = []
            for schema, table in tables:
                rows = await connection.fetch(f'SELECT * FROM "{schema}"."{table}"')
                found += [tuple(row) for row in rows]
            return found
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(run())).result()


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(int(x) for x in children)]


def postgresql_files(programs: Path, shared: Path) -> Path:
    """Return a folder with the files of a new server, made once for all processes that name ``shared``."""
    with open(shared / "postgresql.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pristine = shared / "postgresql"
        if not (pristine / "data").exists():
            with _folder() as folder:
                Postgresql(programs, folder, 0).initialize()
                pristine.mkdir(exist_ok=True)
                subprocess.run(["cp", "-a", str(folder / "data"), str(pristine / "half")], check=True)
            (pristine / "half").rename(pristine / "data")
        return pristine


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # Not a folder of pytest's: those are its user's alone.
    folder = Path(tempfile.mkdtemp(prefix="mn-pg-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def postgresql_server(programs: Path, files: Path) -> Iterator[Postgresql]:
    """Yield a running server with nothing in it."""
    with _folder() as folder:
        server = Postgresql(programs, folder, free_ports(1)[0])
        try:
            server.copy(files)
            server.start()
            yield server
        finally:
            server.stop()
