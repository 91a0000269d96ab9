"""The Nomad engine: a container is a child of the Function's parameterized batch job.

The child's id carries the container's id, so any dispatcher reads from Nomad alone which container an
allocation is. The event stream is resumed by index; after every reconnect Nomad is listed once, for
its event buffer is short and forgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modal_nomad.engines._nomad_capacity import NomadCapacity
from modal_nomad.engines._nomad_container import NomadContainer, engine_errors
from modal_nomad.engines._nomad_identity import NomadIdentities
from modal_nomad.engines._nomad_logs import next_frame, rest_of_log
from modal_nomad.engines._nomad_namespaces import Namespaces
from modal_nomad.engines._nomad_volumes import check_volumes
from modal_nomad.engines._nomad_words import (
    CHILD_FILTER,
    allocation_event,
    container_of,
    evaluation_words,
    gpu_of,
    placement_words,
    task_of,
)
from modal_nomad.engines.base import (
    Capacity,
    ContainerEvent,
    ContainerRequest,
    ContainerState,
    ContainerStats,
    Engine,
    EngineError,
    ExecResult,
    Job,
    PlanResult,
)
from modal_nomad.hashicorp.nomad import (
    NomadClient,
    NomadError,
    NomadNotFound,
    NomadSettings,
)

_log = logging.getLogger(__name__)
_TOPICS = ("Allocation:*", "Evaluation:*", "Job:*")
_ENDED_KEPT = 10_000
_CONTAINER_META = "modal_container"
_SNAPSHOT_META = "modal_snapshot"


class NomadEngine(Engine):
    """Containers as allocations of a Nomad cluster.

    Args:
        settings: how to reach Nomad.
        namespace: the namespace watched, ``*`` for all that the token may see.
        node_pool: where containers are placed, for the capacity.
        datacenters: the same; patterns.
        core_mhz: what one core of ``cpu=`` is rendered as, for words on placement.
    """

    name = "nomad"
    has_periodic_jobs = True

    def __init__(
        self,
        settings: NomadSettings,
        *,
        namespace: str = "*",
        node_pool: str = "default",
        datacenters: Sequence[str] = ("*",),
        core_mhz: int = 1000,
    ) -> None:
        self.client = NomadClient(settings)
        self._placed: dict[str, str] = {}
        identities = NomadIdentities(self.client, self._placed.get)
        self.identify, self.launched = identities.identify, identities.launched
        self.namespaces_of = identities.namespaces
        self._namespaces = Namespaces(self.client)
        self._namespace = namespace
        self._core_mhz = core_mhz
        self._capacity = NomadCapacity(self.client, node_pool, datacenters)
        self._containers: OrderedDict[str, NomadContainer] = OrderedDict()
        self._queues: set[asyncio.Queue[ContainerEvent | None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._lost: set[asyncio.Task[None]] = set()
        self._index = 1

    async def start(self) -> None:
        with engine_errors():
            await self.client.leader()
            await self._capacity.read()
            await self._relist()
        self._watcher = asyncio.create_task(self._watch_forever(), name="nomad events")

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        for queue in self._queues:
            queue.put_nowait(None)
        self._capacity.close()
        for container in self._containers.values():
            container.changed.set()
        await self.client.close()

    # -- jobs

    async def validate(self, job: Job, *, token: str | None = None) -> list[str]:
        try:
            answer = await self.client.validate(job, token=token)
        except NomadError as error:
            if error.status == 400:
                return [str(error)]
            with engine_errors():
                raise
        faults = [str(fault) for fault in answer.get("ValidationErrors") or []]
        return faults or ([str(answer["Error"])] if answer.get("Error") else [])

    async def plan(self, job: Job, *, token: str | None = None) -> PlanResult:
        with engine_errors("submit-job", str(job.get("Namespace") or "default")):
            answer = await self.client.plan(job, token=token)
            failures = answer.get("FailedTGAllocs") or {}
            if job.get("ParameterizedJob"):
                # Nomad places nothing for a parameterized job; its plain twin shows what a child would meet.
                twin = copy.deepcopy(dict(job))
                del twin["ParameterizedJob"]
                twin["ID"] = twin["Name"] = f"{job['ID']}-plan"
                failures = (await self.client.plan(twin, token=token)).get("FailedTGAllocs") or {}
        diff = answer.get("Diff") or {}
        return PlanResult(
            changes=diff.get("Type", "None") != "None",
            diff=diff,
            warnings=str(answer.get("Warnings") or ""),
            failures={
                group: placement_words(metrics, self._core_mhz, gpu_of(job))
                for group, metrics in failures.items()
            },
        )

    async def submit(self, job: Job, *, token: str | None = None) -> None:
        with engine_errors("submit-job", str(job.get("Namespace") or "default")):
            await check_volumes(self.client, job, token)
            await self.client.register(job, token=token)

    async def make_namespace(self, name: str, environment: str, *, token: str | None = None) -> None:
        with engine_errors():
            await self._namespaces.make(name, environment, token)

    async def drop_namespace(self, name: str, environment: str, *, token: str | None = None) -> None:
        await self._namespaces.drop(name, environment, token)

    async def stop(self, job_id: str, *, namespace: str = "default", token: str | None = None) -> None:
        with engine_errors("submit-job", namespace):
            # The parent first: from then on Nomad refuses to dispatch, so the list below is complete.
            await self._deregister(job_id, namespace, token)
            children = await self.client.jobs(namespace=namespace, prefix=f"{job_id}/dispatch-")
            alive = [str(child["ID"]) for child in children if child.get("Status") != "dead"]
            await asyncio.gather(*(self._deregister(child, namespace, token) for child in alive))

    async def _deregister(self, job_id: str, namespace: str, token: str | None = None) -> None:
        with contextlib.suppress(NomadNotFound):
            await self.client.deregister(job_id, namespace=namespace, token=token)

    # -- containers

    async def start_container(self, request: ContainerRequest) -> None:
        known = self._containers.get(request.container_id)
        if known is not None:
            return
        pending = ContainerEvent(request.container_id, ContainerState.PENDING)
        container = NomadContainer(pending, request.namespace)
        self._containers[request.container_id] = container
        meta = {_CONTAINER_META: request.container_id}
        if request.snapshot:
            meta[_SNAPSHOT_META] = request.snapshot
        try:
            with engine_errors():
                container.child = await self.client.dispatch(
                    request.job_id,
                    namespace=request.namespace,
                    meta=meta,
                    key=request.container_id,
                )
        except BaseException:
            if not container.child:
                self._containers.pop(request.container_id, None)
            raise
        finally:
            container.dispatched.set()
        if container.index == 0:
            self._tell(container.event)

    async def stop_container(self, container_id: str, *, force: bool = False) -> None:
        container = self._containers.get(container_id)
        if container is None or container.event.state.ended:
            return
        if not container.child:
            await container.dispatched.wait()
        if not container.child:
            return
        with engine_errors():
            if force and container.event.state is ContainerState.RUNNING:
                with contextlib.suppress(NomadNotFound):
                    await self._kill(container)
            await self._deregister(container.child, container.namespace)

    async def _kill(self, container: NomadContainer) -> None:
        try:
            await self.client.signal(
                container.event.allocation_id, "SIGKILL", task=await self._task(container)
            )
        except NomadError as error:
            # It ended by itself between the look and the signal.
            if "not running" not in str(error).lower():
                raise

    def watch(self) -> AsyncIterator[ContainerEvent]:
        queue: asyncio.Queue[ContainerEvent | None] = asyncio.Queue()
        # Registered now, not at the first step: what happens in between belongs to the caller.
        self._queues.add(queue)
        return self._drain(queue)

    async def _drain(self, queue: asyncio.Queue[ContainerEvent | None]) -> AsyncIterator[ContainerEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.discard(queue)

    async def containers(self) -> Sequence[ContainerEvent]:
        return [c.event for c in self._containers.values() if not c.event.state.ended]

    def capacities(self) -> AsyncIterator[Capacity]:
        return self._capacity.watch()

    # -- looking inside

    async def logs(
        self, container_id: str, *, stream: str = "stdout", follow: bool = False
    ) -> AsyncIterator[bytes]:
        container = self._known(container_id)
        if follow:
            await self._until(container, lambda e: e.state.ended or e.state is ContainerState.RUNNING)
        if not container.event.allocation_id:
            return
        with engine_errors():
            task = await self._task(container)
            allocation = container.event.allocation_id
            position: dict[str, int] = {}
            with contextlib.suppress(NomadNotFound):
                frames = self.client.log_frames(
                    allocation, task, stream, follow=follow and not container.event.state.ended
                )
                async for file, data in self._while_alive(container, frames):
                    position[file] = position.get(file, 0) + len(data)
                    yield data
            if not follow:
                return
            # A followed log never ends by itself, and its last bytes may be behind the end's news.
            async for rest in rest_of_log(self.client, allocation, f"{task}.{stream}.", position):
                yield rest

    async def _while_alive(
        self, container: NomadContainer, frames: AsyncIterator[tuple[str, bytes]]
    ) -> AsyncIterator[tuple[str, bytes]]:
        ended = asyncio.create_task(self._until(container, lambda e: e.state.ended))
        already = container.event.state.ended
        step: asyncio.Task[tuple[str, bytes] | None] | None = None
        try:
            while True:
                step = asyncio.create_task(next_frame(frames))
                await asyncio.wait([step] if already else [step, ended], return_when="FIRST_COMPLETED")
                if not step.done():
                    return
                frame = step.result()
                if frame is None:
                    return
                yield frame
        finally:
            for task in (step, ended):
                if task is not None and not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            close = getattr(frames, "aclose", None)
            if close is not None:
                await close()

    async def exec(self, container_id: str, command: Sequence[str], *, stdin: bytes = b"") -> ExecResult:
        container = self._running(container_id)
        with engine_errors():
            code, out, err = await self.client.exec(
                container.event.allocation_id, await self._task(container), command, stdin=stdin
            )
        return ExecResult(code, out, err)

    async def stats(self, container_id: str) -> ContainerStats:
        container = self._running(container_id)
        with engine_errors():
            usage = (await self.client.stats(container.event.allocation_id)).get("ResourceUsage") or {}
        cpu, memory = usage.get("CpuStats") or {}, usage.get("MemoryStats") or {}
        return ContainerStats(
            cpu=float(cpu.get("Percent") or 0) / 100,
            memory=max(int(memory.get("RSS") or 0), int(memory.get("Usage") or 0)),
        )

    def _known(self, container_id: str) -> NomadContainer:
        container = self._containers.get(container_id)
        if container is None:
            raise KeyError(container_id)
        return container

    def _running(self, container_id: str) -> NomadContainer:
        container = self._known(container_id)
        if container.event.state is not ContainerState.RUNNING:
            state = container.event.state.value
            raise EngineError(f"container {container_id} is {state}, not running: wait until it runs")
        return container

    async def _task(self, container: NomadContainer) -> str:
        if not container.task:
            container.task = task_of(await self.client.allocation(container.event.allocation_id))
        return container.task

    async def _until(self, container: NomadContainer, true_of: Any) -> None:
        while not true_of(container.event) and self._watcher is not None and not self._watcher.done():
            container.changed.clear()
            await container.changed.wait()

    # -- the event stream

    async def _watch_forever(self) -> None:
        delay = 0.1
        while True:
            try:
                async with self.client.events(
                    [*_TOPICS, *self._capacity.topics], namespace=self._namespace, index=self._index
                ) as batches:
                    await self._capacity.read()
                    await self._relist()
                    delay = 0.1
                    async for batch in batches:
                        for event in batch["Events"]:
                            self._take(event)
                        if any(event["Topic"] == "Node" for event in batch["Events"]):
                            await self._capacity.read()
                        self._index = max(self._index, int(batch["Index"]))
            except NomadError as error:
                _log.warning("event stream: %s; again in %.1f s", error, delay)
            except Exception:
                _log.exception("event stream: unexpected; again in %.1f s", delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    def _take(self, event: Mapping[str, Any]) -> None:
        payload = event.get("Payload") or {}
        if event["Topic"] == "Allocation":
            self._take_allocation(payload["Allocation"])
        elif event["Topic"] == "Evaluation":
            evaluation = payload["Evaluation"]
            container = self._of(str(evaluation["JobID"]), str(evaluation.get("Namespace", "default")))
            if container is not None and not container.event.allocation_id:
                words = evaluation_words(evaluation, self._core_mhz, container.gpu)
                if words:
                    self._change(container, replace(container.event, reason=words))
        elif event["Topic"] == "Job":
            self._take_job(event, payload.get("Job") or {})

    def _take_job(self, event: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        ended, gpu = str(event.get("Type", "")).endswith("Deregistered"), gpu_of(job)
        container = (
            self._of(str(event["Key"]), str(job.get("Namespace", "default"))) if ended or gpu else None
        )
        if container is None:
            return
        # Nomad tells of a job before it tells what became of placing it.
        container.gpu = gpu
        if ended and not container.event.allocation_id:
            reason = "stopped before it was placed"
            self._change(container, replace(container.event, state=ContainerState.FAILED, reason=reason))

    def _take_allocation(self, allocation: Mapping[str, Any]) -> None:
        container = self._of(str(allocation["JobID"]), str(allocation.get("Namespace", "default")))
        if container is None or container.event.state.ended:
            return
        index = int(allocation.get("ModifyIndex") or 0)
        if index < container.index:
            return
        container.index = index
        container.task = container.task or task_of(allocation)
        event = allocation_event(container.event.container_id, allocation)
        self._placed[event.allocation_id] = event.container_id
        self._change(container, event)
        if event.state is ContainerState.LOST:
            # Should its node come back, this container's work has long been given to another.
            task = asyncio.create_task(self._forget_child(container))
            self._lost.add(task)
            task.add_done_callback(self._lost.discard)

    async def _forget_child(self, container: NomadContainer) -> None:
        try:
            await self._deregister(container.child, container.namespace)
        except NomadError as error:
            _log.warning("lost container %s: %s", container.event.container_id, error)

    def _of(self, job_id: str, namespace: str) -> NomadContainer | None:
        container_id = container_of(job_id)
        if container_id is None:
            return None
        container = self._containers.get(container_id)
        if container is None:
            event = ContainerEvent(container_id, ContainerState.PENDING)
            container = self._containers[container_id] = NomadContainer(event, namespace)
            container.dispatched.set()
        container.child = job_id
        return container

    def _change(self, container: NomadContainer, event: ContainerEvent) -> None:
        if event == container.event:
            return
        container.event = event
        container.changed.set()
        if event.state.ended:
            self._containers.move_to_end(event.container_id)
            self._trim()
        self._tell(event)

    def _trim(self) -> None:
        surplus = len(self._containers) - _ENDED_KEPT
        if surplus > 0:
            ended = [key for key, c in self._containers.items() if c.event.state.ended]
            for key in ended[:surplus]:
                self._placed.pop(self._containers.pop(key).event.allocation_id, None)

    def _tell(self, event: ContainerEvent) -> None:
        for queue in self._queues:
            queue.put_nowait(event)

    async def _relist(self) -> None:
        before = {key for key, c in self._containers.items() if c.child and not c.event.state.ended}
        jobs = await self.client.jobs(namespace=self._namespace, filter=f'ID contains "{CHILD_FILTER}"')
        allocations = await self.client.allocations(
            namespace=self._namespace, filter=f'JobID contains "{CHILD_FILTER}"'
        )
        placed = {str(allocation["JobID"]) for allocation in allocations}
        for job in jobs:
            if job["ID"] in placed or job.get("Status") == "dead":
                continue
            container = self._of(str(job["ID"]), str(job.get("Namespace", "default")))
            if container is not None:
                container.gpu = gpu_of(job)
                await self._take_pending(container)
        for allocation in sorted(allocations, key=lambda a: int(a["CreateIndex"])):
            self._take_allocation(allocation)
        seen = {container_of(str(job["ID"])) for job in jobs if job.get("Status") != "dead"}
        seen.update(container_of(job_id) for job_id in placed)
        for key in before - seen:
            container = self._containers[key]
            lost = replace(container.event, state=ContainerState.LOST, reason="Nomad knows it no more")
            self._change(container, lost)

    async def _take_pending(self, container: NomadContainer) -> None:
        evaluations = await self.client.evaluations(container.child, namespace=container.namespace)
        newest = max(evaluations, key=lambda e: int(e["ModifyIndex"]), default={})
        reason = evaluation_words(newest, self._core_mhz, container.gpu) or container.event.reason
        self._change(container, replace(container.event, reason=reason))
