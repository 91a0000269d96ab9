"""The gateway itself: finds who answers a request, a container with room for it, and a connection to that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic

from modal_nomad.dispatcher.gateway.balancer import BLOCKED_SECONDS, Instance, Service
from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, ServedFunction
from modal_nomad.dispatcher.gateway.forwarding import (
    CALL_PARAMETER,
    check_fields,
    claimed_call,
    head_for,
    redirect_fields,
)
from modal_nomad.dispatcher.gateway.pending import Calls, Peers, new_tag
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
_REPORT_SECONDS = 0.02
_CONNECT_SECONDS = 5.0
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
        self._sink = sink
        self._check_token = check_token
        self._services: dict[str, Service] = {}
        self._dirty: dict[str, Service] = {}
        self._pending: dict[str, Exchange] = {}
        self._failures: dict[str, tuple[float, State, int, str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._report_at: asyncio.Handle | None = None
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
        if self._report_at is not None:
            self._report_at.cancel()
        for client in list(self.clients):
            client.transport.abort()
        for exchange in list(self._pending.values()):
            exchange.end()
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
        self._dirty.pop(function_id, None)

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
        try:
            check_fields(request)
        except HttpError as error:
            exchange.refuse(error.status, error.text)
            return
        if len(self.clients) > self.settings.max_clients:
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
        self._admit(exchange)

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
                if self.peers is not None and self.peers.has(call_id) and call_id not in self._pending:
                    # Nothing of it is ours: not its place in a container, nor its time.
                    exchange.state = None
                    self._background(self.peers.ask(exchange, call_id))
                else:
                    self._claim(exchange, call_id)
                return
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
        self._touch(service)
        idle = instance.idle.get(state.route.method)
        if idle and not state.broken:
            upstream = idle.pop()
            self._send(exchange, upstream)
        else:
            self._background(self._connect(exchange, instance))
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
        method = state.route.method

        def idle(upstream: Upstream) -> None:
            if instance.out:
                upstream.abort()
            else:
                instance.idle.setdefault(method, []).append(upstream)

        def closed(upstream: Upstream) -> None:
            left = instance.idle.get(method)
            if left and upstream in left:
                left.remove(upstream)

        try:
            _, upstream = await asyncio.wait_for(
                self._loop.create_connection(lambda: Upstream(idle, closed), instance.host, instance.port),
                _CONNECT_SECONDS,
            )
        except (OSError, asyncio.TimeoutError) as error:
            if not instance.unmet:
                instance.unmet = True
                logger.warning(
                    "container %s takes no connection at %s:%d (%s): gateways must reach the nodes' ports",
                    instance.container_id,
                    instance.host,
                    instance.port,
                    error or "no answer",
                )
            instance.blocked_until = monotonic() + BLOCKED_SECONDS
            if not exchange.over:
                # Nothing was sent: any request may be tried elsewhere, or waits for who takes it.
                state.refused = GONE
                self._again(exchange, True)
            return
        if exchange.over or state.instance is not instance:
            idle(upstream)
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
        state: State = exchange.state
        if exchange.client is None and not exchange.over:
            # Kept for who comes back for it.
            self._failures[state.call_id] = (monotonic(), state, status, text)
        exchange.refuse(status, text, _RETRY_AFTER if status == 503 else b"")

    def ended(self, exchange: Exchange) -> None:
        state: State | None = exchange.state
        if state is None:
            return
        self._pending.pop(state.call_id, None)
        service, instance = state.service, state.instance
        if instance is not None:
            state.instance = None
            service.end(instance, monotonic() - state.call_since)
            # There is a place now, whatever was said of it before.
            instance.blocked_until = 0.0
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
        state: State | None = exchange.state
        client = exchange.client
        if state is None or client is None:
            return
        client.leave()
        state.left_at = monotonic()
        self._pending[state.call_id] = exchange
        fields = redirect_fields(exchange.request, state.call_id)
        client.answer(303, "the result is not there yet: ask again at the Location", fields)

    def claim(self, exchange: Exchange, call_id: str) -> None:
        """Answer another gateway, which was asked for a result of this one."""
        found = self.routes.find(exchange.request.host, exchange.request.target)
        service = self._services.get(found[0].function_id) if found is not None else None
        if found is None or service is None:
            exchange.refuse(404, NOT_HERE)
            return
        exchange.state = State(*found, service)
        self._claim(exchange, call_id)

    def _claim(self, exchange: Exchange, call_id: str) -> None:
        state: State = exchange.state
        failure = self._failures.get(call_id)
        if failure is not None and failure[1].route.function_id == state.route.function_id:
            del self._failures[call_id]
            exchange.refuse(failure[2], failure[3])
            return
        pending = self._pending.get(call_id)
        client = exchange.client
        if pending is None or client is None or pending.state.route.function_id != state.route.function_id:
            exchange.refuse(404, "there is no such pending result; it is kept for a minute")
            return
        if pending.client is not None:
            exchange.refuse(409, "somebody waits for this result already")
            return
        exchange.over = True
        client.leave()
        client.take_over(pending)

    # --- time and load ----------------------------------------------------------------------------

    def _sweep(self) -> None:
        now = monotonic()
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        self.sweep(now)
        if self.peers is not None:
            self.peers.sweep(now)
        for exchange in list(self._pending.values()):
            if exchange.client is None and now - exchange.state.left_at >= self.settings.claim_seconds:
                exchange.end()
        for call_id, (since, *_) in list(self._failures.items()):
            if now - since >= self.settings.claim_seconds:
                del self._failures[call_id]
        for service in self._services.values():
            if service.waiting:
                # Containers that took no connection may be asked again by now.
                self._feed(service)

    def _touch(self, service: Service, soon: bool = False) -> None:
        if service.function_id not in self._services:
            return
        self._dirty[service.function_id] = service
        if self._report_at is None:
            self._report_at = (
                self._loop.call_soon(self.report)
                if soon
                else self._loop.call_later(_REPORT_SECONDS, self.report)
            )
        elif soon and isinstance(self._report_at, asyncio.TimerHandle):
            self._report_at.cancel()
            self._report_at = self._loop.call_soon(self.report)

    def report_all(self) -> None:
        """Say the load of every Function that has any: somebody new is there to be told."""
        for service in self._services.values():
            if service.waiting or service.load():
                self._touch(service)
        self.report()

    def report(self) -> None:
        """Say the load of every Function whose load changed."""
        if self._report_at is not None:
            self._report_at.cancel()
            self._report_at = None
        dirty, self._dirty = self._dirty, {}
        for function_id, service in dirty.items():
            finished, seconds = service.finished, service.seconds
            service.finished, service.seconds = 0, 0.0
            self._sink.web_load(function_id, len(service.waiting), service.load(), finished, seconds)

    def _background(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("the gateway failed on a request", exc_info=task.exception())
