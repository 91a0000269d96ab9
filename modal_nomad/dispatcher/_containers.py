"""The containers of live Functions: started through the engine, bound to the workers that dial in."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._edge_drains import EdgeDrains
from modal_nomad.dispatcher._gone_images import GoneImages
from modal_nomad.dispatcher._parked import Parked
from modal_nomad.dispatcher.auth import WorkerTokens
from modal_nomad.dispatcher.images import Images
from modal_nomad.dispatcher.loghub import LogHub
from modal_nomad.dispatcher.secrets import Secrets, SecretStoreError, SecretStoreUnavailable
from modal_nomad.dispatcher.sessions import WorkerSession
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.store.base import FunctionRecord
from modal_nomad.dispatcher.web import Web
from modal_nomad.engines.base import (
    ContainerEvent,
    ContainerRequest,
    ContainerState,
    Engine,
    EngineError,
    ImageGone,
)
from modal_nomad.exception import (
    Error,
    ExecutionError,
    ImageBuildError,
    NotFoundError,
    OutOfDiskError,
    OutOfMemoryError,
)
from modal_nomad.render.container import NO_PYTHON
from modal_nomad.render.function import SNAPSHOT_META
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.serialization import pack_exception
from modal_nomad.wire.spec import FunctionSpec, content_key

logger = logging.getLogger("modal_nomad.dispatcher")

_END_GRACE = 5.0
"""Seconds to wait, after a worker's socket closed, for the engine to say in words why it ended, or for the
worker to dial in again: a runtime takes containers down before it says so, and a busy node is late."""
_RETURN_SECONDS = 90.0
"""Seconds that a worker whose connection broke may take to dial in again."""


class FunctionState:
    """What the dispatcher holds of one live Function."""

    __slots__ = (
        "app_id",
        "autoscaler",
        "deployed",
        "environment",
        "function_id",
        "job_id",
        "label",
        "name",
        "namespace",
        "params",
        "parent_id",
        "snapshot_job",
        "spec",
        "spec_dict",
        "version",
    )

    def __init__(self, record: FunctionRecord, *, deployed: bool = False) -> None:
        self.function_id = record.function_id
        self.deployed = deployed
        self.app_id = record.app_id
        self.name = record.name
        # A class is one Function, named Class.*; people know it as Class.
        self.label = record.name[:-2] if record.name.endswith(".*") else record.name
        self.environment = record.environment
        self.autoscaler = dict(record.autoscaler)
        self.spec_dict = dict(record.spec)
        self.spec = FunctionSpec.from_dict(record.spec)
        self.version = self.spec.version_key
        self.job_id = str(record.job.get("ID", ""))
        self.namespace = str(record.job.get("Namespace") or "default")
        self.parent_id: str | None = None
        self.params: bytes | None = None
        self.snapshot_job = content_key(record.job) if takes_snapshots(record.job) else ""

    @property
    def snapshot(self) -> str:
        """The name of the memory snapshot that containers are forked from; empty where there are none."""
        if not self.snapshot_job:
            return ""
        # Whatever of this differs, a fork of the other would be wrong.
        return content_key([self.function_id, self.version, self.snapshot_job])[:32]

    def policy(self) -> ev.FunctionPolicy:
        """Return what the call engine is to know: the specification, with the settings changed since."""
        changes = dict(self.autoscaler)
        if self.spec.needs_parameters and self.params is None:
            # Its containers could not construct anything: each set of parameters has a floor of its own.
            changes.update(min_containers=0, buffer_containers=0)
        return dataclasses.replace(ev.FunctionPolicy.from_spec(self.spec, self.version), **changes)


def takes_snapshots(job: Mapping[str, Any]) -> bool:
    """Tell whether containers of a rendered job can be forked from memory snapshots."""
    block = job.get("ParameterizedJob")
    return isinstance(block, Mapping) and SNAPSHOT_META in (block.get("MetaOptional") or ())


class ContainerInfo:
    """A container that the dispatcher started or adopted."""

    __slots__ = ("container_id", "ended", "error", "function", "reason", "session", "state", "version")

    def __init__(self, container_id: str, function: FunctionState, version: str) -> None:
        self.container_id = container_id
        self.function = function
        self.version = version
        self.session: WorkerSession | None = None
        self.state = "starting"
        self.reason = ""
        self.error: Exception | None = None
        self.ended = asyncio.Event()


def _no_python(event: ContainerEvent, spec: FunctionSpec) -> Exception | None:
    """Return what callers get when a container image has nothing that runs a worker."""
    if event.exit_code != NO_PYTHON or not spec.container_image:
        return None
    return ExecutionError(
        f"the image {spec.container_image} has no CPython 3.9 or newer: add one to it (add_python= of"
        " Image.from_registry, or a step that installs it), or name it with Image.env({'MODAL_PYTHON': ...})"
    )


class Containers:
    """Every container that was started or adopted, and what becomes of it.

    Args:
        engine: a started engine.
        functions: the live Functions, by id.
        hub: is told what becomes of containers.
        settings: the configuration.
        workers: mints the tokens of local containers.
        secrets: what containers get from their Secrets.
        web: sends them requests.
        images: builds what their images are.
        handle: gives the call engine an event.
        background: runs a coroutine that nobody waits for.
    """

    def __init__(
        self,
        engine: Engine,
        functions: Mapping[str, FunctionState],
        hub: LogHub,
        settings: Settings,
        workers: WorkerTokens,
        secrets: Secrets,
        web: Web,
        images: Images,
        handle: Callable[[ev.Event], None],
        background: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self.engine = engine
        self.functions = functions
        self.hub = hub
        self.settings = settings
        self.workers = workers
        self.secrets = secrets
        self.web = web
        self.gone_images = GoneImages(images)
        self.infos: dict[str, ContainerInfo] = {}
        self.handle = handle
        self.background = background
        self.parked = Parked(functions, lambda container_id: self.stop(container_id, force=False))
        self._loop = asyncio.get_running_loop()
        self.edges = EdgeDrains(functions, self.infos, web)

    def session(self, container_id: str) -> WorkerSession | None:
        """Return the connection of a container's worker, if it has one."""
        info = self.infos.get(container_id)
        return info.session if info is not None else None

    def values(self) -> Iterable[ContainerInfo]:
        """Return every container."""
        return self.infos.values()

    def of_app(self, app_id: str) -> int:
        """Return how many containers an App has."""
        return sum(1 for c in self.infos.values() if c.function.app_id == app_id)

    def start(self, command: ev.StartContainers) -> None:
        """Start containers, and tell the call engine their ids."""
        function = self.functions.get(command.function_id)
        ids: list[str] = []
        if function is not None and function.version == command.version_key:
            ids = [new_id("ta") for _ in range(command.count)]
            for container_id in ids:
                self.infos[container_id] = ContainerInfo(container_id, function, command.version_key)
                self.background(self._start(container_id, function))
        self.handle(ev.ContainersStarting(command.function_id, command.version_key, ids, command.count))

    async def _start(self, container_id: str, function: FunctionState) -> None:
        self.hub.event(function.app_id, function.label, container_id, "starting")
        env = {}
        if self.engine.name == "local":
            env = {
                "MODAL_SERVER_URL": self.settings.address,
                "MODAL_WORKER_TOKEN": self.workers.mint(container_id),
                "MODAL_ENVIRONMENT": function.environment,
                "MODAL_TASK_ID": container_id,
                "MODAL_IS_REMOTE": "1",
            }
            env.update(self._snapshot(function))
        try:
            secrets: Mapping[str, str] = {}
            if function.spec.secret_refs:
                secrets = await self.secrets.variables(container_id, function.spec, function.environment)
                if container_id not in self.infos:
                    # It was given up meanwhile; whoever did that found no lease to end.
                    await self.secrets.ended(container_id)
                    return
            name = function.snapshot if self.engine.name != "local" else ""
            request = ContainerRequest(container_id, function.job_id, function.namespace, env, secrets, name)
            await self.engine.start_container(request)
        except (EngineError, SecretStoreUnavailable) as error:
            self._ended(container_id, str(error))
        except (Error, SecretStoreError) as error:
            # Another try would fail alike: its callers are told.
            told = error if isinstance(error, Error) else ExecutionError(str(error))
            self.handle(ev.WorkerInitFailed(container_id, pack_exception(told)))
            self._ended(container_id, str(error))

    def _snapshot(self, function: FunctionState) -> dict[str, str]:
        """Return what says to a local container where its Function's memory snapshot is, or is to be."""
        # On this machine a snapshot needs no allocation of its own.
        variables = {"MODAL_SNAPSHOT": "", "MODAL_SNAPSHOT_SECONDS": ""}
        if function.snapshot:
            variables["MODAL_SNAPSHOT"] = str(Path(self.settings.home, "snapshots", function.snapshot))
        return variables

    def drain(self, container_id: str) -> None:
        """Ask a container to end after what it runs."""
        self.leaving(container_id)
        info = self.infos.get(container_id)
        if info is None or info.session is None:
            self.stop(container_id, force=False)
        else:
            self.edges.drain(info)

    def leaving(self, container_id: str) -> None:
        """Have a container get no more requests: it ends after those that it has."""
        info = self.infos.get(container_id)
        if info is not None:
            self.web.container_out(info)

    def stop(self, container_id: str, *, force: bool) -> None:
        """End a container."""
        self.leaving(container_id)
        self.background(self._stop(container_id, force=force))

    async def _stop(self, container_id: str, *, force: bool) -> None:
        try:
            await self.engine.stop_container(container_id, force=force)
        except EngineError as error:
            logger.warning("container %s cannot be stopped: %s", container_id, error)

    async def watch(self) -> None:
        """Follow what the engine says of containers, for ever."""
        async for event in self.engine.watch():
            try:
                self._engine_event(event)
            except Exception:
                logger.exception("an engine event could not be handled")

    def _engine_event(self, event: ContainerEvent) -> None:
        info = self.infos.get(event.container_id)
        if event.state.ended:
            self.parked.ended(event.container_id)
        elif event.allocation_id:
            self.parked.placed(event.container_id)
        elif event.reason:
            self.parked.unplaced(event.container_id)
        if info is None:
            return
        function = info.function
        if event.state.ended:
            if info.error is None:
                info.reason = event.reason or f"ended with exit code {event.exit_code}"
                info.error = event.error
            info.ended.set()
            if info.session is None and self.gone_images.takes(event, function):
                self.background(self._build_anew(info, event))
            elif info.session is None:
                error = event.error or _no_python(event, function.spec)
                if error is not None:
                    if isinstance(error, ImageBuildError):
                        error.image_id = function.spec.image.image_id
                    if isinstance(error, ImageGone):
                        # Of a type that callers have, too.
                        error = ExecutionError(str(error))
                    payload = pack_exception(error)
                    self.handle(ev.WorkerInitFailed(event.container_id, payload))
                self._ended(event.container_id, info.reason)
        elif event.state is ContainerState.PENDING and event.reason:
            self.handle(ev.ContainerPending(event.container_id, event.reason))
            self.hub.event(function.app_id, function.label, event.container_id, "pending", event.reason)
        elif event.state is ContainerState.RUNNING and info.state == "starting":
            self.handle(ev.ContainerPending(event.container_id, ""))

    async def _build_anew(self, info: ContainerInfo, event: ContainerEvent) -> None:
        """Build the image that a container could not be started from, and let another one be started."""
        function, container_id = info.function, info.container_id
        text = f"the image {function.spec.container_image} is gone, and is built anew"
        logger.warning("%s of app %s: %s", function.spec.name, function.spec.app, text)
        self.handle(ev.ContainerPending(container_id, text))
        self.hub.event(function.app_id, function.label, container_id, "pending", text)
        try:
            await self.gone_images.build(function)
        except Exception as error:
            told = ExecutionError(f"{info.reason}; building it anew failed: {error}")
            self.handle(ev.WorkerInitFailed(container_id, pack_exception(told)))
            self._ended(container_id, info.reason)
        else:
            self._ended(container_id, "its image was gone, and has been built anew")

    def _ended(self, container_id: str, reason: str) -> None:
        info = self.infos.pop(container_id, None)
        if info is None:
            return
        self.edges.ended(info)
        if info.function.spec.secret_refs:
            self.background(self.secrets.ended(container_id))
        # A container that did all it was asked to is nothing to tell the user of.
        told = "" if reason in ("drained", "stopped") else reason
        self.hub.event(info.function.app_id, info.function.label, container_id, "ended", told)
        # Calls that its code made and waits for have nobody left to answer to.
        self.handle(ev.OwnerLost(container_id))
        if info.state == "starting":
            self.handle(ev.ContainerFailed(container_id, reason))
        else:
            error = pack_exception(info.error) if info.error is not None else b""
            self.handle(ev.WorkerLost(container_id, reason, error))

    def adopt(self, session: WorkerSession) -> ContainerInfo:
        """Bind a worker's connection to its container. Raises NotFoundError when it has none."""
        info = self.infos.get(session.container_id)
        if info is None:
            raise NotFoundError(f"container {session.container_id} belongs to no live function; it may end")
        if info.session is not None:
            # The same container again: its old connection broke without our noticing.
            self.handle(ev.WorkerLost(session.container_id, "its connection was replaced"))
        info.session = session
        session.of_class = info.function.spec.is_class
        session.scope = info.function.spec.scope
        return info

    def ready(self, info: ContainerInfo, slots: int, web: Any = None) -> None:
        """Take a worker into service; ``web`` is the address that it takes requests at."""
        info.state = "ready"
        self.edges.ready(info)
        function = info.function
        self.hub.event(function.app_id, function.label, info.container_id, "ready")
        self.web.container_up(info, web)
        self.handle(ev.WorkerReady(info.container_id, function.function_id, info.version, slots))

    def over(self, info: ContainerInfo, kind: str, reason: str) -> None:
        """Take a worker's word that it ends, for it used more than it may.

        Args:
            info: its container.
            kind: of what: ``disk``, or ``memory``.
            reason: that in words.
        """
        info.error = OutOfDiskError(reason) if kind == "disk" else OutOfMemoryError(reason)
        info.reason = reason

    async def gone(self, info: ContainerInfo, session: WorkerSession) -> None:
        """Take a worker whose socket closed out of service, with the engine's reason when it comes soon."""
        if info.session is not session:
            return
        self.web.container_gone(info)
        if not info.ended.is_set() and info.error is None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(info.ended.wait(), _END_GRACE)
        if info.session is not session:
            return
        info.session = None
        if session.said_bye:
            self._ended(info.container_id, "drained")
            if session.parks and not info.ended.is_set():
                self.parked.add(info)
        elif info.ended.is_set() or info.error is not None:
            self._ended(info.container_id, info.reason)
        else:
            # It may only have lost its connection: it stays known and may dial in again.
            self.handle(ev.WorkerLost(info.container_id, "the connection to its container was lost"))
            info.state = "starting"
            self._loop.call_later(_RETURN_SECONDS, self._give_up, info)

    def _give_up(self, info: ContainerInfo) -> None:
        if info.session is None and self.infos.get(info.container_id) is info and info.state == "starting":
            self.infos.pop(info.container_id, None)
