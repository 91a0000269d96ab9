"""Containers by Consul: what the jobs of Functions register there, followed by blocking queries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, Listener, ServedFunction, container_key
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.hashicorp.consul import ConsulClient, ConsulError
from modal_nomad.wire.services import TAG

logger = logging.getLogger("modal_nomad.dispatcher")

_AGAIN_SECONDS = (0.2, 1.0, 3.0, 10.0)


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
        # By service: what its instances say.
        self._found: dict[str, list[_Entry]] = {}
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
                    index = 0
                    await asyncio.sleep(_AGAIN_SECONDS[min(failures, len(_AGAIN_SECONDS) - 1)])
                    failures += 1
                    continue
                failures, self._said = 0, ""
                self._watch({name for name, tags in services.items() if self._tag in tags})
        finally:
            for task in self._watches.values():
                task.cancel()
            await asyncio.gather(*self._watches.values(), return_exceptions=True)

    def _failed(self, error: ConsulError) -> None:
        # Once for each trouble, not for each service and try.
        if str(error) != self._said:
            self._said = str(error)
            logger.warning("%s", error)

    def _watch(self, names: set[str]) -> None:
        for name in [x for x in self._watches if x not in names]:
            self._watches.pop(name).cancel()
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
                await asyncio.sleep(_AGAIN_SECONDS[min(failures, len(_AGAIN_SECONDS) - 1)])
                failures += 1
                continue
            failures = 0
            self._found[name] = [x for x in map(_Entry.read, entries) if x is not None]
            self._review()

    def _review(self) -> None:
        """Say what changed: one Function may have several services, one for each of its endpoints."""
        functions: dict[str, ServedFunction] = {}
        containers: dict[str, dict[str, ContainerAddress]] = {}
        for entries in self._found.values():
            for entry in entries:
                known = functions.get(entry.job)
                routes = known.routes if known is not None else ()
                if entry.route not in routes:
                    routes = tuple(sorted((*routes, entry.route), key=lambda x: x.label))
                functions[entry.job] = ServedFunction(
                    entry.job, routes, entry.limit, entry.single_use, entry.job
                )
                key = container_key(self._secret, entry.container_id)
                address = ContainerAddress(entry.container_id, entry.host, entry.port, key)
                containers.setdefault(entry.job, {})[entry.container_id] = address
        for job in [x for x in self._functions if x not in functions]:
            del self._functions[job]
            self._containers.pop(job, None)
            self._listener.withdraw(job)
        for job, function in functions.items():
            if self._functions.get(job) != function:
                self._functions[job] = function
                self._listener.serve(function)
            has, now = self._containers.get(job, {}), containers[job]
            self._containers[job] = now
            for container_id in has:
                if container_id not in now:
                    self._listener.instance_out(job, container_id)
            for container_id, address in now.items():
                if has.get(container_id) != address:
                    self._listener.instance_up(job, address)


@dataclass(frozen=True)
class _Entry:
    """One instance of a service."""

    job: str
    container_id: str
    host: str
    port: int
    limit: int
    single_use: bool
    route: Route

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> _Entry | None:
        """Read what Consul says of one; None for what was not registered by a job of ours."""
        service = entry.get("Service") or {}
        meta = service.get("Meta") or {}
        try:
            job = str(meta["job"])
            return cls(
                job=job,
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
