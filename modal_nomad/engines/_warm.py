"""The daemon's side of a warm interpreter: commands out, events in, all on the event loop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modal_nomad.engines._local_job import base_environment
from modal_nomad.engines.base import EngineError

_PROGRAM = pathlib.Path(__file__).with_name("_zygote.py")


@dataclass(frozen=True)
class WarmKey:
    """What a warm interpreter is: containers of equal keys may be forked from one.

    Attributes:
        python: path of the interpreter.
        runtime: directory with the worker, or None for a launcher of plain commands.
        packages: True when the interpreter is an environment whose packages must be seen.
    """

    python: str
    runtime: str | None
    packages: bool = False


@dataclass(frozen=True)
class Spawn:
    """One process to start. ``argv`` None means the worker, forked without an exec."""

    id: str
    env: Mapping[str, str]
    cwd: str
    argv: Sequence[str] | None = None
    path: Sequence[str] = ()
    program: str = ""
    memory: int | None = None
    cpus: Sequence[int] | None = None
    groups: Sequence[str] = ()


class WarmInterpreter:
    """One zygote process.

    Args:
        key: what to run.
        log: file that receives what the process itself says on stderr.
        on_event: called on the loop with ``started``, ``exit`` and ``failed`` messages.
        on_lost: called once on the loop when the process is gone, with the reason in words.
    """

    def __init__(
        self,
        key: WarmKey,
        log: pathlib.Path,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[WarmInterpreter, str], None],
    ) -> None:
        self.key = key
        self.active: set[str] = set()
        self.ready = asyncio.Event()
        self.lost = False
        self._broken = ""
        self._on_event = on_event
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._input = b""
        self._output: collections.deque[tuple[memoryview, list[int]]] = collections.deque()
        self._process, self._sock = self._launch(log)
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def _launch(self, log: pathlib.Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        argv = [self.key.python, "-I", "-X", "utf8"]
        if not self.key.packages:
            argv.append("-S")
        argv += [str(_PROGRAM), str(theirs.fileno())]
        if self.key.runtime is not None:
            argv.append(self.key.runtime)
        try:
            with theirs, log.open("ab") as stderr:
                # On the loop's own thread: the kernel ties a parent-death signal to the starting thread.
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=[theirs.fileno()],
                    env=base_environment(),
                    start_new_session=True,
                )
        except OSError as exc:
            ours.close()
            raise EngineError(f"cannot start {self.key.python}: {exc.strerror}; install that Python") from exc
        return process, ours

    @property
    def pid(self) -> int:
        """Process id of the warm interpreter."""
        return self._process.pid

    def spawn(self, spawn: Spawn, fds: Sequence[int]) -> None:
        """Ask for a process. Takes ownership of ``fds``: (stdin,) stdout, stderr."""
        self.active.add(spawn.id)
        message = {
            "t": "spawn",
            "id": spawn.id,
            "env": dict(spawn.env),
            "cwd": spawn.cwd,
            "argv": list(spawn.argv) if spawn.argv is not None else None,
            "path": list(spawn.path),
            "program": spawn.program,
            "memory": spawn.memory,
            "cpus": list(spawn.cpus) if spawn.cpus else None,
            "groups": list(spawn.groups),
            "fds": len(fds),
        }
        self._send(message, list(fds))

    def kill(self, process_id: str, number: int, *, group: bool) -> None:
        """Signal a process of ours, or its whole group; one that has ended is no error."""
        self._send({"t": "kill", "id": process_id, "signal": int(number), "group": group}, [])

    def _send(self, message: dict[str, Any], fds: list[int]) -> None:
        if self.lost:
            _close_all(fds)
            return
        data = json.dumps(message).encode()
        self._output.append((memoryview(struct.pack("!I", len(data)) + data), fds))
        if len(self._output) == 1:
            self._writable()

    def _writable(self) -> None:
        while self._output:
            data, fds = self._output[0]
            try:
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
                return
            except OSError:
                # The reader sees the end of the stream and reports it, once and in order.
                break
            _close_all(fds)
            if sent < len(data):
                self._output[0] = (data[sent:], [])
            else:
                self._output.popleft()
        if not self._output:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone()
            return
        self._input += data
        while len(self._input) >= 4:
            size = struct.unpack_from("!I", self._input)[0]
            if len(self._input) < 4 + size:
                break
            message = json.loads(self._input[4 : 4 + size])
            self._input = self._input[4 + size :]
            self._handle(message)

    def _handle(self, message: dict[str, Any]) -> None:
        kind = message["t"]
        if kind == "ready":
            self.ready.set()
        elif kind == "broken":
            self._broken = message["error"]
        else:
            if kind in ("exit", "failed"):
                self.active.discard(message["id"])
            self._on_event(message)

    def _gone(self) -> None:
        if self.lost:
            return
        self._release()
        reason = f"the worker could not be imported: {self._broken}" if self._broken else ""
        self._on_lost(self, reason or "the warm interpreter it was forked from ended")

    def _release(self) -> None:
        self.lost = True
        self.ready.set()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._output:
            _close_all(fds)
        self._output.clear()

    @property
    def broken(self) -> bool:
        """True when the worker could not be imported: what was asked of it failed and was not lost."""
        return bool(self._broken)

    async def wait(self) -> None:
        """Reap the process; kill it when it does not end by itself."""
        try:
            await asyncio.to_thread(self._process.wait, 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    async def close(self) -> None:
        """End the process and, with it, every container forked from it."""
        if not self.lost:
            self._release()
        with contextlib.suppress(ProcessLookupError):
            # A stopped process would not notice that the other end has closed.
            self._process.send_signal(signal.SIGCONT)
        await self.wait()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
