"""The dispatcher without its sockets: the call engine's events and commands, the store, the engine.

Every event goes through ``handle``; the commands that come back are carried out here, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher.apps import AppRegistry
from modal_nomad.dispatcher.auth import WorkerTokens
from modal_nomad.dispatcher.blobs import BlobStore
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.loghub import LogHub
from modal_nomad.dispatcher.sessions import ClientSession, WorkerSession
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.store import Store
from modal_nomad.dispatcher.store.base import FunctionRecord, StoredInput, StoredOutput
from modal_nomad.engines.base import ContainerEvent, ContainerRequest, ContainerState, Engine, EngineError
from modal_nomad.exception import NotFoundError, OutputExpiredError
from modal_nomad.wire import frames
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.spec import FunctionSpec

logger = logging.getLogger("modal_nomad.dispatcher")

_END_GRACE = 0.3
"""Seconds to wait, after a worker's socket closed, for the engine to say in words why it ended."""


class FunctionState:
    """What the dispatcher holds of one live Function."""

    __slots__ = (
        "app_id",
        "environment",
        "function_id",
        "job_id",
        "name",
        "namespace",
        "spec",
        "spec_dict",
        "version",
    )

    def __init__(self, record: FunctionRecord) -> None:
        self.function_id = record.function_id
        self.app_id = record.app_id
        self.name = record.name
        self.environment = record.environment
        self.spec_dict = dict(record.spec)
        self.spec = FunctionSpec.from_dict(record.spec)
        self.version = self.spec.version_key
        self.job_id = str(record.job.get("ID", ""))
        self.namespace = str(record.job.get("Namespace") or "default")


class ContainerInfo:
    """A container that the dispatcher started or adopted."""

    __slots__ = ("container_id", "ended", "function", "reason", "session", "state", "version")

    def __init__(self, container_id: str, function: FunctionState, version: str) -> None:
        self.container_id = container_id
        self.function = function
        self.version = version
        self.session: WorkerSession | None = None
        self.state = "starting"
        self.reason = ""
        self.ended = asyncio.Event()


class Dispatcher:
    """Everything that a server process holds.

    Args:
        settings: the configuration.
        store: an open store.
        blobs: the blob store.
        engine: a started engine.
        workers: mints the tokens of local containers.
        runtime_sha: SHA-256 of the runtime bundle, which is in the blob store.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: BlobStore,
        engine: Engine,
        workers: WorkerTokens,
        runtime_sha: str,
    ) -> None:
        self.settings = settings
        self.store = store
        self.blobs = blobs
        self.engine = engine
        self.workers = workers
        self.runtime_sha = runtime_sha
        self.hub = LogHub()
        self.started = time.time()
        self.apps = AppRegistry(store, tasks=self._tasks_of)
        ceiling = settings.default_max_containers
        if ceiling <= 0:
            ceiling = max(4, os.cpu_count() or 1) if engine.name == "local" else 100
        # Leases of an earlier process of this dispatcher must never be taken for ours.
        self.calls = CallEngine(ceiling, first_lease=int(time.time() * 1000) << 10)
        self.functions: dict[str, FunctionState] = {}
        self.containers: dict[str, ContainerInfo] = {}
        self.clients: dict[str, ClientSession] = {}
        self._call_owner: dict[str, str] = {}
        self._durable: set[str] = set()
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._owned_apps: dict[str, str] = {}
        self._graces: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._now = time.monotonic

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Resume what the store has and begin watching the engine."""
        self.background(self._watch())
        resumed = 0
        for app, functions in await self.apps.active():
            await asyncio.gather(*(self._resume(f) for f in functions))
            if app.state == "ephemeral":
                # Its client has as long to come back as after any lost connection.
                self._grace(f"app:{app.app_id}", self._expire_app, app.app_id, factor=2.0)
            resumed += len(functions)
        async for page in self.store.load_pending():
            call = page.call
            self._durable.add(call.call_id)
            if call.function_id not in self.functions:
                continue
            done = [o.index for o in await self.store.outputs(call.call_id)]
            self.handle(ev.InputsSubmitted(call.call_id, call.function_id, True, None, []))
            self.handle(ev.OutputsStored(call.call_id, done))
            items = [(i.index, i.payload, i.flags) for i in page.inputs]
            self.handle(ev.InputsSubmitted(call.call_id, call.function_id, True, None, items))
        self.background(self._expire_results())
        logger.info("%d functions of earlier apps resumed", resumed)

    async def close(self) -> None:
        """Stop watching; what is durable is in the store already."""
        if self._tick is not None:
            self._tick.cancel()
        for grace in self._graces.values():
            grace.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def background(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine that nobody waits for; its failure is logged."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a background task failed", exc_info=task.exception())

    # --- events and commands ----------------------------------------------------------------------

    def handle(self, event: ev.Event) -> None:
        """Give the call engine an event and carry out what it commands."""
        for command in self.calls.handle(event, self._now()):
            kind = type(command)
            if kind is ev.Lease:
                self._lease(command)  # type: ignore[arg-type]
            elif kind is ev.Deliver:
                self._deliver(command)  # type: ignore[arg-type]
            else:
                self._carry_out(command)
        wakeup = self.calls.next_wakeup()
        if wakeup is not None and (self._tick is None or wakeup < self._tick_at):
            if self._tick is not None:
                self._tick.cancel()
            self._tick_at = wakeup
            self._tick = self._loop.call_later(max(0.0, wakeup - self._now()), self._ticked)

    def _ticked(self) -> None:
        self._tick = None
        self.handle(ev.Tick())

    def _carry_out(self, command: ev.Command) -> None:
        if isinstance(command, ev.StartContainers):
            self._start_containers(command)
        elif isinstance(command, ev.DrainContainer):
            session = self._session(command.container_id)
            if session is not None:
                session.send_frame({"t": "drain"})
            else:
                self.background(self._stop_container(command.container_id, force=False))
        elif isinstance(command, ev.StopContainer):
            self.background(self._stop_container(command.container_id, force=command.force))
        elif isinstance(command, ev.CancelLeases):
            session = self._session(command.container_id)
            if session is not None:
                session.send_frame({"t": "cancel", "x": command.leases})

    def _session(self, container_id: str) -> WorkerSession | None:
        info = self.containers.get(container_id)
        return info.session if info is not None else None

    def _lease(self, command: ev.Lease) -> None:
        session = self._session(command.container_id)
        if session is None:
            return
        inputs = command.inputs
        for start, end in _cut([item[3] for item in inputs]):
            part = inputs[start:end]
            header: frames.Header = {
                "t": "run",
                "x": [r[0] for r in part],
                "c": [r[1] for r in part],
                "n": [r[2] for r in part],
            }
            if any(r[4] for r in part):
                header["f"] = [r[4] for r in part]
            session.send(frames.encode(header, [r[3] for r in part]))

    def _deliver(self, command: ev.Deliver) -> None:
        call_id = command.call_id
        if call_id in self._durable:
            self.background(self._keep_outputs(call_id, command.outputs))
            return
        owner = self._call_owner.get(call_id)
        session = self.clients.get(owner) if owner is not None else None
        if session is None:
            return
        outputs = command.outputs
        for start, end in _cut([o[2] for o in outputs]):
            part = outputs[start:end]
            header: frames.Header = {"t": "out", "c": call_id, "x": [o[0] for o in part]}
            if any(o[1] for o in part):
                header["s"] = [o[1] for o in part]
            if any(o[3] for o in part):
                header["f"] = [o[3] for o in part]
            session.send(frames.encode(header, [o[2] for o in part]))

    async def _keep_outputs(self, call_id: str, outputs: Sequence[ev.Output]) -> None:
        expires = time.time() + self.settings.result_days * 86400
        await self.store.add_outputs(
            call_id, [StoredOutput(i, s, p, f) for i, s, p, f in outputs], expires_at=expires
        )
        self.handle(ev.OutputsStored(call_id, [o[0] for o in outputs]))
        for waiter in self._waiters.pop(call_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    # --- containers -------------------------------------------------------------------------------

    def _start_containers(self, command: ev.StartContainers) -> None:
        function = self.functions.get(command.function_id)
        ids: list[str] = []
        if function is not None and function.version == command.version_key:
            ids = [new_id("ta") for _ in range(command.count)]
            for container_id in ids:
                self.containers[container_id] = ContainerInfo(container_id, function, command.version_key)
                self.background(self._start_container(container_id, function))
        self.handle(ev.ContainersStarting(command.function_id, command.version_key, ids, command.count))

    async def _start_container(self, container_id: str, function: FunctionState) -> None:
        self.hub.event(function.app_id, function.name, container_id, "starting")
        env = {}
        if self.engine.name == "local":
            env = {
                "MODAL_SERVER_URL": self.settings.address,
                "MODAL_WORKER_TOKEN": self.workers.mint(container_id),
                "MODAL_ENVIRONMENT": function.environment,
                "MODAL_TASK_ID": container_id,
                "MODAL_IS_REMOTE": "1",
                "MODAL_APP_ID": function.app_id,
            }
        request = ContainerRequest(container_id, function.job_id, function.namespace, env)
        try:
            await self.engine.start_container(request)
        except EngineError as error:
            self._container_ended(container_id, str(error))

    async def _stop_container(self, container_id: str, *, force: bool) -> None:
        try:
            await self.engine.stop_container(container_id, force=force)
        except EngineError as error:
            logger.warning("container %s cannot be stopped: %s", container_id, error)

    async def _watch(self) -> None:
        async for event in self.engine.watch():
            try:
                self._engine_event(event)
            except Exception:
                logger.exception("an engine event could not be handled")

    def _engine_event(self, event: ContainerEvent) -> None:
        info = self.containers.get(event.container_id)
        if info is None:
            return
        function = info.function
        if event.state.ended:
            info.reason = event.reason or f"ended with exit code {event.exit_code}"
            info.ended.set()
            if info.session is None:
                self._container_ended(event.container_id, info.reason)
        elif event.state is ContainerState.PENDING and event.reason:
            self.handle(ev.ContainerPending(event.container_id, event.reason))
            self.hub.event(function.app_id, function.name, event.container_id, "pending", event.reason)
        elif event.state is ContainerState.RUNNING and info.state == "starting":
            self.handle(ev.ContainerPending(event.container_id, ""))

    def _container_ended(self, container_id: str, reason: str) -> None:
        info = self.containers.pop(container_id, None)
        if info is None:
            return
        # A container that did all it was asked to is nothing to tell the user of.
        told = "" if reason in ("drained", "stopped") else reason
        self.hub.event(info.function.app_id, info.function.name, container_id, "ended", told)
        # Calls that its code made and waits for have nobody left to answer to.
        self.handle(ev.OwnerLost(container_id))
        if info.state == "starting":
            self.handle(ev.ContainerFailed(container_id, reason))
        else:
            self.handle(ev.WorkerLost(container_id, reason))

    def adopt_worker(self, session: WorkerSession, function_id: str | None) -> ContainerInfo:
        """Bind a worker's connection to its container. Raises NotFoundError when it has none."""
        info = self.containers.get(session.container_id)
        if info is None:
            function = self.functions.get(function_id or "")
            if function is None:
                raise NotFoundError(
                    f"container {session.container_id} belongs to no live function; it may end"
                )
            info = self.containers[session.container_id] = ContainerInfo(
                session.container_id, function, function.version
            )
        elif info.session is not None:
            # The same container again: its old connection broke without our noticing.
            self.handle(ev.WorkerLost(session.container_id, "its connection was replaced"))
        info.session = session
        return info

    def worker_ready(self, info: ContainerInfo, slots: int) -> None:
        """Take a worker into service."""
        info.state = "ready"
        function = info.function
        self.hub.event(function.app_id, function.name, info.container_id, "ready")
        self.handle(ev.WorkerReady(info.container_id, function.function_id, info.version, slots))

    async def worker_gone(self, info: ContainerInfo, session: WorkerSession) -> None:
        """Take a worker whose socket closed out of service, with the engine's reason when it comes soon."""
        if info.session is not session:
            return
        if not info.ended.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(info.ended.wait(), _END_GRACE)
        if info.session is not session:
            return
        info.session = None
        if info.ended.is_set():
            self._container_ended(info.container_id, info.reason)
        elif session.said_bye:
            self._container_ended(info.container_id, "drained")
        else:
            # It may only have lost its connection: it stays known and may dial in again.
            self.handle(ev.WorkerLost(info.container_id, "the connection to its container was lost"))
            info.state = "starting"
            self._loop.call_later(90.0, self._give_up, info)

    def _give_up(self, info: ContainerInfo) -> None:
        if (
            info.session is None
            and self.containers.get(info.container_id) is info
            and info.state == "starting"
        ):
            self.containers.pop(info.container_id, None)

    # --- apps -------------------------------------------------------------------------------------

    async def publish(self, args: dict[str, Any], session: ClientSession) -> dict[str, Any]:
        """Submit an App's jobs and make its Functions callable."""
        token = session.identity.token
        jobs = [
            entry["job"]
            for entry in args.get("functions") or ()
            if isinstance(entry, dict) and "job" in entry
        ]
        # Before anything is recorded: an engine that refuses leaves the App as it was.
        await asyncio.gather(*(self.engine.submit(job, token=token) for job in jobs))
        published = await self.apps.publish(args, deployed_by=session.identity.name)
        for record in published.functions:
            self._add_function(record)
        for record in published.removed:
            await self._remove_function(record.function_id, "its app was deployed without it", token)
        app = published.app
        if app.state == "ephemeral":
            self.own(app.app_id, session)
        return published.result()

    def own(self, app_id: str, session: ClientSession) -> None:
        """Bind an ephemeral App's life to a client."""
        self._owned_apps[app_id] = session.owner
        grace = self._graces.pop(f"app:{app_id}", None)
        if grace is not None:
            grace.cancel()

    async def stop_app(self, app_id: str, token: str | None = None) -> None:
        """Stop an App: its jobs, its containers, its calls."""
        self._owned_apps.pop(app_id, None)
        functions = await self.apps.stop(app_id)
        await asyncio.gather(
            *(self._remove_function(f.function_id, "its app was stopped", token) for f in functions)
        )
        self.hub.event(app_id, "", "", "app_stopped")

    def _expire_app(self, app_id: str) -> None:
        if app_id not in self._owned_apps:
            self.background(self.stop_app(app_id))

    async def _resume(self, record: FunctionRecord) -> None:
        try:
            await self.engine.submit(record.job)
        except EngineError as error:
            logger.warning("function %s of an earlier app cannot be resumed: %s", record.name, error)
        self._add_function(record)

    def _add_function(self, record: FunctionRecord) -> None:
        state = FunctionState(record)
        self.functions[record.function_id] = state
        self.handle(
            ev.FunctionAdded(record.function_id, ev.FunctionPolicy.from_spec(state.spec, state.version))
        )

    async def _remove_function(self, function_id: str, reason: str, token: str | None) -> None:
        state = self.functions.pop(function_id, None)
        if state is None:
            return
        self.handle(ev.FunctionRemoved(function_id, reason))
        try:
            await self.engine.stop(state.job_id, namespace=state.namespace, token=token)
        except EngineError as error:
            logger.warning("job %s cannot be stopped: %s", state.job_id, error)

    def _tasks_of(self, app_id: str) -> int:
        return sum(1 for c in self.containers.values() if c.function.app_id == app_id)

    # --- calls ------------------------------------------------------------------------------------

    def submit(
        self, session: ClientSession, call_id: str, function_id: str, items: Sequence[ev.SubmittedInput]
    ) -> None:
        """Take inputs of a call that its client waits for."""
        self._call_owner[call_id] = session.owner
        self.handle(ev.InputsSubmitted(call_id, function_id, False, session.caller, items))

    async def submit_durable(
        self, call_id: str, function_id: str, items: Sequence[ev.SubmittedInput]
    ) -> None:
        """Take inputs of a spawned call; returns when they are on the disk."""
        self._durable.add(call_id)
        await self.store.add_inputs(call_id, function_id, [StoredInput(*item) for item in items])
        self.handle(ev.InputsSubmitted(call_id, function_id, True, None, items))

    def end_call(self, call_id: str) -> None:
        """Forget a call that its client no longer waits for."""
        if self._call_owner.pop(call_id, None) is not None:
            self.handle(ev.CallClosed(call_id))

    async def result(self, call_id: str, index: int, timeout: float | None) -> StoredOutput | None:
        """Wait for an output of a durable call; None when ``timeout`` seconds pass without one.

        Raises:
            NotFoundError: there is no such call.
            OutputExpiredError: its results are no longer kept.
        """
        deadline = None if timeout is None else self._loop.time() + timeout
        while True:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.setdefault(call_id, []).append(waiter)
            try:
                found = await self.store.outputs(call_id, [index])
                if found:
                    return found[0]
                call = await self.store.call(call_id)
                if call is None:
                    raise NotFoundError(
                        f"there is no call {call_id}: the id is wrong, or its results expired"
                    )
                if call.expires_at is not None and call.expires_at < time.time():
                    raise OutputExpiredError(f"the results of call {call_id} are no longer kept")
                left = None if deadline is None else deadline - self._loop.time()
                if left is not None and left <= 0:
                    return None
                try:
                    await asyncio.wait_for(waiter, left)
                except asyncio.TimeoutError:
                    return None
            finally:
                waiting = self._waiters.get(call_id, [])
                if waiter in waiting:
                    waiting.remove(waiter)
                if not waiting:
                    self._waiters.pop(call_id, None)

    async def _expire_results(self) -> None:
        while True:
            for call_id in await self.store.expire(time.time()):
                self._durable.discard(call_id)
                self.handle(ev.CallClosed(call_id))
            await asyncio.sleep(600)

    # --- clients ----------------------------------------------------------------------------------

    def client_came(self, session: ClientSession, apps: Sequence[str]) -> None:
        """Bind a client's connection, new or again."""
        grace = self._graces.pop(session.owner, None)
        if grace is not None:
            grace.cancel()
        self.clients[session.owner] = session
        for app_id in apps:
            self.own(app_id, session)

    def client_left(self, session: ClientSession, *, cleanly: bool) -> None:
        """Note a client's lost connection; gone for good at once when it said so, else after its grace."""
        self.hub.unfollow(session.send)
        if self.clients.get(session.owner) is not session:
            return
        del self.clients[session.owner]
        if cleanly:
            self._client_gone(session.owner)
        else:
            self._grace(session.owner, self._client_gone, session.owner)

    def _client_gone(self, owner: str) -> None:
        self._graces.pop(owner, None)
        if not owner.startswith("ta-"):
            self.handle(ev.OwnerLost(owner))
        self._call_owner = {c: o for c, o in self._call_owner.items() if o != owner}
        for app_id in [a for a, o in self._owned_apps.items() if o == owner]:
            self.background(self.stop_app(app_id))

    def _grace(self, key: str, action: Any, argument: str, factor: float = 1.0) -> None:
        self._graces[key] = self._loop.call_later(self.settings.client_grace * factor, action, argument)


def _cut(payloads: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return ranges whose payloads fit in a frame together."""
    total = sum(map(len, payloads))
    if total <= frames.MAX_FRAME_BYTES // 2:
        return [(0, len(payloads))]
    ranges, start, size = [], 0, 0
    for position, payload in enumerate(payloads):
        if size and size + len(payload) > frames.MAX_FRAME_BYTES // 2:
            ranges.append((start, position))
            start, size = position, 0
        size += len(payload)
    ranges.append((start, len(payloads)))
    return ranges
