"""The dispatcher without its sockets: the call engine's events and commands, the store, the engine.

Every event goes through ``handle``; the commands that come back are carried out here, in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._call_frames import item_frames, output_frames, run_frames
from modal_nomad.dispatcher._call_graph import CallGraph
from modal_nomad.dispatcher._call_reader import CallReader
from modal_nomad.dispatcher._containers import Containers, FunctionState
from modal_nomad.dispatcher._durable_calls import GENERATOR, DurableCalls
from modal_nomad.dispatcher._durable_items import DurableItems
from modal_nomad.dispatcher._graces import Graces
from modal_nomad.dispatcher._live_apps import LiveApps
from modal_nomad.dispatcher._namespaces import EnvironmentNamespaces
from modal_nomad.dispatcher._variants import Variants
from modal_nomad.dispatcher.apps import AppRegistry
from modal_nomad.dispatcher.auth import WorkerTokens
from modal_nomad.dispatcher.blob_rights import BlobRights, flagged
from modal_nomad.dispatcher.blobs import BlobStore
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.copied_files import CopiedFiles
from modal_nomad.dispatcher.garbage import Garbage
from modal_nomad.dispatcher.gateway.tokens import ProxyTokens
from modal_nomad.dispatcher.images import Images
from modal_nomad.dispatcher.images.on_nomad import OnNomad
from modal_nomad.dispatcher.images.on_the_spot import OnTheSpot
from modal_nomad.dispatcher.images.room import Builder
from modal_nomad.dispatcher.images.steps import FunctionSteps
from modal_nomad.dispatcher.loghub import LogHub
from modal_nomad.dispatcher.nfs import NetworkFileSystems
from modal_nomad.dispatcher.objects.answers import Answers
from modal_nomad.dispatcher.objects.environments import Environments
from modal_nomad.dispatcher.objects.queues import Queues
from modal_nomad.dispatcher.objects.registry import ObjectRegistry
from modal_nomad.dispatcher.schedules import Schedules
from modal_nomad.dispatcher.secrets import PENDING_SECONDS, Secrets, SecretStoreError
from modal_nomad.dispatcher.sessions import ClientSession
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.store import Store, StoreError
from modal_nomad.dispatcher.tunnels import AssignedTunnels, Tunnels
from modal_nomad.dispatcher.tunnels.room import Room
from modal_nomad.dispatcher.volumes import Volumes
from modal_nomad.dispatcher.web import Web
from modal_nomad.engines.base import Engine
from modal_nomad.exception import InvalidError
from modal_nomad.render import RenderSettings

logger = logging.getLogger("modal_nomad.dispatcher")

_NOMAD_CEILING = 100
_NOMAD_CEILING_PER_CORE = 4


class Dispatcher:
    """Everything that a server process holds.

    Attributes:
        apps: the registry of Apps.
        live_apps: those of them whose Functions may be called.
        functions: the Functions that may be called, by id.
        variants: those of them that callers made from others.
        schedules: those that the clock calls.
        containers: what was started for them.
        calls: the call engine.
        durable: spawned calls, which outlive their callers.
        items: what spawned generators yield.
        reader: what clients ask of them.
        graph: who called whom.
        clients: the connected callers, by owner id.
        hub: containers' output.
        copied: knows the files that images copy.
        garbage: removes what nothing refers to.
        objects: the registry of named objects.
        rights: who may read which blobs.
        volumes: the trees of Volumes.
        nfs: the directories of NetworkFileSystems.
        environments: what they and Apps are in.
        namespaces: where those are on the engine.
        answers: requests that are carried out once.
        secrets: the Secrets.
        queues: what is in Queues.
        web: what is served on the web.
        images: the container images that were built here.
        tunnels: ports outside that lead to ports in containers.
        proxy_tokens: what opens those endpoints that need one.

    Args:
        settings: the configuration.
        store: an open store.
        blobs: the blob store.
        engine: a started engine.
        workers: mints the tokens of local containers.
        runtime_sha: SHA-256 of the runtime bundle, which is in the blob store.
        web_sha: the same of the bundle for web Functions.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        blobs: BlobStore,
        engine: Engine,
        workers: WorkerTokens,
        runtime_sha: str,
        web_sha: str = "",
    ) -> None:
        self.settings = settings
        self.store = store
        self.blobs = blobs
        self.engine = engine
        self.workers = workers
        self.runtime_sha = runtime_sha
        self.hub = LogHub()
        self.started = time.time()
        # Leases of an earlier process of this dispatcher must never be taken for ours.
        self.calls = CallEngine(self._ceiling(0), first_lease=int(time.time() * 1000) << 10)
        self.functions: dict[str, FunctionState] = {}
        self.secrets = Secrets.from_settings(settings, store)
        builds = settings.build_settings()
        jobs = getattr(engine, "client", None)
        self.image_jobs: OnNomad | None = None
        builder: Builder = OnTheSpot(builds.builder, settings.listen)
        if jobs is not None:
            from modal_nomad.engines._nomad_jobs import NomadJobs

            namespace = str(settings.render.get("namespace", RenderSettings.namespace))
            builder = self.image_jobs = OnNomad(NomadJobs(jobs, namespace), builds, settings.address)
        self.images = Images(store, self.secrets, builds, builder, runtime_sha, workers.mint)
        self.proxy_tokens = ProxyTokens(store)
        # Known to all dispatchers of an installation, where there may be several.
        shared = settings.gateway_token().encode() or workers.key
        self.web = Web(
            store,
            shared,
            settings.gateway_settings(),
            settings.workspace,
            self.handle,
            self.proxy_tokens.opens,
            bool(settings.web.get("edge", False)),
            float(settings.web.get("edge_seconds", 30.0)),
        )
        places, home = settings.tunnel_settings(), Path(settings.home)
        self.tunnels: Room = (
            AssignedTunnels(places, shared) if places.gateways else Tunnels(places, shared, home)
        )
        self.containers = Containers(
            engine,
            self.functions,
            self.hub,
            settings,
            workers,
            self.secrets,
            self.web,
            self.images,
            self.handle,
            self.background,
        )
        self.objects = ObjectRegistry(store, settings.client_grace, self.background)
        self.apps = AppRegistry(store, tasks=self.containers.of_app)
        self.variants = Variants(
            store, engine, self.functions, self._handle_function, self.calls.pool, self.background
        )
        self.durable = DurableCalls(store, self.calls, settings.result_days, self.handle)
        self.schedules = Schedules(store, engine, self.functions, self.durable, self.submit_durable)
        render = settings.render_dict(runtime_sha)
        self.namespaces = EnvironmentNamespaces(engine, RenderSettings.from_dict(render))
        bundles = frozenset((runtime_sha, web_sha))
        self.rights = BlobRights(store, blobs, self.background, bundles)
        self.live_apps = LiveApps(
            engine,
            self.namespaces,
            self.apps,
            self.functions,
            self.variants,
            self.secrets,
            self.schedules,
            self.objects,
            self.rights,
            self.web,
            self.hub,
            settings.client_grace,
            self._handle_function,
            self.background,
        )
        self._takers: dict[str, Callable[[ev.Deliver], None]] = {}
        self.images.steps = FunctionSteps(
            self.live_apps, self.handle, self._takers, self.hub, blobs, self.rights, render
        )
        self.items = DurableItems(store, self.durable, self.handle, self.background)
        self.reader = CallReader(store, self.durable)
        self.copied = CopiedFiles(blobs, settings.garbage_age)
        self.garbage = Garbage(
            store,
            blobs,
            self.rights,
            self.copied,
            engine,
            self.calls,
            self.functions,
            self.containers,
            self.hub,
            settings,
            bundles,
        )
        self.graph = CallGraph(store, self.calls, self.functions, self.durable.ids, self.background)
        self.volumes = Volumes(store, blobs, self.objects, self.rights)
        self.nfs = NetworkFileSystems(settings, self.objects)
        self.environments = Environments(
            store, self.objects, self.live_apps, self.secrets.store, self.namespaces, self.background
        )
        self.answers = Answers(store)
        self.queues = Queues(store, self.background, lambda owner: owner in self.clients)
        self.objects.on_delete("queue", self.queues.deleted)
        self.clients: dict[str, ClientSession] = {}
        self.secrets.connected = self.clients.__contains__
        self._call_owner: dict[str, str] = {}
        self._graces = Graces()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._now = time.monotonic

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Resume what the store has and begin watching the engine."""
        await self.rights.open()
        await self.secrets.open()
        await self.web.read_suffixes()
        await self.nfs.open()
        self.background(self.secrets.run(self._replace))
        self.background(self.containers.watch())
        self.background(self._follow_capacity())
        resumed = await self.live_apps.resume()
        for call_id in await self.durable.resume():
            await self.items.resume(call_id)
        await self.objects.resume()
        await self.volumes.resume()
        # After the calls in progress: a run may not be made while the one before it is among them.
        self.background(self.schedules.run())
        self.background(self._collect_secrets())
        self.background(self._take_back_leases())
        self.background(self.durable.expire())
        self.background(self.objects.expire())
        self.background(self.garbage.run())
        self.background(self.volumes.pins.run())
        logger.info("%d functions of earlier apps resumed", resumed)

    async def close(self) -> None:
        """Stop watching; what is durable is in the store already."""
        if self._tick is not None:
            self._tick.cancel()
        self._graces.close()
        self.live_apps.close()
        self.variants.close()
        self.objects.close()
        self.volumes.close()
        await self.web.close()
        await self.images.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.secrets.close()

    async def _collect_secrets(self) -> None:
        resumed = False
        while True:
            try:
                if not resumed:
                    await self.secrets.resume()
                    resumed = True
                await self.live_apps.collect_secrets()
            except SecretStoreError as error:
                logger.warning("Secrets of ended Apps cannot be removed now: %s", error)
            # Of a program that ended between sending them and being published nobody says a word.
            await asyncio.sleep(PENDING_SECONDS)

    async def _take_back_leases(self) -> None:
        try:
            await self.secrets.take_back(self.containers.infos.__contains__)
        except StoreError as error:
            logger.warning("leases of containers that are gone cannot be revoked now: %s", error)

    async def _follow_capacity(self) -> None:
        async for capacity in self.engine.capacities():
            logger.info("%d cores on %d nodes take containers", capacity.cores, capacity.nodes)
            self.handle(ev.CapacityChanged(capacity.cores, self._ceiling(capacity.cores)))

    def _ceiling(self, cores: int) -> int:
        """Return the most containers of a Function that names no ceiling, whatever its inputs do."""
        if self.settings.default_max_containers > 0:
            return self.settings.default_max_containers
        if self.engine.name == "local":
            return max(4, cores)
        return max(_NOMAD_CEILING, _NOMAD_CEILING_PER_CORE * cores)

    def _replace(self, container_id: str) -> None:
        """Have a container end after what it runs; who comes next gets another."""
        self.handle(ev.WorkerDraining(container_id))
        self.containers.drain(container_id)

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
        container_id = event.container_id if type(event) is ev.OutputsReturned else ""
        for command in self.calls.handle(event, self._now()):
            kind = type(command)
            if kind is ev.Lease:
                self._lease(command)  # type: ignore[arg-type]
            elif kind is ev.Deliver:
                self._deliver(command, container_id)  # type: ignore[arg-type]
            else:
                self._carry_out(command)
        if self._tick is not None and not self.calls.rearmed:
            return
        self.calls.rearmed = False
        wakeup = self.calls.next_wakeup()
        if wakeup is not None and (self._tick is None or wakeup < self._tick_at):
            if self._tick is not None:
                self._tick.cancel()
            self._tick_at = wakeup
            self._tick = self._loop.call_later(max(0.0, wakeup - self._now()), self._ticked)

    def _handle_function(self, event: ev.Event) -> None:
        """Take what becomes of a Function."""
        self.handle(event)
        self.containers.parked.review()

    def _ticked(self) -> None:
        self._tick = None
        # No container may be taken for idle that has just got a request.
        self.web.flush()
        self.handle(ev.Tick())

    def _carry_out(self, command: ev.Command) -> None:
        if isinstance(command, ev.StartContainers):
            self.containers.start(command)
        elif isinstance(command, ev.DrainContainer):
            self.containers.drain(command.container_id)
        elif isinstance(command, ev.StopContainer):
            self.containers.stop(command.container_id, force=command.force)
        elif isinstance(command, ev.DeliverItems):
            self._deliver_items(command)
        elif isinstance(command, ev.GrantItems):
            session = self.containers.session(command.container_id)
            if session is not None:
                session.send_frame({"t": "more", "x": command.lease, "n": command.taken})
        elif isinstance(command, ev.CancelLeases):
            session = self.containers.session(command.container_id)
            if session is not None:
                session.send_frame({"t": "cancel", "x": command.leases})
        elif isinstance(command, ev.KeepTries):
            self.background(self.durable.keep_tries(command))
        elif isinstance(command, ev.FailRequests):
            self.web.failed(command)

    def _lease(self, command: ev.Lease) -> None:
        session = self.containers.session(command.container_id)
        if session is None:
            return
        if session.scope:
            inputs = command.inputs
            self.rights.show_soon(session.scope, flagged((x[3] for x in inputs), (x[4] for x in inputs)))
        method_of = self.calls.method if session.of_class else None
        for data in run_frames(command.inputs, self.durable.ids, method_of):
            session.send(data)

    def _deliver(self, command: ev.Deliver, container_id: str) -> None:
        call_id = command.call_id
        if call_id in self.durable.ids:
            self.background(self._keep(command, container_id))
            return
        self.graph.answered(command, container_id)
        owner = self._call_owner.get(call_id)
        session = self.clients.get(owner) if owner is not None else None
        if session is None:
            if (taker := self._takers.get(call_id)) is not None:
                taker(command)
            return
        if session.identity.environments:
            outputs = command.outputs
            names = flagged((x[2] for x in outputs), (x[3] for x in outputs))
            self.rights.show_soon(session.identity.environments, names)
        for data in output_frames(command):
            session.send(data)

    async def _keep(self, command: ev.Deliver, container_id: str) -> None:
        await self.items.written(command.call_id)
        await self.durable.keep(command.call_id, command.outputs, container_id)
        if command.call_id not in self.durable.ids:
            self.graph.ended(command.call_id)

    def _deliver_items(self, command: ev.DeliverItems) -> None:
        call_id = command.call_id
        if call_id in self.durable.ids:
            self.items.keep(command)
            return
        session = self.clients.get(self._call_owner.get(call_id, ""))
        if session is None:
            return
        if session.identity.environments:
            names = flagged((x[0] for x in command.items), (x[1] for x in command.items))
            self.rights.show_soon(session.identity.environments, names)
        for data in item_frames(command):
            session.send(data)

    # --- calls ------------------------------------------------------------------------------------

    def submit(
        self,
        session: ClientSession,
        call_id: str,
        function_id: str,
        items: Sequence[ev.SubmittedInput],
        method: str = "",
        parent: str = "",
    ) -> None:
        """Take inputs of a call that its client waits for; ``parent`` is the input that made it."""
        self._call_owner[call_id] = session.owner
        if parent:
            self.graph.called(call_id, function_id, method, parent, [x[0] for x in items])
        self.handle(ev.InputsSubmitted(call_id, function_id, False, session.caller, items, method=method))

    async def submit_durable(
        self,
        call_id: str,
        function_id: str,
        items: Sequence[ev.SubmittedInput],
        num_inputs: int | None,
        method: str = "",
        parent: str = "",
    ) -> None:
        """Take inputs of a spawned call; returns when they are on the disk.

        Raises:
            InvalidError: a large value that an input refers to is not here.
        """
        named = flagged((x[1] for x in items), (x[2] for x in items))
        if named and await self.blobs.missing(named):
            raise InvalidError("a large argument did not arrive with its call: spawn it again")
        if parent:
            self.graph.called(call_id, function_id, method, parent, None)
        function = self.functions.get(function_id)
        kind = GENERATOR if function is not None and function.spec.yields(method) else "spawn"
        await self.durable.submit(
            call_id,
            function_id,
            items,
            kind=kind,
            num_inputs=num_inputs,
            method=method,
            environment=function.environment if function is not None else "",
        )

    def items_taken(self, session: ClientSession, call_id: str, index: int, count: int) -> None:
        """Note how far the reader of a generator is; that of a spawned one is the store."""
        if self._call_owner.get(call_id) == session.owner:
            self.handle(ev.ItemsTaken(call_id, index, count))

    def end_call(self, session: ClientSession, call_id: str) -> None:
        """Forget a call that its client no longer waits for."""
        if self._call_owner.get(call_id) == session.owner:
            del self._call_owner[call_id]
            self.handle(ev.CallClosed(call_id))
            self.graph.ended(call_id)

    # --- clients ----------------------------------------------------------------------------------

    def client_came(self, session: ClientSession, apps: Sequence[str]) -> None:
        """Bind a client's connection, new or again."""
        self._graces.end(session.owner)
        self.objects.owner_came(session.owner)
        self.clients[session.owner] = session
        for app_id in apps:
            self.live_apps.own(app_id, session)

    def client_left(self, session: ClientSession, *, cleanly: bool) -> None:
        """Note a client's lost connection; gone for good at once when it said so, else after its grace."""
        self.hub.unfollow(session.send)
        if self.clients.get(session.owner) is not session:
            return
        del self.clients[session.owner]
        self.queues.owner_left(session.owner)
        if cleanly or session.said_bye:
            self._forget_answers(session)
        if cleanly:
            self._client_gone(session.owner)
        else:
            owner = session.owner
            grace = self.settings.client_grace
            self._graces.begin(owner, grace, lambda _: self._client_lost(session), owner)

    def _client_lost(self, session: ClientSession) -> None:
        self._client_gone(session.owner)
        if session.identity.container and session.identity.container not in self.containers.infos:
            self._forget_answers(session)

    def _forget_answers(self, session: ClientSession) -> None:
        # Nobody is left to ask for them again.
        if session.answers:
            self.background(self.store.forget_answers(session.owner))

    def _client_gone(self, owner: str) -> None:
        if not owner.startswith("ta-"):
            self.handle(ev.OwnerLost(owner))
        for call_id in [c for c, o in self._call_owner.items() if o == owner]:
            del self._call_owner[call_id]
            self.graph.ended(call_id)
        self.live_apps.owner_gone(owner)
        self.objects.owner_gone(owner)
