"""Starting the embedded dispatcher: one a user, by whichever client needs it first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from ._home import LOCK, LOG, SOCKET
from .config import config
from .exception import ConnectionError

_START_SECONDS = 30.0
_END_SECONDS = 5.0


def answers(folder: Path) -> bool:
    """Tell whether a dispatcher listens on this home's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(folder / SOCKET))
        except OSError:
            return False
    return True


def ensure(folder: Path) -> str:
    """Return the server URL of this home's dispatcher, having started it where none listens.

    Raises:
        ConnectionError: it does not start; the text holds the last line of its log.
    """
    url = f"unix://{folder / SOCKET}"
    if len(os.fsencode(folder / SOCKET)) > 100:
        raise ConnectionError(
            f"the path {folder} is too long for a Unix socket: set MODAL_NOMAD_HOME to a shorter one"
        )
    if answers(folder):
        return url
    with open(folder / LOCK, "a+b") as lock:
        # Held while starting only: clients that come together start one dispatcher, not several.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answers(folder):
            _start(folder)
    return url


def _start(folder: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "modal_nomad.dispatcher",
                "--home",
                str(folder),
                "--ready-fd",
                str(writer),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            # The daemon writes one byte when it listens; its end without one closes the pipe.
            said = pipe.read(1) if _readable(pipe.fileno(), _START_SECONDS) else None
        if said == b"":
            # Else it would stay a zombie until this program ends.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
    finally:
        # It may live on by itself; this silences the interpreter's reminder that a child was not awaited.
        process.returncode = 0
    if said != b"1":
        raise ConnectionError(
            f"the embedded dispatcher does not start: {_last_line(folder / LOG)} (its log is {folder / LOG})"
        )


def _environment() -> dict[str, str]:
    # The daemon serves every program of this user: what one of them has set for itself is not for it.
    shared = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_") or k == "MODAL_LOGLEVEL"}
    ours = {"MODAL_CLIENT_GRACE": str(config["client_grace"]), "MODAL_DURABILITY": config["durability"]}
    return {**shared, **ours}


def _readable(descriptor: int, seconds: float) -> bool:
    import select

    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it left no message"
