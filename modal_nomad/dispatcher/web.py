"""Web endpoints on the dispatcher's side: what is served, and the seam between gateway and call engine."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher.apps import DEFAULT_ENVIRONMENT
from modal_nomad.dispatcher.gateway.discovery import (
    ContainerAddress,
    Registry,
    ServedFunction,
    container_key,
)
from modal_nomad.dispatcher.gateway.gateway import CheckToken, Gateway
from modal_nomad.dispatcher.gateway.loads import Loads
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.dispatcher.gateway.settings import GatewaySettings
from modal_nomad.dispatcher.gateway.wire import host_and_port
from modal_nomad.dispatcher.store import Store
from modal_nomad.exception import AlreadyExistsError, InvalidError
from modal_nomad.render.services import open_to_edges
from modal_nomad.wire.frames import FrameError
from modal_nomad.wire.labels import MAX_LABEL, endpoint_label
from modal_nomad.wire.spec import FunctionSpec, WebSpec

if TYPE_CHECKING:
    from modal_nomad.dispatcher._containers import ContainerInfo, FunctionState
    from modal_nomad.dispatcher.gateway_sessions import GatewaySession

logger = logging.getLogger("modal_nomad.dispatcher")

_KINDS = ("asgi", "wsgi", "endpoint", "server")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9.-]{1,253}")


class Web:
    """What is served on the web.

    Attributes:
        registry: what is served, and where containers take requests.
        gateway: of this process.
        gateways: those of other processes, by tag.
        loads: what all of them say of their requests.
        check_token: says whether a proxy auth token opens an endpoint.
        suffixes: what stands for environments in labels, where it is not their name.
        url: how the URLs of labels are written: with ``{label}`` in it; empty while nothing listens.

    Args:
        store: knows the environments.
        key: what the keys of containers are made with; the same in every dispatcher of an installation.
        settings: of the gateway.
        workspace: what all labels begin with, or empty.
        handle: gives the call engine an event.
        check_token: says whether a proxy auth token opens an endpoint.
        edge: containers take requests without a key, from a proxy that is no gateway.
        edge_seconds: what that one may take to hear of a container, or of its end.
    """

    def __init__(
        self,
        store: Store,
        key: bytes,
        settings: GatewaySettings,
        workspace: str,
        handle: Callable[[ev.Event], None],
        check_token: CheckToken,
        edge: bool = False,
        edge_seconds: float = 30.0,
    ) -> None:
        self.registry = Registry()
        self.gateway = Gateway(settings, self, check_token)
        self.registry.follow(self.gateway)
        self.gateways: dict[str, GatewaySession] = {}
        self.loads = Loads(self._told)
        self.url = ""
        self.check_token: CheckToken = check_token
        self.suffixes: dict[str, str] = {}
        self._edge = edge
        self._edge_seconds = edge_seconds
        self._store = store
        self._key = key
        self._workspace = workspace
        self._handle = handle

    async def close(self) -> None:
        """End every connection."""
        await self.gateway.close()

    # --- endpoints --------------------------------------------------------------------------------

    async def routes_of(
        self, spec: FunctionSpec, function_id: str, environment: str, app_id: str
    ) -> list[Route]:
        """Return the endpoints of a Function."""
        served = spec.served
        if not served:
            return []
        suffix = await self._suffix(environment)
        name = spec.name[:-2] if spec.is_class else spec.name
        return [
            Route(
                label=endpoint_label(
                    spec.app,
                    f"{name}.{method}" if method else name,
                    label=web.label,
                    environment_suffix=suffix,
                    dev_suffix=web.dev_suffix,
                    workspace=self._workspace,
                ),
                function_id=function_id,
                method=method,
                # A program that runs for a while must not take the deployed one's own domain.
                domains=() if web.dev_suffix else web.custom_domains,
                requires_proxy_auth=web.requires_proxy_auth,
                environment=environment,
                owner=app_id,
                app=spec.app,
                deployed=not web.dev_suffix,
            )
            for method, web in served.items()
        ]

    async def read_suffixes(self) -> None:
        """Look up what stands for environments in labels; those who render jobs are told."""
        self.suffixes = {x.name: x.web_suffix for x in await self._store.environments() if x.web_suffix}

    async def _suffix(self, environment: str) -> str:
        await self.read_suffixes()
        default = "" if environment == DEFAULT_ENVIRONMENT else environment
        return self.suffixes.get(environment, default)

    async def check(self, specs: Sequence[FunctionSpec], environment: str, app_id: str) -> list[str]:
        """Check that an App may have its endpoints.

        Args:
            specs: its Functions.
            environment: where it is.
            app_id: of the version before, whose endpoints it may take over; empty for none.

        Returns:
            Warnings about addresses that another App has until now.

        Raises:
            InvalidError: what is served cannot be.
            AlreadyExistsError: another deployed App has one of the labels or domains.
        """
        taken: dict[str, str] = {}
        warnings: list[str] = []
        for spec in specs:
            for web in spec.served.values():
                _check(spec.name, web)
            for route in await self.routes_of(spec, "", environment, app_id):
                for name in (route.label, *route.domains):
                    if name in taken:
                        raise InvalidError(
                            f"{spec.name} and {taken[name]} would both be served at {name!r}: give a label="
                        )
                    taken[name] = spec.name
                has: dict[str, Route] = {}
                for name, held in self.gateway.routes.holders(route.label, route.domains):
                    if route.deployed and held.deployed and held.owner != app_id:
                        raise AlreadyExistsError(
                            f"{spec.name} would be served at {name!r}, where {_named(held)} is: stop that, "
                            f"or give another {'label=' if name == route.label else 'custom domain'}"
                        )
                    has[name] = held
                warnings += [
                    f"{spec.name}: {name!r} leads to this App now, and to {_named(held)} again when this ends"
                    for name, held in has.items()
                    if held.owner != app_id and not route.deployed
                ]
        return warnings

    async def function_added(self, state: FunctionState) -> None:
        """Serve a Function, or serve it as it is now."""
        spec = state.spec
        if not spec.served:
            self.function_removed(state.function_id)
            return
        routes = await self.routes_of(spec, state.function_id, state.environment, state.app_id)
        job = f"{state.namespace}/{state.job_id}"
        self.registry.serve(
            ServedFunction(state.function_id, tuple(routes), spec.slots, spec.single_use_containers, job)
        )

    def function_removed(self, function_id: str) -> None:
        """Serve a Function no more."""
        self.registry.withdraw(function_id)
        self.loads.withdraw(function_id)

    def urls(self, function_id: str) -> dict[str, str]:
        """Return where a Function is served, by method; a plain one's is under the empty name."""
        if not self.url:
            return {}
        return {
            route.method: self.url.format(label=route.label) for route in self.gateway.routes.of(function_id)
        }

    # --- containers -------------------------------------------------------------------------------

    def container_key(self, container_id: str) -> str:
        """Return what a gateway proves itself with to a container."""
        return container_key(self._key, container_id)

    def container_up(self, info: ContainerInfo, address: Any) -> None:
        """Take a container into rotation that said where it listens: host and port."""
        if address is None:
            return
        try:
            host, port = host_and_port(address)
        except FrameError:
            logger.warning("container %s says no usable web address", info.container_id)
            return
        key = self.container_key(info.container_id)
        self.registry.instance_up(
            info.function.function_id, ContainerAddress(info.container_id, host, port, key)
        )

    def container_out(self, info: ContainerInfo) -> None:
        """Give a container no more requests."""
        self.registry.instance_out(info.function.function_id, info.container_id)

    def container_gone(self, info: ContainerInfo) -> None:
        """Forget a container."""
        self.container_out(info)
        self.loads.container_gone(info.function.function_id, info.container_id)

    def welcome(self, info: ContainerInfo) -> dict[str, Any]:
        """Return what a container is told of its endpoints."""
        spec = info.function.spec
        if not spec.served:
            return {}
        told: dict[str, Any] = {"web_key": self.container_key(info.container_id)}
        if open_to_edges(spec, self._edge):
            told["web_open"] = True
        return told

    def edge_seconds(self, spec: FunctionSpec) -> float:
        """Return how long an edge may take to hear of a container or its end; 0 where none leads there."""
        return self._edge_seconds if spec.served and open_to_edges(spec, self._edge) else 0.0

    def lost_from_zero(self, spec: FunctionSpec) -> bool:
        """Say whether edges are led to a Function that may have no container, which they cannot start."""
        return bool(spec.served) and open_to_edges(spec, self._edge) and not spec.min_containers

    def container_load(self, info: ContainerInfo, running: int, finished: int, seconds: float) -> None:
        """Take a container's own word on how many requests it has."""
        function = info.function
        known = self.registry.function(function.function_id) is not None
        # Also of one that is to end: what it has still is waited for.
        if not known or not open_to_edges(function.spec, self._edge):
            return
        self.loads.say_own(function.function_id, info.container_id, running, finished, seconds)

    # --- between gateway and call engine ----------------------------------------------------------

    def web_load(
        self, function_id: str, waiting: int, running: Mapping[str, int], finished: int, seconds: float
    ) -> None:
        """Tell the call engine what the gateway of this process sees."""
        self.take_load("", function_id, waiting, running, finished, seconds)

    def take_load(
        self,
        source: str,
        function_id: str,
        waiting: int,
        running: Mapping[str, int],
        finished: int,
        seconds: float,
    ) -> None:
        """Take what a gateway sees, and let the others know."""
        self.loads.say(source, function_id, waiting, running, finished, seconds)
        self._tell_others(source, function_id, finished)

    def gateway_gone(self, source: str) -> None:
        """Take the requests of a gateway for over."""
        for function_id in self.loads.forget(source):
            self._tell_others(source, function_id, 0)

    def _tell_others(self, source: str, function_id: str, finished: int) -> None:
        if source:
            self.gateway.others(function_id, self.loads.elsewhere("", function_id), finished)
        for session in self.gateways.values():
            if session.tag != source:
                session.others(function_id, finished)

    def _told(
        self, function_id: str, waiting: int, running: Mapping[str, int], finished: int, seconds: float
    ) -> None:
        self._handle(ev.WebLoad(function_id, waiting, running, finished, seconds))

    def flush(self) -> None:
        """Have the gateway say now what it would say soon."""
        self.gateway.report()

    def failed(self, command: ev.FailRequests) -> None:
        """Answer requests whose container does not start; why is for its log, not for those who ask."""
        logger.info("requests to %s fail: %s", command.function_id, command.reason)
        self.registry.fail(command.function_id, 500, "the endpoint could not start: its logs say why")


def _named(route: Route) -> str:
    where = f" of environment {route.environment}" if route.environment != DEFAULT_ENVIRONMENT else ""
    return f"App {route.app or route.owner}{where}"


def _check(name: str, web: WebSpec) -> None:
    fault = ""
    if web.kind not in _KINDS:
        fault = f"kind {web.kind!r} is unknown"
    elif web.kind == "server" and not 0 < web.port < 65536:
        fault = f"port {web.port} cannot be"
    elif web.label and (len(web.label) > MAX_LABEL or not _LABEL.fullmatch(web.label)):
        fault = f"label {web.label!r} is no part of a host name"
    elif not all(_DOMAIN.fullmatch(x) for x in _strings(web.custom_domains)):
        fault = "a custom domain is no host name"
    if fault:
        raise InvalidError(f"Function {name!r}: {fault}: update the client")


def _strings(values: Iterable[Any]) -> list[str]:
    return [str(x) for x in values]
