"""Commands run inside local containers: their input and output by files, their end by the launcher's word."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modal_nomad.engines._local_container import LocalContainer
from modal_nomad.engines._local_files import read_all, write_all
from modal_nomad.engines._warm import Spawn, WarmInterpreter
from modal_nomad.engines.base import EngineError, ExecResult


class Commands:
    """The commands that run now, by process id."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Future[int]] = {}
        self._numbers = itertools.count()

    async def run(
        self, launcher: WarmInterpreter, container: LocalContainer, command: Sequence[str], stdin: bytes
    ) -> ExecResult:
        """Run a command in a container's directory and environment, to its end."""
        process_id = f"{container.request.container_id}/{next(self._numbers)}"
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            await asyncio.to_thread(write_all, files[0], stdin)
            self._running[process_id] = future
            container.commands.add(process_id)
            try:
                doors = container.group.doors if container.group is not None else ()
                spawn = Spawn(
                    process_id, container.env, str(container.directory), argv=list(command), groups=doors
                )
                launcher.spawn(spawn, [os.dup(x.fileno()) for x in files])
                code = await future
            finally:
                del self._running[process_id]
                container.commands.discard(process_id)
                if not future.done() or future.cancelled():
                    launcher.kill(process_id, signal.SIGKILL, group=True)
            stdout, stderr = [await asyncio.to_thread(read_all, x) for x in files[1:]]
        return ExecResult(code, stdout, stderr)

    def take(self, message: Mapping[str, Any]) -> bool:
        """Take a launcher's message; False when it is not of a command."""
        future = self._running.get(message["id"])
        if future is None:
            return False
        if message["t"] == "exit" and not future.done():
            number = message["signal"]
            future.set_result(message["code"] if number is None else 128 + number)
        elif message["t"] == "failed" and not future.done():
            future.set_exception(EngineError(message["error"]))
        return True

    def fail(self, process_ids: Iterable[str], reason: str) -> None:
        """End commands whose launcher is gone."""
        for process_id in process_ids:
            future = self._running.get(process_id)
            if future is not None and not future.done():
                future.set_exception(EngineError(reason))

    def close(self) -> None:
        """End all commands."""
        self.fail(list(self._running), "the engine was closed; connect again")
