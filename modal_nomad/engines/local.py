"""The embedded engine: the same rendered Nomad jobs, run as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import hashlib
import os
import pathlib
import shutil
import signal
import sys
import time
import weakref
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from modal_nomad.engines._local_container import (
    LocalContainer,
    Watch,
    describe_end,
    over_use_error,
    pick_cpus,
    usable_cores,
)
from modal_nomad.engines._local_diff import diff_jobs
from modal_nomad.engines._local_docker import DockerContainers, clear_leftovers
from modal_nomad.engines._local_exec import Commands
from modal_nomad.engines._local_files import (
    Unpack,
    follow_log,
    forget_old,
    keep_trimmed,
    open_log,
    stats_between,
    unpack_zip,
    usage_of,
)
from modal_nomad.engines._local_gpus import GPUQueue
from modal_nomad.engines._local_ground import Blobs, Build, Ground, Prepared
from modal_nomad.engines._local_groups import ControlGroups
from modal_nomad.engines._local_job import (
    TaskPlan,
    base_environment,
    faults_of,
    parse,
)
from modal_nomad.engines._local_launch import ContainerRuntimes
from modal_nomad.engines._local_process import cpu_words, process_of
from modal_nomad.engines._local_watch import watch_use
from modal_nomad.engines._warm import WarmInterpreter, WarmKey
from modal_nomad.engines.base import (
    Capacity,
    ContainerEvent,
    ContainerRequest,
    ContainerState,
    ContainerStats,
    Engine,
    EngineError,
    ExecResult,
    ImageGone,
    Job,
    PlanResult,
)
from modal_nomad.exception import ExecutionError, ImageBuildError
from modal_nomad.wire.spec import ImageSpec

_KEPT_ENDED = 500
_KEPT_IDLE_INTERPRETERS = 8


class LocalEngine(Engine):
    """Containers as processes, workers forked from a warm interpreter per environment, or of a runtime.

    Args:
        home: the daemon's directory; ``containers/``, ``code/``, ``runtime/`` and ``logs/`` are made in it.
        blobs: gives the files of bundles.
        environments: builds (or finds) the environment of an image with packages and returns the path
            of its Python; runs in a thread; its exceptions become the container's reason.
        unpack: lays the bytes of a zip out so that the directory is whole or not there; runs in a thread.
        max_log_bytes: how much of each log is kept.
    """

    name = "local"

    def __init__(
        self,
        home: pathlib.Path,
        blobs: Blobs,
        *,
        environments: Build | None = None,
        unpack: Unpack = unpack_zip,
        max_log_bytes: int = 16 << 20,
    ) -> None:
        self._home = home.absolute()
        self._ground = Ground(self._home, blobs, environments, unpack)
        self._max_log_bytes = max_log_bytes
        self._base = base_environment()
        name = hashlib.sha256(str(self._home).encode()).hexdigest()[:12]
        self._groups = ControlGroups(f"modal-nomad-{name}", self._home / "control-groups")
        self._jobs: dict[tuple[str, str], tuple[Job, TaskPlan]] = {}
        self._containers: dict[str, LocalContainer] = {}
        self._commands = Commands()
        self._warm: dict[WarmKey, WarmInterpreter] = {}
        self._runtimes = ContainerRuntimes(self._home, self._on_event)
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[Any]] = set()
        self._node = os.uname().nodename
        self._closed = False
        self._ended = asyncio.Event()
        self._gpus = GPUQueue(
            lambda x, reason: self._publish(x, ContainerState.PENDING, reason),
            self._prepare_or_launch,
            self._refuse,
        )

    async def start(self) -> None:
        """Make the directories and clear what an earlier daemon's containers left behind."""

        def prepare() -> None:
            clear_leftovers(self._home)
            self._groups.clear()
            shutil.rmtree(self._home / "containers", ignore_errors=True)
            for name in ("containers", "code", "runtime", "logs"):
                (self._home / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            forget_old(self._home / "logs", 2 * _KEPT_ENDED)

        await asyncio.to_thread(prepare)
        self._background(keep_trimmed(self._open_logs, self._max_log_bytes))

    async def capacities(self) -> AsyncIterator[Capacity]:
        yield Capacity(usable_cores())
        await self._ended.wait()

    async def close(self) -> None:
        """End every container at once, then the warm interpreters, then the watchers."""
        self._closed = True
        self._ended.set()
        for task in list(self._tasks):
            task.cancel()
        warm = list(self._warm.values())
        self._warm.clear()
        for container in self._live():
            if container.preparing is not None:
                container.preparing.cancel()
            self._end(container, ContainerState.COMPLETE, "the engine was closed", None)
        await asyncio.gather(self._runtimes.close(), *(x.close() for x in warm), *self._leaving)
        self._commands.close()
        for watch in list(self._watches):
            watch.put(None)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._groups.clear)

    async def validate(self, job: Job, *, token: str | None = None) -> list[str]:
        try:
            faults = faults_of(job)
            plan = parse(job) if not faults else None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as exc:
            return [f"the job is malformed ({exc}); render it again with this version"]
        if plan is not None and plan.container is not None:
            return self._runtimes.faults(plan.container)
        if plan is not None and plan.image is not None and plan.image.layers and not self._ground.builds:
            faults.append("this engine builds no image environments; use an image without packages")
        return faults

    async def plan(self, job: Job, *, token: str | None = None) -> PlanResult:
        faults = await self.validate(job)
        try:
            known = self._jobs.get(_key(job))
            diff = diff_jobs(known[0] if known else None, job)
            group = str(((job.get("TaskGroups") or [{}])[0] or {}).get("Name") or "")
        except (TypeError, ValueError, LookupError, AttributeError):
            raise EngineError("; ".join(faults) or "the job is malformed; render it again") from None
        return PlanResult(diff["Type"] != "None", diff, failures={group: "; ".join(faults)} if faults else {})

    async def submit(self, job: Job, *, token: str | None = None) -> None:
        faults = await self.validate(job)
        if faults:
            raise EngineError("; ".join(faults))
        plan = parse(job)
        # A copy: what was submitted stays what it was, whatever its owner does with the dict.
        self._jobs[_key(job)] = (copy.deepcopy(dict(job)), plan)
        if plan.is_worker:
            # What fails here fails again, and is told, when the first container starts.
            self._background(self._prepare(plan))

    async def prewarm(self, runtime_sha: str, image: ImageSpec | None = None) -> None:
        """Start the warm interpreter of an image (default: none) and wait until it has imported."""
        key = await self._ground.interpreter(runtime_sha, image)
        await self._interpreter(key).ready.wait()

    async def stop(self, job_id: str, *, namespace: str = "default", token: str | None = None) -> None:
        self._jobs.pop((namespace, job_id), None)
        for container in self._live():
            if (container.plan.namespace, container.plan.job_id) == (namespace, job_id):
                await self.stop_container(container.request.container_id)

    async def start_container(self, request: ContainerRequest) -> None:
        if self._closed:
            raise EngineError("the engine was closed; connect again")
        if request.container_id in self._containers:
            return
        known = self._jobs.get((request.namespace, request.job_id))
        if known is None:
            raise EngineError(f"job {request.job_id!r} is not registered here; publish its app again")
        plan = known[1]
        container = LocalContainer(
            request,
            plan,
            self._home / "containers" / request.container_id,
            ContainerEvent(request.container_id, ContainerState.PENDING),
        )
        self._containers[request.container_id] = container
        if plan.gpus is not None:
            self._publish(container, ContainerState.PENDING, "looking for its GPUs")
            container.preparing = self._background(self._gpus.place(container))
            return
        self._prepare_or_launch(container)

    def _refuse(self, container: LocalContainer, reason: str) -> None:
        self._end(container, ContainerState.FAILED, reason, None, ExecutionError(f"the function {reason}"))

    def _prepare_or_launch(self, container: LocalContainer) -> None:
        plan = container.plan
        ready = self._ground.prepared(plan)
        if ready is not None:
            self._publish(container, ContainerState.PENDING, "")
            self._launch(container, ready)
            return
        building = plan.image is not None and plan.image.layers
        reason = "building the image environment" if building else "unpacking the code"
        self._publish(container, ContainerState.PENDING, reason)
        container.preparing = self._background(self._prepare_and_launch(container))

    async def stop_container(self, container_id: str, *, force: bool = False) -> None:
        container = self._containers.get(container_id)
        if container is None or container.event.state.ended:
            return
        warm = container.warm
        if warm is None:
            if container.preparing is not None:
                container.preparing.cancel()
            self._end(container, ContainerState.COMPLETE, "stopped", None)
            return
        first = not container.stopping
        container.stopping = True
        if force:
            warm.kill(container_id, signal.SIGKILL, group=True)
        elif first:
            warm.kill(container_id, signal.SIGTERM, group=False)
            container.killer = asyncio.get_running_loop().call_later(
                container.plan.kill_timeout,
                lambda: warm.kill(container_id, signal.SIGKILL, group=True),
            )

    def watch(self) -> AsyncIterator[ContainerEvent]:
        watch = Watch()
        if self._closed:
            watch.put(None)
        self._watches.add(watch)
        return watch

    async def containers(self) -> Sequence[ContainerEvent]:
        return [x.event for x in self._live()]

    def logs(
        self, container_id: str, *, stream: str = "stdout", follow: bool = False
    ) -> AsyncIterator[bytes]:
        path = self._log(container_id, stream)
        container = self._containers.get(container_id)
        if container is None and not path.exists():
            raise KeyError(container_id)
        return follow_log(path, self._max_log_bytes, container.ended if follow and container else None)

    async def exec(self, container_id: str, command: Sequence[str], *, stdin: bytes = b"") -> ExecResult:
        container = self._running(container_id)
        if isinstance(container.warm, DockerContainers):
            return ExecResult(*await container.warm.exec(container_id, command, stdin))
        launcher = self._interpreter(WarmKey(sys.executable, None))
        return await self._commands.run(launcher, container, command, stdin)

    async def stats(self, container_id: str) -> ContainerStats:
        container = self._running(container_id)
        assert container.pid is not None
        if isinstance(container.warm, DockerContainers):
            seconds, memory = await container.warm.usage(container_id)
        else:
            seconds, memory = await asyncio.to_thread(usage_of, container.pid)
        before, container.sample = container.sample, (time.monotonic(), seconds)
        return stats_between(before, container.sample, memory)

    async def collect(self, keep: Collection[str], *, older_than: float) -> int:
        def in_use() -> set[str]:
            plans = [plan for _, plan in self._jobs.values()] + [x.plan for x in self._live()]
            bundles = {artifact.sha for plan in plans for artifact in plan.artifacts}
            return bundles | {os.path.basename(x.runtime or "") for x in self._warm} | set(keep)

        return await self._ground.collect(in_use, older_than)

    def _live(self) -> list[LocalContainer]:
        return [x for x in self._containers.values() if not x.event.state.ended]

    def _running(self, container_id: str) -> LocalContainer:
        container = self._containers[container_id]
        if container.pid is None or container.event.state.ended:
            raise EngineError(
                f"container {container_id} is {container.event.state.value}; it has to run for this"
            )
        return container

    def _log(self, container_id: str, stream: str) -> pathlib.Path:
        if stream not in ("stdout", "stderr"):
            raise EngineError(f"no log stream {stream!r}; it is 'stdout' or 'stderr'")
        if container_id not in self._containers and "/" in container_id:
            raise KeyError(container_id)
        return self._home / "logs" / f"{container_id}.{'out' if stream == 'stdout' else 'err'}"

    def _leave(self, coroutine: Any) -> None:
        """See an interpreter off; unlike other tasks this one is waited for, never cancelled."""
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _background(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Looked at, or the loop would complain of an exception that the container's end has told.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _prepare(self, plan: TaskPlan) -> None:
        ready = await self._ground.prepare(plan)
        if plan.container is not None:
            await self._runtimes.of(plan.container).open()
        else:
            self._interpreter(ready.key)

    async def _prepare_and_launch(self, container: LocalContainer) -> None:
        try:
            self._launch(container, await self._ground.prepare(container.plan))
        except Exception as exc:
            if not container.event.state.ended:
                # A new one: the stack in which the daemon made the first says nothing to the caller.
                error = ImageBuildError(str(exc)) if isinstance(exc, ImageBuildError) else None
                self._end(container, ContainerState.FAILED, str(exc) or type(exc).__name__, None, error)

    def _interpreter(self, key: WarmKey) -> WarmInterpreter:
        warm = self._warm.pop(key, None)
        if warm is None:
            if self._closed:
                raise EngineError("the engine was closed; connect again")
            warm = WarmInterpreter(key, self._home / "logs" / "warm.log", self._on_event, self._on_lost)
            idle = [x for x in self._warm.values() if not x.active]
            for old in idle[: max(0, len(idle) - _KEPT_IDLE_INTERPRETERS)]:
                del self._warm[old.key]
                self._leave(old.close())
        # Last used stands last, so the first idle one is the one to give up.
        self._warm[key] = warm
        return warm

    def _launch(self, container: LocalContainer, ready: Prepared) -> None:
        plan, request, bundles = container.plan, container.request, ready.bundles
        try:
            if plan.container is not None:
                logs = [open_log(self._log(request.container_id, x)) for x in ("stdout", "stderr")]
                self._runtimes.launch(container, bundles, logs)
                return
            container.cpus = pick_cpus(plan.cores, self._live())
            container.group = self._groups.make(request.container_id, plan.memory, plan.cpu)
            spawn = process_of(container, bundles, self._base, self._home)
            warm = self._interpreter(ready.key)
            fds = [open_log(self._log(request.container_id, x)) for x in ("stdout", "stderr")]
            os.write(fds[1], cpu_words(container, self._groups.why_not).encode())
            container.warm = warm
            warm.spawn(spawn, fds)
        except (OSError, EngineError) as exc:
            self._end(container, ContainerState.FAILED, str(exc), None)

    def _on_event(self, message: Mapping[str, Any]) -> None:
        kind, process_id = message["t"], message["id"]
        if self._commands.take(message):
            return
        container = self._containers.get(process_id)
        if container is None or container.event.state.ended:
            return
        if kind == "started":
            container.pid = message["pid"]
            container.sample = (time.monotonic(), 0.0)
            self._publish(container, ContainerState.RUNNING, "")
            self._watch_use(container)
        elif kind == "pulling":
            self._publish(container, ContainerState.PENDING, f"pulling the image {message['image']}")
        elif kind == "failed":
            error = ImageGone(message["error"]) if message.get("final") else None
            self._end(container, ContainerState.FAILED, message["error"], None, error)
        else:
            oom = message.get("oom") or (container.group is not None and container.group.killed > 0)
            code, number, stopping = message["code"], message["signal"], container.stopping
            end = describe_end(container.plan, code, number, stopping=stopping, oom=bool(oom))
            self._end(container, *end, over_use_error(end[1]))

    def _watch_use(self, container: LocalContainer) -> None:
        runtime = container.warm if isinstance(container.warm, DockerContainers) else None
        container_id = container.request.container_id
        size = functools.partial(runtime.disk_use, container_id) if runtime is not None else None
        if container.plan.disk or (container.plan.memory and runtime is None):
            self._background(watch_use(container, self._over_use, size))

    def _over_use(self, container: LocalContainer, reason: str) -> None:
        assert container.warm is not None
        container.warm.kill(container.request.container_id, signal.SIGKILL, group=True)
        # Said before its connection breaks, which would tell less.
        code = 128 + int(signal.SIGKILL)
        self._end(container, ContainerState.FAILED, reason, code, over_use_error(reason))

    def _on_lost(self, warm: WarmInterpreter, reason: str) -> None:
        if self._warm.get(warm.key) is warm:
            del self._warm[warm.key]
        self._leave(warm.wait())
        self._commands.fail(list(warm.active), f"{reason}; run the command again")
        for process_id in list(warm.active):
            container = self._containers.get(process_id)
            if container is None or container.event.state.ended:
                continue
            if container.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(container.pid, signal.SIGKILL)
            state = ContainerState.FAILED if warm.broken else ContainerState.LOST
            self._end(container, state, reason, None)

    def _publish(
        self,
        container: LocalContainer,
        state: ContainerState,
        reason: str,
        exit_code: int | None = None,
        error: Exception | None = None,
    ) -> None:
        container.event = ContainerEvent(
            container.request.container_id,
            state,
            reason,
            exit_code,
            container.allocation_id,
            self._node,
            error,
        )
        for watch in list(self._watches):
            watch.put(container.event)

    def _end(
        self,
        container: LocalContainer,
        state: ContainerState,
        reason: str,
        exit_code: int | None,
        error: Exception | None = None,
    ) -> None:
        if container.killer is not None:
            container.killer.cancel()
        launcher = self._warm.get(WarmKey(sys.executable, None))
        for process_id in container.commands:
            if launcher is not None:
                launcher.kill(process_id, signal.SIGKILL, group=True)
        container.cpus = ()
        if container.group is not None:
            self._groups.remove(container.group)
        self._publish(container, state, reason, exit_code, error)
        container.ended.set()
        self._gpus.leave(container)
        if self._closed:
            shutil.rmtree(container.directory, ignore_errors=True)
        else:
            self._background(asyncio.to_thread(shutil.rmtree, container.directory, True))
        self._forget()

    def _forget(self) -> None:
        if len(self._containers) <= 2 * _KEPT_ENDED:
            return
        ended = [x for x in self._containers.values() if x.event.state.ended]
        for container in ended[:-_KEPT_ENDED]:
            container_id = container.request.container_id
            for stream in ("stdout", "stderr"):
                self._log(container_id, stream).unlink(missing_ok=True)
            del self._containers[container_id]

    def _open_logs(self) -> list[pathlib.Path]:
        running = [x.request.container_id for x in self._live() if x.pid is not None]
        return [
            self._log(container_id, stream) for container_id in running for stream in ("stdout", "stderr")
        ]


def _key(job: Job) -> tuple[str, str]:
    return str(job.get("Namespace") or "default"), str(job.get("ID"))
