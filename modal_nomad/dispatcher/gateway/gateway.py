"""The gateway itself: finds who answers a request, a container with room for it, and a connection to that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic

from modal_nomad.dispatcher.gateway.balancer import Instance, Service
from modal_nomad.dispatcher.gateway.connecting import UNREACHABLE, connect, unreachable
from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, ServedFunction
from modal_nomad.dispatcher.gateway.forwarding import (
    CALL_PARAMETER,
    check_fields,
    claimed_call,
    head_for,
)
from modal_nomad.dispatcher.gateway.late import LateAnswers
from modal_nomad.dispatcher.gateway.pending import Calls, Peers, new_tag
from modal_nomad.dispatcher.gateway.reports import LoadReports
from modal_nomad.dispatcher.gateway.routes import NOT_HERE, Route, Routes
from modal_nomad.dispatcher.gateway.settings import GatewaySettings
from modal_nomad.dispatcher.gateway.state import AT_ONCE, GONE, IN_TURN, NO_ROOM, Sink, State
from modal_nomad.wire.http1.client import Client
from modal_nomad.wire.http1.exchange import KEPT_BYTES, Exchange, Limits, Router
from modal_nomad.wire.http1.head import HttpError
from modal_nomad.wire.http1.upstream import Upstream
from modal_nomad.wire.web import FULL

logger = logging.getLogger("modal_nomad.dispatcher")

_SWEEP_SECONDS = 1.0
_TRIES = 3
"""Containers may break so often over a request."""
_FULL_SECONDS = 0.05
"""A container that had no place is left alone for so long, or until a request of ours ends there."""
_REFUSED_AT = 2
_RETRY_AFTER = b"Retry-After: 1\r\n"
_CHALLENGE = b"WWW-Authenticate: Modal-Key\r\n"
_NO_TOKEN = (
    "this endpoint needs a proxy auth token (modal-nomad proxy-token create) in the header fields Modal-Key "
    "and Modal-Secret"
)
_LEFT = "the endpoint was stopped"

CheckToken = Callable[[str, str, Route], Awaitable[bool]]
"""Says whether a proxy auth token (key, secret) opens an endpoint."""


class _Refused(asyncio.Protocol):
    """A connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()  # type: ignore[attr-defined]


class Gateway(Router):
    """Serves endpoints.

    Attributes:
        routes: what is served where.
        requests: how many came.
        tag: what the ids of its calls end in.
        peers: other gateways, which may have the results that it is asked for.
        ready: whether what it does not know is not there.

    Args:
        settings: its settings.
        sink: is told the load.
        check_token: says whether a proxy auth token opens an endpoint.
    """

    half_closing = True

    def __init__(self, settings: GatewaySettings, sink: Sink, check_token: CheckToken) -> None:
        super().__init__(
            Limits(
                settings.head_seconds,
                settings.idle_seconds,
                settings.stall_seconds,
                settings.answer_seconds,
                settings.max_body,
            )
        )
        self.settings = settings
        self.routes = Routes(settings.domain)
        self.requests = 0
        self.tag = new_tag()
        self._calls = Calls(self.tag)
        self.peers: Peers | None = None
        self.ready = True
        self._check_token = check_token
        self._services: dict[str, Service] = {}
        self._late = LateAnswers(settings.claim_seconds)
        self._reports = LoadReports(sink)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def protocol(self) -> asyncio.Protocol:
        """Return what serves one connection: the factory of a listening socket."""
        if len(self.clients) >= _REFUSED_AT * self.settings.max_clients:
            # Beyond those that are told so: who opens connections and says nothing costs no more than this.
            return _Refused()
        return Client(self)

    def leave_idle(self) -> bool:
        """Close the connections without a request; tell whether there are others."""
        for client in list(self.clients):
            if client.exchange is None:
                client.transport.close()
        return any(client.exchange is not None for client in self.clients)

    async def close(self) -> None:
        """End every connection."""
        self._sweeper.cancel()
        self._reports.close()
        for client in list(self.clients):
            client.transport.abort()
        self._late.close()
        for service in self._services.values():
            for instance in service.instances.values():
                instance.close_idle()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what there is to serve -------------------------------------------------------------------

    def serve(self, function: ServedFunction) -> None:
        """Serve a Function, or serve it as it is now."""
        function_id = function.function_id
        self.routes.put(function_id, function.routes)
        service = self._services.get(function_id)
        if service is None:
            self._services[function_id] = Service(function_id, function.limit, function.single_use)
        else:
            service.limit, service.single_use = function.limit, function.single_use
            self._feed(service)

    def withdraw(self, function_id: str) -> None:
        """Serve a Function no more; what runs may end."""
        self.routes.remove(function_id)
        service = self._services.pop(function_id, None)
        if service is None:
            return
        for container_id in list(service.instances):
            service.take_out(container_id)
        self._refuse_waiting(service, 404, _LEFT)
        self._reports.forget(function_id)

    def instance_up(self, function_id: str, address: ContainerAddress) -> None:
        """Take a container into rotation."""
        service = self._services.get(function_id)
        if service is not None:
            service.add(Instance(address.container_id, address.host, address.port, address.key))
            self._feed(service)

    def instance_out(self, function_id: str, container_id: str) -> None:
        """Give a container no more requests."""
        service = self._services.get(function_id)
        if service is not None:
            service.take_out(container_id)

    def others(self, function_id: str, running: Mapping[str, int], finished: int) -> None:
        """Note how many requests a Function's containers have from other gateways.

        Args:
            function_id: the Function.
            running: by container.
            finished: how many of them ended since this was last said.
        """
        service = self._services.get(function_id)
        if service is not None:
            service.others(running, finished)
            self._feed(service)

    def fail(self, function_id: str, status: int, text: str) -> None:
        """Answer the requests that wait for a container: none will come."""
        service = self._services.get(function_id)
        if service is not None:
            self._refuse_waiting(service, status, text)

    def _refuse_waiting(self, service: Service, status: int, text: str) -> None:
        waiting = list(service.waiting)
        service.waiting.clear()
        for exchange in waiting:
            self._give_up(exchange, status, text)
        self._touch(service)

    # --- requests ---------------------------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        self.requests += 1
        request = exchange.request
        known = request.routed
        if known is not None and known[0] == self.routes.version and not self._crowded():
            exchange.state = State(*known[1])
            self._queue(exchange)
            return
        try:
            check_fields(request)
        except HttpError as error:
            exchange.refuse(error.status, error.text)
            return
        if self._crowded():
            exchange.refuse(503, "too many connections are open; try again", _RETRY_AFTER)
            return
        found = self.routes.find(request.host, request.target)
        service = self._services.get(found[0].function_id) if found is not None else None
        if found is None or service is None:
            if self.ready:
                exchange.refuse(404, self.routes.nothing_at(request.host))
            else:
                exchange.refuse(503, "this gateway has heard of no dispatcher yet; try again", _RETRY_AFTER)
            return
        route, prefix = found
        exchange.state = State(route, prefix, service)
        if route.requires_proxy_auth:
            key, secret = request.value(b"modal-key"), request.value(b"modal-secret")
            if key is None or secret is None:
                exchange.refuse(401, _NO_TOKEN, _CHALLENGE)
                return
            self._background(self._authorize(exchange, route, key, secret))
            return
        if not request.has_body and CALL_PARAMETER not in request.target:
            # Who says the same again needs none of this.
            request.routed = (self.routes.version, (route, prefix, service))
        self._admit(exchange)

    def _crowded(self) -> bool:
        return len(self.clients) > self.settings.max_clients

    async def _authorize(self, exchange: Exchange, route: Route, key: bytes, secret: bytes) -> None:
        try:
            allowed = await self._check_token(key.decode("latin-1"), secret.decode("latin-1"), route)
        except (ConnectionError, asyncio.TimeoutError):
            exchange.refuse(503, "proxy auth tokens cannot be checked now; try again", _RETRY_AFTER)
            return
        if exchange.over:
            return
        if allowed:
            self._admit(exchange)
        else:
            exchange.refuse(
                401, "the proxy auth token in Modal-Key and Modal-Secret is not known here", _CHALLENGE
            )

    def _admit(self, exchange: Exchange) -> None:
        request = exchange.request
        if CALL_PARAMETER in request.target and request.method in (b"GET", b"HEAD"):
            call_id = claimed_call(request.target)
            if call_id:
                if self.peers is not None and self.peers.has(call_id) and call_id not in self._late:
                    # Nothing of it is ours: not its place in a container, nor its time.
                    exchange.state = None
                    self._background(self.peers.ask(exchange, call_id))
                else:
                    self._late.claim(exchange, call_id)
                return
        self._queue(exchange)

    def _queue(self, exchange: Exchange) -> None:
        """Send a request to a container, or have it wait for one."""
        state: State = exchange.state
        service = state.service
        state.call_id = self._calls.new()
        state.call_since = monotonic()
        if not service.waiting and self._place(exchange, service):
            return
        if service.waiting and service.waiting[0].state.tried:
            # The first one waits for another container; this one may have room.
            self._feed(service)
            if not service.waiting and self._place(exchange, service):
                return
        if len(service.waiting) >= self.settings.max_waiting:
            exchange.refuse(503, "too many requests wait for a container; try again", _RETRY_AFTER)
            return
        service.waiting.append(exchange)
        self._touch(service, soon=True)

    def _place(self, exchange: Exchange, service: Service) -> bool:
        """Send a request to a container that has room; False where none has."""
        state: State = exchange.state
        instance = service.choose(monotonic(), state.tried)
        if instance is None:
            return False
        state.instance = instance
        state.patience = IN_TURN if service.begin(instance) else AT_ONCE
        idle = instance.idle.get(state.route.method)
        if idle and not state.broken:
            self._send(exchange, idle.pop())
        else:
            self._background(self._connect(exchange, instance))
        self._touch(service)
        return True

    def _send(self, exchange: Exchange, upstream: Upstream) -> None:
        state: State = exchange.state
        instance = state.instance
        assert instance is not None
        # The first request on a connection alone carries it.
        key = b"" if upstream.used else instance.key
        upstream.used = True
        service, length = state.service, exchange.request.length
        # What has a long body is not said twice: it waits where it is.
        choosy = (service.shared or len(service.instances) > 1) and 0 <= length <= KEPT_BYTES
        head = head_for(
            exchange,
            state.route,
            state.prefix,
            state.call_id,
            key,
            self.settings.trusted_proxies,
            state.patience if choosy else b"",
        )
        exchange.send(upstream, head)

    async def _connect(self, exchange: Exchange, instance: Instance) -> None:
        state: State = exchange.state
        upstream = await connect(instance, state.route.method)
        if upstream is None:
            if not exchange.over:
                # Nothing was sent: any request may be tried elsewhere, or waits for who takes it.
                state.refused = GONE
                self._again(exchange, True)
            if unreachable(state.service, self.settings.unreachable_seconds):
                self._refuse_waiting(state.service, 502, UNREACHABLE)
        elif exchange.over or state.instance is not instance:
            upstream.spare()
        else:
            self._send(exchange, upstream)

    def refused(self, exchange: Exchange, proof: bytes) -> bool:
        state: State | None = exchange.state
        if state is None or state.instance is None:
            return False
        own = state.instance.refusal
        if proof == own + FULL:
            state.refused = NO_ROOM
        elif proof == own:
            state.refused = GONE
        return bool(state.refused)

    def failed(self, exchange: Exchange, again: bool) -> None:
        if exchange.state is None:
            exchange.refuse(502, "the gateway that had this result has ended")
        else:
            self._again(exchange, again)

    def _again(self, exchange: Exchange, again: bool) -> None:
        """Try a request that broke before any answer at another container, or give it up."""
        state: State = exchange.state
        service, instance, refused = state.service, state.instance, state.refused
        state.instance, state.refused = None, ""
        if instance is not None:
            if refused == NO_ROOM:
                instance.blocked_until = monotonic() + _FULL_SECONDS
                self._loop.call_later(_FULL_SECONDS, self._feed, service)
            else:
                state.tried.append(instance)
            if refused:
                service.back(instance)
            else:
                state.broken += 1
                service.end(instance, monotonic() - state.call_since)
            self._touch(service)
            self._feed(service)
        if not again or state.broken >= _TRIES or service.function_id not in self._services:
            self._give_up(exchange, 502, "the container ended before it answered")
        elif not self._place(exchange, service):
            service.waiting.appendleft(exchange)
            self._touch(service, soon=True)

    def _give_up(self, exchange: Exchange, status: int, text: str) -> None:
        if exchange.client is None and not exchange.over:
            self._late.failed(exchange, status, text)
        exchange.refuse(status, text, _RETRY_AFTER if status == 503 else b"")

    def ended(self, exchange: Exchange) -> None:
        state: State | None = exchange.state
        if state is None:
            return
        self._late.ended(state.call_id)
        service, instance = state.service, state.instance
        if instance is not None:
            state.instance = None
            service.end(instance, monotonic() - state.call_since)
            # There is a place now, whatever was said of it before.
            instance.blocked_until = 0.0
            if service.waiting:
                self._feed(service)
            self._touch(service)
        elif exchange in service.waiting:
            service.waiting.remove(exchange)
            self._touch(service)

    def _feed(self, service: Service) -> None:
        """Send what waits, as far as there is room."""
        waiting = service.waiting
        left: list[Exchange] = []
        while waiting:
            exchange = waiting.popleft()
            if exchange.over:
                continue
            if not self._place(exchange, service):
                left.append(exchange)
                if not exchange.state.tried:
                    break
        # Those that wait for a container other than those they had hold nobody up.
        waiting.extendleft(reversed(left))

    # --- pending results --------------------------------------------------------------------------

    def late(self, exchange: Exchange) -> None:
        self._late.redirect(exchange)

    def claim(self, exchange: Exchange, call_id: str) -> None:
        """Answer another gateway, which was asked for a result of this one."""
        found = self.routes.find(exchange.request.host, exchange.request.target)
        service = self._services.get(found[0].function_id) if found is not None else None
        if found is None or service is None:
            exchange.refuse(404, NOT_HERE)
            return
        exchange.state = State(*found, service)
        self._late.claim(exchange, call_id)

    # --- time and load ----------------------------------------------------------------------------

    def _sweep(self) -> None:
        now = monotonic()
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        self.sweep(now)
        if self.peers is not None:
            self.peers.sweep(now)
        self._late.sweep(now)
        for service in self._services.values():
            if service.waiting:
                # Containers that took no connection may be asked again by now.
                self._feed(service)

    def _touch(self, service: Service, soon: bool = False) -> None:
        if service.function_id in self._services:
            self._reports.touch(service, soon)

    def report_all(self) -> None:
        """Say the load of every Function that has any: somebody new is there to be told."""
        self._reports.report_all(self._services.values())

    def report(self) -> None:
        """Say the load of every Function whose load changed."""
        self._reports.report()

    def _background(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("the gateway failed on a request", exc_info=task.exception())
