"""Containers of this machine's runtime: started, read, signalled, seen to their end, and left to nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modal_nomad.engines._docker_api import DockerAPI, DockerError
from modal_nomad.engines._leash import clear
from modal_nomad.engines._local_runtimes import Runtime, registry_credentials
from modal_nomad.engines.base import EngineError

_LEASH = pathlib.Path(__file__).with_name("_leash.py")
_MARKER = "runtime.json"
_HOME_LABEL = "modal-nomad.home"
_ENGINE_LABEL = "modal-nomad.engine"
_LAST_WORDS = 5.0
_STARTS_WITHIN = 20.0
_PODMANS_OWN = 32768
"""Processes that a Podman which serves its socket allows itself at most."""
_NO_GPU_DRIVER = "could not select device driver"


class ImageMissing(EngineError):
    """An image is not on this machine, and its registry does not give it."""


@dataclass
class _Run:
    """One container. ``signals`` are those that came before it had started."""

    process_id: str
    body: dict[str, Any]
    logs: Sequence[int]
    task: asyncio.Task[None] | None = None
    container: str = ""
    started: bool = False
    pulling: bool = False
    signals: list[int] = field(default_factory=list)


class DockerContainers:
    """All containers that an engine has on one runtime.

    Args:
        runtime: which.
        home: the engine's directory; containers are known by it.
        on_event: gets ``pulling``, ``started``, ``exit`` and ``failed`` messages, as warm interpreters send.
    """

    def __init__(
        self, runtime: Runtime, home: pathlib.Path, on_event: Callable[[dict[str, Any]], None]
    ) -> None:
        self._runtime = runtime
        self._home = home
        self._on_event = on_event
        self._api = DockerAPI(runtime.socket, runtime.name)
        self._engine = uuid.uuid4().hex
        self._runs: dict[str, _Run] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._leash: subprocess.Popen[bytes] | None = None
        self._opening: asyncio.Future[None] | None = None

    @property
    def labels(self) -> dict[str, str]:
        """What every container of this engine is labelled with."""
        return {_HOME_LABEL: str(self._home), _ENGINE_LABEL: self._engine}

    async def open(self) -> None:
        """See that the runtime answers, and that its containers will not outlive this process.

        Raises:
            EngineError: it does not.
        """
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.ensure_future(self._open())
        # Shielded: whoever is stopped while it waits must not stop the others.
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        marker = {"socket": self._runtime.socket, "command": list(self._runtime.command)}
        await asyncio.to_thread((self._home / _MARKER).write_text, json.dumps(marker))
        if self._leash is None or self._leash.poll() is not None:
            self._leash = _leash(self._runtime, f"{_ENGINE_LABEL}={self._engine}", self._home)
        deadline = time.monotonic() + (_STARTS_WITHIN if self._runtime.command else 0)
        while True:
            try:
                await self._api.ping()
                return
            except DockerError:
                if time.monotonic() >= deadline or self._leash.poll() is not None:
                    raise
            await asyncio.sleep(0.02)

    def spawn(self, process_id: str, body: dict[str, Any], logs: Sequence[int]) -> None:
        """Start a container; takes ownership of the two descriptors of ``logs``."""
        run = _Run(process_id, body, logs)
        self._runs[process_id] = run
        run.task = asyncio.ensure_future(self._live(run))

    def kill(self, process_id: str, number: int, *, group: bool) -> None:
        """Signal a container; one that has ended is no error. ``group`` ends all of it in any case."""
        run = self._runs.get(process_id)
        if run is None:
            return
        if run.pulling and run.task is not None:
            # A large image takes long to come, and nothing of the container is there yet.
            run.task.cancel()
            del self._runs[process_id]
            self._on_event({"t": "exit", "id": process_id, "code": 0, "signal": None, "oom": False})
            return
        if not run.started:
            run.signals.append(number)
            return
        self._background(self._signal(run, number))

    async def exec(self, process_id: str, command: Sequence[str], stdin: bytes) -> tuple[int, bytes, bytes]:
        """Run a command inside a container; returns its exit code and what it wrote."""
        run = self._runs.get(process_id)
        if run is None:
            raise EngineError(f"container {process_id} has ended; it has to run for this")
        return await self._api.exec(run.container, command, stdin)

    async def usage(self, process_id: str) -> tuple[float, int]:
        """Return the processor seconds used and the bytes of memory in use."""
        run = self._runs.get(process_id)
        if run is None:
            raise EngineError(f"container {process_id} has ended; it has to run for this")
        return await self._api.usage(run.container)

    async def disk_use(self, process_id: str) -> int:
        """Return the bytes that a container has written to its own file system."""
        run = self._runs.get(process_id)
        if run is None:
            return 0
        try:
            return int((await self._api.inspect(run.container, size=True)).get("SizeRw") or 0)
        except DockerError:
            # It has just ended, or the runtime is slow; whoever asks asks again.
            return 0

    async def close(self) -> None:
        """Remove every container, and be done with the runtime."""
        runs = list(self._runs.values())
        for run in runs:
            if run.task is not None:
                run.task.cancel()
        await asyncio.gather(*(x.task for x in runs if x.task is not None), return_exceptions=True)
        await asyncio.gather(*self._removals, return_exceptions=True)
        await self._api.close()
        if self._leash is not None:
            assert self._leash.stdin is not None
            self._leash.stdin.close()
            # It looks once more for what was made in the same moment.
            if await asyncio.to_thread(self._leash.wait) == 0:
                (self._home / _MARKER).unlink(missing_ok=True)

    async def _live(self, run: _Run) -> None:
        attached: asyncio.Task[None] | None = None
        try:
            await self.open()
            await self._create(run)
            attached = await self._api.attach(run.container, lambda stream, data: _write(run, stream, data))
            await self._api.start(run.container)
            state = (await self._api.inspect(run.container))["State"]
            run.started = True
            self._on_event({"t": "started", "id": run.process_id, "pid": int(state.get("Pid") or 0)})
            for number in run.signals:
                await self._signal(run, number)
            code = await self._api.wait(run.container)
            # What it has said comes on another connection than that it has ended.
            await asyncio.wait({attached}, timeout=_LAST_WORDS)
            state = (await self._api.inspect(run.container))["State"]
            self._ended(run, code, bool(state.get("OOMKilled")))
        except EngineError as exc:
            del self._runs[run.process_id]
            final = isinstance(exc, ImageMissing)
            message = {"t": "failed", "id": run.process_id, "error": _words(str(exc)), "final": final}
            self._on_event(message)
        finally:
            self._runs.pop(run.process_id, None)
            if attached is not None:
                attached.cancel()
            for descriptor in run.logs:
                os.close(descriptor)
            if run.container:
                self._background(self._remove(run.container))

    async def _create(self, run: _Run) -> None:
        body = {**run.body, "Labels": {**run.body.get("Labels", {}), **self.labels}}
        if self._runtime.name == "Podman":
            # Its own defaults may be more than it can give where it is not the machine's root.
            body["HostConfig"] = {**body["HostConfig"], "Ulimits": _own_limits()}
        name = f"modal-nomad-{run.process_id}"
        try:
            run.container = await self._api.create(name, body)
        except DockerError as exc:
            if exc.status != 404:
                raise
            reference = str(body["Image"])
            self._on_event({"t": "pulling", "id": run.process_id, "image": reference})
            run.pulling = True
            try:
                await self._api.pull(reference, await asyncio.to_thread(registry_credentials, reference))
            except DockerError as exc:
                if not exc.status:
                    raise
                raise ImageMissing(str(exc)) from exc
            run.pulling = False
            run.container = await self._api.create(name, body)

    def _ended(self, run: _Run, code: int, oom: bool) -> None:
        # A shell, and whatever else starts another program, says of its signal 128 more.
        number = code - 128 if 128 < code <= 128 + int(max(signal.valid_signals())) else None
        self._runs.pop(run.process_id, None)
        self._on_event({"t": "exit", "id": run.process_id, "code": code, "signal": number, "oom": oom})

    async def _signal(self, run: _Run, number: int) -> None:
        try:
            await self._api.kill(run.container, number)
        except EngineError as exc:
            sys.stderr.write(f"container {run.process_id} cannot be signalled: {exc}\n")

    async def _remove(self, container: str) -> None:
        with contextlib.suppress(EngineError):
            # What is left is removed with this process, or by the next one.
            await self._api.remove(container)

    def _background(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)


def _own_limits() -> list[dict[str, Any]]:
    files, processes = resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_NPROC)
    limits = {"nofile": files, "nproc": [min(x, _PODMANS_OWN) if x >= 0 else _PODMANS_OWN for x in processes]}
    return [{"Name": name, "Soft": soft, "Hard": hard} for name, (soft, hard) in limits.items()]


def _write(run: _Run, stream: int, data: bytes) -> None:
    os.write(run.logs[stream - 1], data)


def _words(error: str) -> str:
    if _NO_GPU_DRIVER in error:
        return f"{error}: install the NVIDIA Container Toolkit on this machine"
    return error


def _leash(runtime: Runtime, label: str, home: pathlib.Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", str(_LEASH), runtime.socket, label, *runtime.command]
    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    with (home / "logs" / "runtime.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, bufsize=0
        )


def clear_leftovers(home: pathlib.Path) -> None:
    """Remove the containers of earlier engines of this home; blocks.

    Only where one has left its marker: it was killed, and what ended its containers perhaps as well.
    """
    try:
        marker: Mapping[str, Any] = json.loads((home / _MARKER).read_text())
    except (OSError, ValueError):
        return
    if marker.get("command"):
        _clear_by(marker["command"][0], f"{_HOME_LABEL}={home}")
        return
    try:
        clear(str(marker["socket"]), f"{_HOME_LABEL}={home}")
    except Exception as exc:
        sys.stderr.write(f"containers of an earlier dispatcher may be left behind: {exc}\n")


def _clear_by(program: str, label: str) -> None:
    """Remove containers by the command line, where no socket is served yet."""
    listing = [program, "ps", "--all", "--quiet", "--filter", f"label={label}"]
    try:
        found = subprocess.run(listing, capture_output=True, check=True, text=True, timeout=60).stdout.split()
        if found:
            remove = [program, "rm", "--force", "--volumes", *found]
            subprocess.run(remove, capture_output=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as exc:
        sys.stderr.write(f"containers of an earlier dispatcher may be left behind: {exc}\n")
