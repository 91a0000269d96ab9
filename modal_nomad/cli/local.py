"""``modal-nomad local``: see and govern the embedded daemon of this user."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from modal_nomad.cli import _client
from modal_nomad.cli._errors import CommandError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="The embedded dispatcher of this machine.",
)

_NOT_RUNNING = "The embedded dispatcher is not running; the next 'modal-nomad run' starts it."
_STOP_SECONDS = 20.0


@app.command()
def status() -> None:
    """Say whether the daemon runs, and what it does."""
    folder = _home()
    if not _runs(folder):
        typer.echo(f"{_NOT_RUNNING} Its home is {folder}.")
        return
    info = _client.request(_connect(folder), "server.status", {})
    containers = info.get("containers", [])
    typer.echo(f"Running: pid {info['pid']}, version {info['version']}, up {_span(info['uptime'])}.")
    typer.echo(f"Home: {folder}. Store: {info['store']}.")
    typer.echo(f"Apps: {info['apps']}. Calls: {info['calls']}. Inputs waiting: {info['backlog']}.")
    typer.echo(f"Containers: {len(containers)}.")
    for one in containers:
        age = _span(max(0.0, time.time() - one["since"])) if one.get("since") else ""
        name = f"{one['app']}.{one['function']}"
        typer.echo(f"  {one['container_id']}  {name}  {one['state']}  {age}  busy {one['busy']}")


@app.command()
def logs(follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what comes.")) -> None:
    """Print the daemon's own log."""
    from modal_nomad._home import LOG

    path = _home() / LOG
    if not path.exists():
        raise CommandError(f"there is no log yet: {path}. {_NOT_RUNNING}")
    with path.open(encoding="utf-8", errors="replace") as file:
        shutil.copyfileobj(file, sys.stdout)
        sys.stdout.flush()
        if follow:
            for text in _growth(file):
                sys.stdout.write(text)
                sys.stdout.flush()


@app.command()
def stop() -> None:
    """Stop the daemon and its containers. Deployed apps come back with the next start."""
    folder = _home()
    if not _stop(folder):
        typer.echo(_NOT_RUNNING)
        return
    typer.echo("Stopped the embedded dispatcher.")


@app.command()
def reset(
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Stop the daemon and delete its home: apps, calls, results, built environments."""
    folder = _home()
    if not yes:
        typer.confirm(f"Delete everything in {folder}?", abort=True)
    _stop(folder)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    typer.echo(f"Deleted the contents of {folder}.")


def _home() -> Path:
    from modal_nomad._home import home

    return home()


def _runs(folder: Path) -> bool:
    from modal_nomad._daemon import answers

    return answers(folder)


def _connect(folder: Path) -> Any:
    """Connect to this home's daemon, whatever server the configuration names."""
    from modal_nomad._home import SOCKET

    os.environ["MODAL_SERVER_URL"] = f"unix://{folder / SOCKET}"
    return _client.connect()


def _stop(folder: Path) -> bool:
    """Stop the daemon: by request, by signal where it does not answer. False when none runs."""
    if not _runs(folder):
        return False
    client = _connect(folder)
    pid = int(_client.request(client, "server.status", {})["pid"])
    try:
        _client.request(client, "server.stop", {})
    except OSError:
        # The daemon may end before its answer is out.
        pass
    except Exception as exc:
        if type(exc).__name__ not in ("ConnectionError", "ClientClosed"):
            raise
    deadline = time.monotonic() + _STOP_SECONDS
    while _is_alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGTERM)
            raise CommandError(
                f"the daemon (pid {pid}) did not stop in {_STOP_SECONDS:.0f} s; sent it SIGTERM."
            )
        time.sleep(0.02)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A child that ended but was not collected (a daemon started by this very process) is gone too.
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def _growth(file: Any) -> Iterator[str]:
    while True:
        text = file.read()
        if text:
            yield text
        else:
            time.sleep(0.2)


def _span(seconds: float) -> str:
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
