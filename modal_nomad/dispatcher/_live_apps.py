"""The Apps whose Functions may be called now: published, resumed, stopped, bound to their clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._containers import FunctionState, takes_snapshots
from modal_nomad.dispatcher._edge_drains import hold_seconds
from modal_nomad.dispatcher._graces import Graces
from modal_nomad.dispatcher._namespaces import EnvironmentNamespaces
from modal_nomad.dispatcher._publication import check_publication
from modal_nomad.dispatcher._variants import Variants
from modal_nomad.dispatcher.apps import DEFAULT_ENVIRONMENT, AppRegistry
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.blob_rights import BlobRights
from modal_nomad.dispatcher.images.steps import is_step
from modal_nomad.dispatcher.loghub import LogHub
from modal_nomad.dispatcher.objects.registry import ObjectRegistry, check_environment
from modal_nomad.dispatcher.schedules import Schedules
from modal_nomad.dispatcher.scope import check, check_unscoped
from modal_nomad.dispatcher.secrets import Secrets
from modal_nomad.dispatcher.store.base import FunctionRecord
from modal_nomad.dispatcher.web import Web
from modal_nomad.engines.base import Engine, EngineError
from modal_nomad.exception import InvalidError
from modal_nomad.wire.spec import FunctionSpec

logger = logging.getLogger("modal_nomad.dispatcher")


_RECONNECT_SECONDS = 3.0
"""After a restart clients have this long more to come back: they wait up to 2 s between attempts."""


class Publisher(Protocol):
    """Who publishes an App."""

    identity: Identity
    owner: str


class LiveApps:
    """Brings the registry's Apps to the engine and to the call engine, and takes them away again.

    Args:
        engine: a started engine.
        namespaces: where environments are on it.
        apps: the registry.
        functions: the live Functions, by id; they are added and removed here.
        variants: what callers made from them.
        secrets: what their containers are given.
        schedules: those that the clock calls.
        objects: the registry of what they have mounted.
        rights: who may read their files.
        web: serves their endpoints.
        hub: is told of stopped Apps.
        client_grace: seconds that an ephemeral App outlives its lost client.
        handle: gives the call engine an event.
        background: runs a coroutine that nobody waits for.
    """

    def __init__(
        self,
        engine: Engine,
        namespaces: EnvironmentNamespaces,
        apps: AppRegistry,
        functions: dict[str, FunctionState],
        variants: Variants,
        secrets: Secrets,
        schedules: Schedules,
        objects: ObjectRegistry,
        rights: BlobRights,
        web: Web,
        hub: LogHub,
        client_grace: float,
        handle: Callable[[ev.Event], None],
        background: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self.engine = engine
        self.namespaces = namespaces
        self.apps = apps
        self.functions = functions
        self.variants = variants
        self.secrets = secrets
        self.schedules = schedules
        self.objects = objects
        self.rights = rights
        self.web = web
        self.hub = hub
        self.handle = handle
        self.background = background
        self._client_grace = client_grace
        self._owners: dict[str, str] = {}
        self._environments: dict[str, str] = {}
        self._graces = Graces()

    async def resume(self) -> int:
        """Resume the Apps that the store has; gives the number of their Functions."""
        resumed = 0
        for app, functions in await self.apps.active():
            deployed = app.state == "deployed"
            self._environments[app.app_id] = app.environment
            specs = [FunctionSpec.from_dict(f.spec) for f in functions]
            await self.rights.add_artifacts(spec.code_bundle for spec in specs if spec.code_bundle)
            await asyncio.gather(*(self._resume(f, deployed) for f in functions))
            if app.state == "ephemeral":
                seconds = self._client_grace + _RECONNECT_SECONDS
                self._graces.begin(app.app_id, seconds, self._expire, app.app_id)
            resumed += len(functions)
        await self.variants.resume()
        await self.schedules.resume()
        return resumed

    def close(self) -> None:
        """Let no App's time run out any more."""
        self._graces.close()

    async def publish(self, args: dict[str, Any], session: Publisher) -> dict[str, Any]:
        """Submit an App's jobs and make its Functions callable.

        Args:
            args: of ``app.publish``.
            session: who publishes; what is ephemeral lives as long as its ``owner``.

        Raises:
            InvalidError: the arguments are malformed; nothing was done.
        """
        check_publication(args)
        token = session.identity.token
        for entry in args.get("functions") or ():
            # Kept with the Function, whatever its author wrote there: its containers are held to it.
            entry["spec"]["scope"] = list(session.identity.environments)
        specs = [FunctionSpec.from_dict(entry["spec"]) for entry in args.get("functions") or ()]
        environment = args.get("environment") or DEFAULT_ENVIRONMENT
        await self.check_use(specs, environment, session.identity)
        warnings = await self._check_web(args, specs)
        jobs = [entry["job"] for entry in args.get("functions") or ()]
        await self._place(environment, jobs, token)
        await self.rights.add_artifacts(spec.code_bundle for spec in specs if spec.code_bundle)
        # Before anything is recorded: an engine that refuses leaves the App as it was.
        await self._submit(jobs, token)
        published = await self.apps.publish(args, deployed_by=session.identity.name)
        app = published.app
        self._environments[app.app_id] = app.environment
        deployed = app.state == "deployed"
        before = {f.function_id: self.functions.get(f.function_id) for f in published.functions}
        states = [self._add_function(record, deployed) for record in published.functions]
        for state in states:
            await self._leave(before[state.function_id], state, token)
            await self._serve(state)
        for record in published.removed:
            await self._remove_function(record.function_id, "its app was deployed without it", token)
        if deployed:
            for state, record in zip(states, published.functions, strict=True):
                await self.schedules.follow(state, record.job, before[state.function_id], token)
        if app.state == "ephemeral":
            self.own(app.app_id, session)
        self.background(self.collect_secrets())
        result = published.result(warnings=[*warnings, *self._warnings(published.functions)])
        return {**result, "web_urls": self._web_urls(published.functions)}

    async def _submit(self, jobs: Sequence[Mapping[str, Any]], token: str | None) -> None:
        """Submit an App's jobs: all of them, or none."""
        answers = await asyncio.gather(
            *(self.engine.submit(job, token=token) for job in jobs), return_exceptions=True
        )
        refused = next((answer for answer in answers if isinstance(answer, BaseException)), None)
        if refused is None:
            return
        records = [record for _, functions in await self.apps.active() for record in functions]
        before = {_job_key(record.job): record.job for record in records}
        taken = [job for job, answer in zip(jobs, answers, strict=True) if answer is None]
        await asyncio.gather(*(self._take_back(job, before.get(_job_key(job)), token) for job in taken))
        raise refused

    async def _take_back(
        self, job: Mapping[str, Any], before: Mapping[str, Any] | None, token: str | None
    ) -> None:
        name, namespace = _job_key(job)
        try:
            if before is None:
                await self.engine.stop(name, namespace=namespace, token=token)
            else:
                await self.engine.submit(before, token=token)
        except EngineError as error:
            logger.warning("job %s cannot be made what it was before: %s", name, error)

    def _web_urls(self, functions: Sequence[FunctionRecord]) -> dict[str, str]:
        found = {}
        for function in functions:
            label = self.functions[function.function_id].label
            for method, url in self.web.urls(function.function_id).items():
                found[f"{label}.{method}" if method else label] = url
        return found

    async def _check_web(self, args: dict[str, Any], specs: Sequence[FunctionSpec]) -> list[str]:
        if not any(spec.served for spec in specs):
            return []
        app_id = args.get("app_id") or ""
        environment = args.get("environment") or DEFAULT_ENVIRONMENT
        if args.get("state") == "deployed" and isinstance(args.get("name"), str):
            # What is deployed under this name gives its endpoints to what replaces it.
            app_id = await self.apps.deployed_id(args["name"], environment) or app_id
        return await self.web.check(specs, environment, app_id)

    def check_place(self, environment: str, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Check that jobs are in the namespace of their environment. Raises InvalidError."""
        if self.engine.name == "local":
            return
        check_environment(environment)
        namespace = self.namespaces.of(environment)
        for job in jobs:
            if (job.get("Namespace") or "default") != namespace:
                raise InvalidError(
                    f"jobs of environment {environment!r} belong in the Nomad namespace {namespace!r}, not in"
                    f" {job.get('Namespace')!r}: run or deploy the App with a newer client"
                )

    async def _place(self, environment: str, jobs: Sequence[Mapping[str, Any]], token: str | None) -> None:
        """Make an environment's namespace, and see that jobs are in no other one."""
        self.check_place(environment, jobs)
        if self.engine.name != "local":
            await self.namespaces.make(environment, token)

    async def _leave(self, before: FunctionState | None, now: FunctionState, token: str | None) -> None:
        """Stop the job that a Function had elsewhere, before its environment had this namespace."""
        if before is not None and before.namespace != now.namespace:
            await self.engine.stop(before.job_id, namespace=before.namespace, token=token)

    def _warnings(self, functions: Sequence[FunctionRecord]) -> list[str]:
        snapshots = [
            f"{f.name}: enable_memory_snapshot has no effect {_where(f)}; every container starts anew"
            for f in functions
            if f.spec.get("enable_memory_snapshot") and not takes_snapshots(f.job)
        ]
        edges = [
            f"{f.name}: an edge that is no gateway starts no container: give it min_containers=1"
            for f in functions
            if self.web.lost_from_zero(self.functions[f.function_id].spec)
        ]
        return snapshots + edges + [text for f in functions for text in self._lacking(f.function_id)]

    def _lacking(self, function_id: str) -> list[str]:
        """Say which endpoints cannot start, as far as that is known before a container tries."""
        spec = self.functions[function_id].spec
        if spec.image.has_packages or "PYTHONPATH" in spec.env:
            return []
        name = spec.name[:-2] if spec.is_class else spec.name
        return [
            f"{f'{name}.{method}' if method else name} is a FastAPI endpoint, and its Image has no packages: "
            'add .pip_install("fastapi[standard]")'
            for method, web in spec.served.items()
            if web.kind == "endpoint"
        ]

    async def check_use(self, specs: Sequence[FunctionSpec], environment: str, identity: Identity) -> None:
        """Check that containers may have, and will find, their Secrets and what they have mounted.

        Raises:
            NotFoundError: one is not there.
            InvalidError: a Secret lacks a required variable.
            AuthError: it is of an environment that the caller's token is not for.
        """
        for spec in specs:
            for ref in spec.secret_refs:
                check(identity, ref.environment or environment)
            for volume in spec.volumes:
                if volume.backend:
                    check_unscoped(identity, volume.source)
                    continue
                check(identity, (await self.objects.find(volume.volume_id, "volume")).environment)
            for nfs in spec.network_file_systems:
                check(identity, (await self.objects.find(nfs.nfs_id, "nfs")).environment)
        await self.secrets.check(specs, environment)

    async def collect_secrets(self) -> None:
        """Remove the Secrets of ended Apps that were made of values in the program."""
        found = [(f.spec, f.environment) for f in self.functions.values()]
        steps = [x for x in found if is_step(x[0])]
        await self.secrets.collect([x for x in found if not is_step(x[0])], steps)

    def own(self, app_id: str, session: Publisher) -> None:
        """Bind an ephemeral App's life to a client whose token is for its environment."""
        allowed = session.identity.environments
        if allowed and self._environments.get(app_id) not in allowed:
            return
        self._owners[app_id] = session.owner
        self._graces.end(app_id)

    def owner_gone(self, owner: str) -> None:
        """Stop the ephemeral Apps of a client that does not come back."""
        for app_id in [a for a, o in self._owners.items() if o == owner]:
            self.background(self.stop(app_id))

    async def stop(self, app_id: str, token: str | None = None) -> None:
        """Stop an App: its jobs, its containers, its calls.

        Raises:
            EngineDenied: the caller's ``token`` may not stop its jobs; the App is as it was.
        """
        if token is not None:
            mine = [f for f in self.functions.values() if f.app_id == app_id]
            await asyncio.gather(
                *(self.engine.stop(f.job_id, namespace=f.namespace, token=token) for f in mine)
            )
        self._owners.pop(app_id, None)
        self._environments.pop(app_id, None)
        functions = await self.apps.stop(app_id)
        await asyncio.gather(
            *(self._remove_function(f.function_id, "its app was stopped", token) for f in functions)
        )
        self.hub.event(app_id, "", "", "app_stopped")
        await self.collect_secrets()

    def _expire(self, app_id: str) -> None:
        if app_id not in self._owners:
            self.background(self.stop(app_id))

    async def _resume(self, record: FunctionRecord, deployed: bool) -> None:
        state = self._add_function(record, deployed)
        await self._serve(state)
        try:
            await self.engine.submit(record.job)
            periodic = self.schedules.job_of(record.job, state.spec.schedule) if deployed else None
            if periodic is not None:
                await self.engine.submit(periodic)
        except EngineError as error:
            logger.warning("function %s of an earlier app cannot be resumed: %s", record.name, error)

    async def _serve(self, state: FunctionState) -> None:
        await self.web.function_added(state)
        if self.functions.get(state.function_id) is None:
            # Stopped in the same moment.
            self.web.function_removed(state.function_id)

    def _add_function(self, record: FunctionRecord, deployed: bool) -> FunctionState:
        state = FunctionState(record, deployed=deployed)
        self.functions[record.function_id] = state
        policy = replace(state.policy(), linger=hold_seconds(state.spec, self.web))
        self.handle(ev.FunctionAdded(record.function_id, policy))
        self.variants.follow(record.function_id)
        return state

    async def _remove_function(self, function_id: str, reason: str, token: str | None) -> None:
        state = self.functions.pop(function_id, None)
        if state is None:
            return
        if state.deployed:
            await self.schedules.forget(state, token)
        self.web.function_removed(function_id)
        await self.variants.remove(function_id, reason, token)
        self.handle(ev.FunctionRemoved(function_id, reason))
        try:
            await self.engine.stop(state.job_id, namespace=state.namespace, token=token)
        except EngineError as error:
            logger.warning("job %s cannot be stopped: %s", state.job_id, error)


def _job_key(job: Mapping[str, Any]) -> tuple[str, str]:
    return str(job.get("ID", "")), str(job.get("Namespace") or "default")


def _where(record: FunctionRecord) -> str:
    """Say what keeps a Function from memory snapshots."""
    if record.spec.get("volumes"):
        return "on a Function with Volumes"
    groups = record.job.get("TaskGroups") or ()
    drivers = {str(task.get("Driver")) for group in groups for task in group.get("Tasks") or ()}
    return "here" if drivers == {"raw_exec"} else f"with the task driver {', '.join(drivers)!r}"
