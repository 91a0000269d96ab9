"""A dispatcher of its own for every test session, and one for every test that kills or configures it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from modal_nomad.cli import _client as cli_client
from modal_nomad.client import Client, _session
from tests._postgresql import PREPARED, Postgresql

# A shell that started this in the background has it ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Unbuffered, a program's print may be cut by a container's line; that is for the tests that ask for it.
_SETTINGS = (
    "MODAL_SERVER_URL",
    "MODAL_TOKEN_ID",
    "MODAL_TOKEN_SECRET",
    "MODAL_ENVIRONMENT",
    "MODAL_PROFILE",
    "PYTHONUNBUFFERED",
)


def until(condition: Callable[[], Any], seconds: float = 100.0, what: str = "the condition") -> Any:
    """Return the first true value of ``condition``; fails the test when none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.02)


def age(state: Path) -> None:
    """Make a dispatcher's blobs and bundles so old that they go as soon as nothing refers to them."""
    for path in (*(state / "blobs").glob("??/??/*"), *(state / "code").glob("*")):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (0, 0))


def alive(pid: int) -> bool:
    """Tell whether a process lives; one that ended and was not collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


@dataclass
class Live:
    """A dispatcher's home and what a test does with it."""

    home: Path
    folder: Path

    def request(self, method: str, **args: Any) -> Any:
        """Ask the dispatcher through this process's client."""
        return cli_client.request(Client.from_env(), method, args)

    def status(self) -> dict[str, Any]:
        return dict(self.request("server.status"))

    def kill(self) -> None:
        """SIGKILL the dispatcher and wait for its end."""
        pid = self.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), what="the dispatcher's end")

    def end(self) -> None:
        """End the dispatcher of this home, and this process's clients, who would start it again."""
        _close_clients()
        _end(processes_of(self.home))

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(dedent(text))
        return path

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            "text": True,
            "cwd": self.folder,
            **options,
        }
        return subprocess.Popen([sys.executable, *command], **options)

    def python(self, script: Path, *arguments: str) -> str:
        """Run a user's script and return what it printed."""
        done = self._finish(self.start(str(script), *arguments))
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command-line tool."""
        return self._finish(self.start("-m", "modal_nomad", *arguments))

    def _finish(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        with process:
            try:
                out, err = process.communicate(timeout=200)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"{process.args} did not end:\n{out}\n{err}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _close_clients() -> None:
    # A client that is left open would start the dispatcher again.
    clients = _session.clients()
    for client in clients.values():
        client._close()
    clients.clear()


def _end(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    try:
        until(lambda: not any(map(alive, pids)), 10)
    except AssertionError:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(home: Path) -> set[int]:
    """Find the dispatcher of a home."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"modal_nomad.dispatcher" in words and os.fsencode(home) in b"\0".join(words):
                    found.add(int(entry.name))
    return found


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # A Unix socket's path must be short, which pytest's own folders are not.
    home = Path(tempfile.mkdtemp(prefix="mn-", dir="/tmp"))
    try:
        yield home
    finally:
        _close_clients()
        _end(processes_of(home))
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def new_home() -> Iterator[Path]:
    """A home that programs and this process's client use meanwhile."""
    with pytest.MonkeyPatch.context() as patch, _folder() as home:
        for name in _SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("MODAL_NOMAD_HOME", str(home))
        patch.setenv("MODAL_CONFIG_PATH", str(home / "modal.toml"))
        yield home


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module that says ``ON_BOTH_STORES = True`` on SQLite and on PostgreSQL."""
    if getattr(metafunc.module, "ON_BOTH_STORES", False) and "_store" in metafunc.fixturenames:
        metafunc.parametrize("_store", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def _store(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="session")
def _shared_home() -> Iterator[Path]:
    with new_home() as home:
        yield home


@pytest.fixture(scope="session")
def _home_on_postgresql(_shared_home: Path, postgresql: Postgresql) -> Iterator[Path]:
    with _folder() as home:
        _keep_in(home, postgresql)
        yield home


def _keep_in(home: Path, postgresql: Postgresql) -> None:
    (home / "local.toml").write_text(f'store = "{postgresql.database(PREPARED)}"\n')


@pytest.fixture
def live(
    _shared_home: Path,
    _store: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Live]:
    """The session's dispatcher; tests leave it as they found it."""
    home = _shared_home
    if _store == "postgresql":
        home = request.getfixturevalue("_home_on_postgresql")
    # There is a session's home for each store.
    monkeypatch.setenv("MODAL_NOMAD_HOME", str(home))
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(home / "modal.toml"))
    if _store == "postgresql":
        _close_clients()
    yield Live(home, tmp_path)
    if _store == "postgresql":
        _close_clients()


@pytest.fixture
def own(tmp_path: Path, _store: str, request: pytest.FixtureRequest) -> Iterator[Live]:
    """A dispatcher for this test alone, which may kill it."""
    with new_home() as home:
        if _store == "postgresql":
            _keep_in(home, request.getfixturevalue("postgresql"))
        yield Live(home, tmp_path)


@contextlib.contextmanager
def serving(own: Live, patch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a dispatcher in the foreground with settings of one's own, and point the client at it."""
    started: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> subprocess.Popen[str]:
        defaults = {
            "listen": f"unix://{own.home}/d.sock",
            "home": str(own.home / "state"),
            "engine": "local",
            "auth": "none",
        }
        lines = [f"{key} = {_toml(value)}" for key, value in {**defaults, **settings}.items()]
        config = own.home / "dispatcher.toml"
        config.write_text("\n".join(lines))
        reader, writer = os.pipe()
        with (own.home / "dispatcher.log").open("ab") as log:
            process = own.start(
                "-m",
                "modal_nomad.dispatcher",
                "--config",
                str(config),
                "--ready-fd",
                str(writer),
                pass_fds=(writer,),
                stdout=log,
                stderr=log,
            )
        os.close(writer)
        started.append(process)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read(1) == b"1", (own.home / "dispatcher.log").read_text()
        patch.setenv("MODAL_SERVER_URL", str({**defaults, **settings}["listen"]))
        return process

    try:
        yield start
    finally:
        _close_clients()
        for process in started:
            process.terminate()
            process.wait(100)


@pytest.fixture
def serve(own: Live, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The same for one test."""
    with serving(own, monkeypatch) as start:
        yield start


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{k} = {_toml(v)}' for k, v in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
