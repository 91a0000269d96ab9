"""Containers by Consul: what the jobs of Functions register there, followed by blocking queries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, Listener, ServedFunction, container_key
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.hashicorp.consul import ConsulClient, ConsulError
from modal_nomad.wire.services import TAG

logger = logging.getLogger("modal_nomad.dispatcher")

_AGAIN_SECONDS = (0.2, 1.0, 2.0)
_CANCEL_SECONDS = 1.0
_ALONE_SECONDS = (0.2, 1.0, 3.0, 10.0)
"""The same of a query that fails while the others do not: there may be thousands of services."""


class ConsulDiscovery:
    """Tells a listener what Consul has.

    Args:
        client: of Consul.
        secret: what the keys of containers are made with.
        listener: is told.
        tag: of the services to follow.
    """

    def __init__(self, client: ConsulClient, secret: bytes, listener: Listener, tag: str = TAG) -> None:
        self._client = client
        self._secret = secret
        self._listener = listener
        self._tag = tag
        self._watches: dict[str, asyncio.Task[None]] = {}
        # Cancelled and not over yet: a loop holds its tasks weakly.
        self._leaving: set[asyncio.Task[None]] = set()
        # Whether the list of services can be had: while it cannot, nothing else is asked for.
        self._reachable = asyncio.Event()
        # By service: what its instances say.
        self._found: dict[str, list[Entry]] = {}
        self._functions: dict[str, ServedFunction] = {}
        self._containers: dict[str, dict[str, ContainerAddress]] = {}
        self._said = ""

    async def run(self) -> None:
        """Follow Consul, for ever. What was there before an outage holds until it is over."""
        index, failures = 0, 0
        try:
            while True:
                try:
                    index, services = await self._client.services(index)
                except ConsulError as error:
                    self._failed(error)
                    self._reachable.clear()
                    index = 0
                    await asyncio.sleep(_AGAIN_SECONDS[min(failures, len(_AGAIN_SECONDS) - 1)])
                    failures += 1
                    continue
                failures, self._said = 0, ""
                self._reachable.set()
                self._watch({name for name, tags in services.items() if self._tag in tags})
        finally:
            left = {*self._watches.values(), *self._leaving}
            while left:
                # Again: a request that fails at this moment may have taken the cancellation for its timeout.
                for task in left:
                    task.cancel()
                _, left = await asyncio.wait(left, timeout=_CANCEL_SECONDS)

    def _failed(self, error: ConsulError) -> None:
        # Once for each trouble, not for each service and try.
        if str(error) != self._said:
            self._said = str(error)
            logger.warning("%s", error)

    def _watch(self, names: set[str]) -> None:
        for name in [x for x in self._watches if x not in names]:
            task = self._watches.pop(name)
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
            task.cancel()
            self._found.pop(name, None)
        for name in names - set(self._watches):
            self._watches[name] = asyncio.get_running_loop().create_task(self._follow(name))
        self._review()

    async def _follow(self, name: str) -> None:
        index, failures = 0, 0
        while True:
            try:
                index, entries = await self._client.healthy(name, self._tag, index)
            except ConsulError as error:
                self._failed(error)
                index = 0
                await asyncio.sleep(_ALONE_SECONDS[min(failures, len(_ALONE_SECONDS) - 1)])
                # One asks whether it is back, and all go on at the moment that it is.
                await self._reachable.wait()
                failures += 1
                continue
            failures = 0
            self._found[name] = [x for x in map(Entry.read, entries) if x is not None]
            self._review()

    def _review(self) -> None:
        """Say what changed."""
        entries = [entry for found in self._found.values() for entry in found]
        functions, where = understood(entries)
        for job in [x for x in self._functions if x not in functions]:
            del self._functions[job]
            self._containers.pop(job, None)
            self._listener.withdraw(job)
        for job, function in functions.items():
            if self._functions.get(job) != function:
                self._functions[job] = function
                self._listener.serve(function)
            has, now = self._containers.get(job, {}), {}
            for container_id, (host, port) in where[job].items():
                key = container_key(self._secret, container_id)
                now[container_id] = ContainerAddress(container_id, host, port, key)
            self._containers[job] = now
            for container_id in has:
                if container_id not in now:
                    self._listener.instance_out(job, container_id)
            for container_id, address in now.items():
                if has.get(container_id) != address:
                    self._listener.instance_up(job, address)


@dataclass(frozen=True)
class Entry:
    """One instance of a service.

    Attributes:
        born: grows with each registration: Consul's index of it.
        job: the Nomad job of its Function, ``namespace/id``.
        version: of the Function.
        container_id: the container.
        host: where it is.
        port: its port there.
        limit: requests that it takes at a time.
        single_use: it takes one in its life.
        route: the endpoint.
    """

    born: int
    job: str
    version: str
    container_id: str
    host: str
    port: int
    limit: int
    single_use: bool
    route: Route

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Entry | None:
        """Read what Consul says of one; None for what was not registered by a job of ours."""
        service = entry.get("Service") or {}
        meta = service.get("Meta") or {}
        try:
            job = str(meta["job"])
            return cls(
                born=int(service.get("CreateIndex") or 0),
                job=job,
                version=str(meta.get("version", "")),
                container_id=str(meta["container"]),
                host=str(service.get("Address") or entry["Node"]["Address"]),
                port=int(service["Port"]),
                limit=max(1, int(meta["max_inputs"])),
                single_use=meta.get("single_use") == "true",
                route=Route(
                    label=str(meta["label"]),
                    function_id=job,
                    method=str(meta.get("method", "")),
                    domains=tuple(x for x in str(meta.get("domains", "")).split(",") if x),
                    requires_proxy_auth=meta.get("proxy_auth") == "true",
                    environment=str(meta.get("environment", "main")),
                    owner=str(meta.get("app", "")),
                    deployed=meta.get("deployed") != "false",
                ),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            logger.warning(
                "service %s in Consul is not as our jobs register it: %r", service.get("ID"), error
            )
            return None


def understood(
    entries: Iterable[Entry],
) -> tuple[dict[str, ServedFunction], dict[str, dict[str, tuple[str, int]]]]:
    """Return what is served, and where its containers are: both by job.

    A Function has a service for each of its endpoints, and while one version follows another there are
    instances of both. What holds then is what the newest says, for instance that a token is asked for now.
    The order in which Consul names them means nothing.
    """
    functions: dict[str, ServedFunction] = {}
    where: dict[str, dict[str, tuple[str, int]]] = {}
    versions: dict[str, str] = {}
    ordered = sorted(entries, key=lambda x: (x.born, x.container_id, x.route.label, x.host, x.port))
    for entry in reversed(ordered):
        where.setdefault(entry.job, {}).setdefault(entry.container_id, (entry.host, entry.port))
        known = functions.get(entry.job)
        if known is None:
            versions[entry.job] = entry.version
            functions[entry.job] = ServedFunction(
                entry.job, (entry.route,), entry.limit, entry.single_use, entry.job
            )
        elif entry.version == versions[entry.job] and all(x.label != entry.route.label for x in known.routes):
            routes = tuple(sorted((*known.routes, entry.route), key=lambda x: x.label))
            functions[entry.job] = replace(known, routes=routes)
    # Of two that want the same name the one that is said last has it.
    return dict(reversed(functions.items())), where
