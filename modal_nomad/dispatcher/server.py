"""The aiohttp application: sockets at the rim of the dispatcher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from modal_nomad import __version__
from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher import (
    rpc,
    rpc_dict,
    rpc_image,
    rpc_objects,
    rpc_queue,
    rpc_secret,
    rpc_web,
    scope,
)
from modal_nomad.dispatcher._codec import decode, encode
from modal_nomad.dispatcher._peer import NORMAL, POLICY, Peer
from modal_nomad.dispatcher._requests import Request, find
from modal_nomad.dispatcher.auth import Authenticator, Identity
from modal_nomad.dispatcher.blob_rights import flagged
from modal_nomad.dispatcher.blobs import BlobError, BlobStoreError, BlobStoreFull
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.gateway_sessions import GatewaySession
from modal_nomad.dispatcher.http_blobs import add_routes as add_blob_routes
from modal_nomad.dispatcher.http_images import add_routes as add_image_routes
from modal_nomad.dispatcher.http_nfs import add_routes as add_nfs_routes
from modal_nomad.dispatcher.http_schedules import add_routes as add_schedule_routes
from modal_nomad.dispatcher.http_tunnels import add_routes as add_tunnel_routes
from modal_nomad.dispatcher.http_volumes import add_routes as add_volume_routes
from modal_nomad.dispatcher.metrics import DispatcherCollector
from modal_nomad.dispatcher.secrets import SecretStoreError
from modal_nomad.dispatcher.sessions import (
    MAX_NUMBER,
    ClientSession,
    Session,
    WorkerSession,
    flags,
    integers,
    statuses,
    text,
)
from modal_nomad.dispatcher.store.base import StoreError, StoreFull
from modal_nomad.dispatcher.tunnels import AssignedTunnels
from modal_nomad.exception import AuthError, Error, InvalidError
from modal_nomad.wire import frames

logger = logging.getLogger("modal_nomad.dispatcher")

# Imported for the requests that they register.
RPC_MODULES = (rpc, rpc_dict, rpc_image, rpc_objects, rpc_queue, rpc_secret, rpc_web)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HELLO_SECONDS = 15.0
_MAX_CLIENT_ID = 64
_MAX_SECONDS = 1e9
_RESTRICTED = ["AuthError", "this Function has restrict_modal_access=True: its code may use nothing of modal"]


class Server:
    """HTTP and WebSocket in front of a dispatcher.

    Args:
        dispatcher: started.
        authenticator: checks bearer tokens.
        render: the settings for rendering jobs, for clients.
    """

    def __init__(self, dispatcher: Dispatcher, authenticator: Authenticator, render: dict[str, Any]) -> None:
        self.dispatcher = dispatcher
        self.authenticator = authenticator
        self.render = render
        self._peers: set[Peer] = set()
        self._metrics = CollectorRegistry()
        self._metrics.register(DispatcherCollector(dispatcher))

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=1 << 20, middlewares=[_without_disks])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics_page)
        app.router.add_get("/v1/connect", self._connect)
        add_blob_routes(app, self.dispatcher, self._identify_reader)
        add_volume_routes(app, self.dispatcher, self._identify_scoped)
        add_schedule_routes(app, self.dispatcher.schedules, self.authenticator)
        add_nfs_routes(app, self.dispatcher, self._identify_scoped)
        add_tunnel_routes(app, self.dispatcher, self._identify)
        if self.dispatcher.image_jobs is not None:
            add_image_routes(app, self.dispatcher.image_jobs, self.authenticator)
        app.on_shutdown.append(self._shutdown)
        return app

    async def _shutdown(self, app: web.Application) -> None:
        for peer in list(self._peers):
            # Not a clean close: peers are to dial in again, at our successor.
            peer.abort()

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"status": "ok", "version": __version__, "engine": self.dispatcher.engine.name}
        )

    async def _metrics_page(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    # --- who asks ---------------------------------------------------------------------------------

    async def _identify(self, request: web.Request, gateways: bool = False) -> Identity:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            identity = await self.authenticator.check(token.strip() if scheme.lower() == "bearer" else "")
            if identity.gateway and not gateways:
                raise AuthError("a gateway's token opens nothing here")
            return identity
        except AuthError as error:
            logger.info("%s was refused: %s", request.remote or "a local peer", error)
            raise web.HTTPUnauthorized(text=str(error)) from None

    async def _identify_scoped(self, request: web.Request) -> Identity:
        identity = scope.of_caller(self.dispatcher, await self._identify(request))
        if identity is None:
            # One of an earlier process of this dispatcher says hello again in a moment, and asks again.
            raise web.HTTPServiceUnavailable(text="the dispatcher does not know this container by now")
        return identity

    async def _identify_reader(self, request: web.Request) -> Identity:
        """Return whose a request for blobs is, which a container may make before it says hello."""
        if self.dispatcher.rights.used:
            return await self._identify_scoped(request)
        identity = await self._identify(request)
        return scope.of_caller(self.dispatcher, identity) or identity

    # --- sockets ----------------------------------------------------------------------------------

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        identity = await self._identify(request, gateways=True)
        peer = Peer()
        answer = await peer.accept(request)
        self._peers.add(peer)
        loop = asyncio.get_running_loop()
        waiting = loop.call_later(_HELLO_SECONDS, peer.close, POLICY, "no hello came")
        farewells: list[Callable[[], None]] = []

        def hello(data: bytes) -> None:
            waiting.cancel()
            farewells.append(self._hello(peer, identity, decode(data)[0]))

        try:
            peer.start(hello)
            await peer.closed
        finally:
            waiting.cancel()
            self._peers.discard(peer)
            for farewell in farewells:
                farewell()
        return answer

    def _hello(self, peer: Peer, identity: Identity, hello: frames.Header) -> Callable[[], None]:
        """Greet a peer; returns what is to be done when it is gone."""
        refusal = _refusal(hello, identity)
        if refusal is not None:
            return _refuse(peer, refusal)
        if hello["role"] == "gateway":
            return self._serve_gateway(peer, identity, hello)
        if hello["role"] == "client":
            caller = scope.of_caller(self.dispatcher, identity)
            if caller is None:
                # As its worker is not here again yet; it dials in anew.
                peer.abort()
                return lambda: None
            return self._serve_client(peer, caller, hello)
        return self._serve_worker(peer, identity, hello)

    # --- clients

    def _serve_client(self, peer: Peer, identity: Identity, hello: frames.Header) -> Callable[[], None]:
        container = self.dispatcher.containers.infos.get(identity.container)
        if container is not None and container.function.spec.restrict_modal_access:
            return _refuse(peer, _RESTRICTED)
        owner = identity.container or text(hello.get("client"))[:_MAX_CLIENT_ID]
        if identity.container:
            # Several connections of one container are several owners of calls.
            owner = f"{identity.container}/{text(hello.get('client'))[:_MAX_CLIENT_ID]}"
        elif identity.environments:
            # Nobody whose token is for other environments is this client come back.
            owner = f"{owner}@{','.join(identity.environments)}"
        (again,) = integers([hello.get("again", 0)])
        session = ClientSession(peer, identity, owner, again)
        apps = hello.get("apps")
        self.dispatcher.client_came(
            session, [a for a in apps if isinstance(a, str)] if isinstance(apps, list) else []
        )
        session.send_frame(
            {
                "t": "welcome",
                "v": frames.PROTOCOL_VERSION,
                "version": __version__,
                "engine": self.dispatcher.engine.name,
                "render": {**self.render, "web_suffixes": self.dispatcher.web.suffixes},
            }
        )
        take = self._client_frame
        peer.start(lambda data: take(session, *decode(data)))
        return lambda: self.dispatcher.client_left(session, cleanly=peer.close_code == NORMAL)

    def _client_frame(self, session: ClientSession, header: frames.Header, payloads: list[bytes]) -> None:
        kind = header["t"]
        dispatcher = self.dispatcher
        if kind == "in":
            call_id, function_id = text(header.get("c")), text(header.get("f"))
            method = text(header.get("m", ""))
            items = _inputs(header, payloads)
            acked, durable = header.get("k"), header.get("d")
            allowed = session.identity.environments
            if allowed and (acked or not durable):
                _check_scope(dispatcher, session.identity, function_id, call_id)
            if acked:
                dispatcher.handle(ev.OutputsAcked(call_id, integers(acked)))
            if durable:
                dispatcher.background(self._durable(session, header, call_id, function_id, items, method))
            else:
                parent = text(header.get("p", ""))
                submit = partial(dispatcher.submit, session, call_id, function_id, items, method, parent)
                if allowed:
                    named = flagged((x[1] for x in items), (x[2] for x in items))
                    self._hold(session, allowed, named, submit)
                else:
                    submit()
        elif kind == "end":
            calls = header.get("c")
            if not isinstance(calls, list):
                raise frames.FrameError("an end frame names no calls")
            for call_id in calls:
                dispatcher.end_call(session, text(call_id))
        elif kind == "rq":
            dispatcher.background(self._request(session, header, payloads))
        elif kind == "more":
            index, taken = integers([header.get("x"), header.get("n")])
            dispatcher.items_taken(session, text(header.get("c")), index, taken)
        elif kind == "bye":
            session.said_bye = True
        elif kind != "hb":
            raise frames.FrameError(f"a client sent a frame of type {kind!r}")

    def _hold(
        self, session: Session, allowed: Sequence[str], named: list[str], do: Callable[[], None]
    ) -> None:
        """Do something when a peer may name the blobs that it names: at once, but after a restart of ours."""
        rights = self.dispatcher.rights
        if not named or rights.knows(allowed, named):
            do()
            return

        async def look() -> None:
            try:
                await rights.check(allowed, named)
            except InvalidError as error:
                session.peer.close(POLICY, str(error))
            else:
                do()

        self.dispatcher.background(look())

    async def _durable(
        self,
        session: ClientSession,
        header: frames.Header,
        call_id: str,
        function_id: str,
        items: Sequence[ev.SubmittedInput],
        method: str,
    ) -> None:
        answer: frames.Header = {"t": "rs", "i": header.get("i", 0), "v": {}}
        try:
            total = header.get("n")
            if total is not None and (type(total) is not int or not 0 <= total <= MAX_NUMBER):
                raise InvalidError("the number of a call's inputs must be a whole number")
            scope.check_function(self.dispatcher, session.identity, function_id)
            if session.identity.environments:
                await scope.check_call(self.dispatcher, session.identity, call_id)
                named = flagged((x[1] for x in items), (x[2] for x in items))
                await self.dispatcher.rights.check(session.identity.environments, named)
            parent = text(header.get("p", ""))
            await self.dispatcher.submit_durable(call_id, function_id, items, total, method, parent)
        except Exception as error:
            answer = {"t": "rs", "i": header.get("i", 0), "e": _error(error)}
        session.send_frame(answer)

    async def _request(self, session: ClientSession, header: frames.Header, sent: list[bytes]) -> None:
        number = header.get("i", 0)
        try:
            args = header.get("a")
            args = args if isinstance(args, dict) else {}
            method = find(header.get("m"))
            await scope.check_request(self.dispatcher, session.identity, header.get("m"), args)
            own, answered = _whole(number), _whole(header.get("k"))
            if "r" in header:
                session.answers.confirm(integers(header["r"]))
            value, payloads = await method(self.dispatcher, Request(session, args, sent, own, answered))
        except Exception as error:
            session.send_frame({"t": "rs", "i": number, "e": _error(error)})
        else:
            session.send_frame({"t": "rs", "i": number, "v": value}, payloads)

    # --- gateways

    def _serve_gateway(self, peer: Peer, identity: Identity, hello: frames.Header) -> Callable[[], None]:
        tunnels = self.dispatcher.tunnels
        assigned = tunnels if isinstance(tunnels, AssignedTunnels) else None
        session = GatewaySession(peer, identity, self.dispatcher.web, hello, assigned)
        session.send_frame({"t": "welcome", "v": frames.PROTOCOL_VERSION, "version": __version__})
        session.begin()
        peer.start(lambda data: session.take(decode(data)[0], self.dispatcher.background))
        return session.end

    # --- workers

    def _serve_worker(self, peer: Peer, identity: Identity, hello: frames.Header) -> Callable[[], None]:
        container_id = text(hello.get("container"))
        session = WorkerSession(peer, identity, container_id)
        dispatcher = self.dispatcher
        try:
            info = dispatcher.containers.adopt(session)
        except Error as error:
            return _refuse(peer, _error(error))
        function = info.function
        dispatcher.secrets.adopt(container_id, function.spec.secret_refs, hello.get("secrets"))
        session.send_frame(
            {
                "t": "welcome",
                "v": frames.PROTOCOL_VERSION,
                "spec": function.spec_dict,
                "function_id": function.function_id,
                "app_id": function.app_id,
                "environment": function.environment,
                **dispatcher.web.welcome(info),
            },
            [] if function.params is None else [function.params],
        )

        def take(data: bytes) -> None:
            header, payloads = decode(data)
            kind = header["t"]
            if kind == "done":
                outputs = _outputs(header, payloads)
                done = ev.OutputsReturned(container_id, outputs, _seconds(header.get("d")), _usage(header))
                if session.scope:
                    named = flagged((x[2] for x in outputs), (x[3] for x in outputs))
                    self._hold(session, session.scope, named, partial(dispatcher.handle, done))
                else:
                    dispatcher.handle(done)
            elif kind == "gen":
                lease, first = integers([header.get("x"), header.get("q")])
                items = _items(header, payloads)
                made = ev.ItemsProduced(container_id, lease, first, items)
                if session.scope:
                    named = flagged((x[0] for x in items), (x[1] for x in items))
                    self._hold(session, session.scope, named, partial(dispatcher.handle, made))
                else:
                    dispatcher.handle(made)
            elif kind == "log":
                stamp = header.get("ts")
                dispatcher.hub.log(
                    function.app_id,
                    f"{function.label}.{header['m']}" if type(header.get("m")) is str else function.label,
                    container_id,
                    2 if header.get("s") == 2 else 1,
                    stamp if isinstance(stamp, float) else 0.0,
                    payloads[0] if payloads else b"",
                )
            elif kind == "ready":
                dispatcher.containers.ready(info, function.spec.slots, header.get("web"))
            elif kind == "back":
                leases, begun = integers(header.get("x")), bool(header.get("b"))
                dispatcher.handle(ev.InputsGivenBack(container_id, leases, begun))
            elif kind == "web":
                running, ended = integers([header.get("n"), header.get("e")])
                dispatcher.web.container_load(info, running, ended, _seconds(header.get("d")))
            elif kind == "init_failed":
                dispatcher.handle(ev.WorkerInitFailed(container_id, payloads[0] if payloads else b""))
            elif kind == "over":
                dispatcher.containers.over(info, text(header.get("k")), text(header.get("r")))
            elif kind == "drain":
                dispatcher.containers.leaving(container_id)
                dispatcher.handle(ev.WorkerDraining(container_id))
            elif kind == "bye":
                session.said_bye = True
                session.parks = header.get("k") == 1
            elif kind == "hb":
                usage = _usage(header)
                if usage is not None:
                    dispatcher.handle(ev.WorkerUsage(container_id, usage))
            else:
                raise frames.FrameError(f"a worker sent a frame of type {kind!r}")

        peer.start(take)
        return lambda: dispatcher.background(dispatcher.containers.gone(info, session))


@web.middleware
async def _without_disks(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell whoever asks while blobs or rows cannot be had to come again, or that there is no space."""
    try:
        return await handler(request)
    except (BlobStoreFull, StoreFull) as error:
        logger.error("%s %s failed: %s", request.method, request.path, error)
        # To come again at once would help nobody.
        raise web.HTTPInsufficientStorage(text=str(error)) from None
    except (BlobStoreError, StoreError) as error:
        logger.error("%s %s failed: %s", request.method, request.path, error)
        raise web.HTTPServiceUnavailable(text=str(error), headers={"Retry-After": "1"}) from None


def _refuse(peer: Peer, error: list[str]) -> Callable[[], None]:
    peer.send(encode({"t": "refused", "e": error}))
    peer.close()
    return lambda: None


def _check_scope(dispatcher: Dispatcher, identity: Identity, function_id: str, call_id: str) -> None:
    try:
        scope.check_function(dispatcher, identity, function_id)
        scope.check_live_call(dispatcher, identity, call_id)
    except AuthError as error:
        # An id that no look-up gave it: the client does not keep to the protocol.
        raise frames.FrameError(str(error)) from None


def _refusal(hello: frames.Header, identity: Identity) -> list[str] | None:
    if hello["t"] != "hello" or hello.get("role") not in ("client", "worker", "gateway"):
        raise frames.FrameError("the first frame is no hello")
    if hello.get("v") != frames.PROTOCOL_VERSION:
        return [
            "VersionError",
            f"the dispatcher (version {__version__}) speaks protocol {frames.PROTOCOL_VERSION}, the client "
            f"(version {hello.get('version')}) protocol {hello.get('v')}: install one version on both sides",
        ]
    if identity.gateway != (hello["role"] == "gateway"):
        return ["AuthError", "gateways, and they alone, come with the dispatcher's gateway_token"]
    if hello["role"] == "worker" and identity.container != hello.get("container"):
        return ["AuthError", "the token is not this container's"]
    return None


def _inputs(header: frames.Header, payloads: list[bytes]) -> list[ev.SubmittedInput]:
    count = len(payloads)
    indexes = integers(header.get("x"), count)
    return list(zip(indexes, payloads, flags(header.get("g"), count), strict=True))


def _outputs(header: frames.Header, payloads: list[bytes]) -> list[ev.ReturnedOutput]:
    count = len(payloads)
    leases = integers(header.get("x"), count)
    said = statuses(header.get("s"), count)
    return list(zip(leases, said, payloads, flags(header.get("f"), count), strict=True))


def _items(header: frames.Header, payloads: list[bytes]) -> list[ev.Item]:
    return list(zip(payloads, flags(header.get("f"), len(payloads)), strict=True))


def _usage(header: frames.Header) -> tuple[float, float] | None:
    value = header.get("u")
    return (_seconds(value[0]), _seconds(value[1])) if isinstance(value, list) and len(value) == 2 else None


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < MAX_NUMBER else 0


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < _MAX_SECONDS else 0.0


def _error(error: Exception) -> list[str]:
    from modal_nomad.engines.base import EngineDenied, EngineError

    if isinstance(error, Error):
        return [type(error).__name__, str(error)]
    if isinstance(error, EngineDenied):
        return ["AuthError", str(error)]
    if isinstance(error, EngineError):
        return ["ExecutionError", str(error)]
    if isinstance(error, BlobError):
        return ["InvalidError", str(error)]
    if isinstance(error, (StoreError, BlobStoreError, SecretStoreError)):
        logger.error("a request failed: %s", error)
        return ["InternalFailure", str(error)]
    logger.error("a request failed", exc_info=error)
    return ["InternalFailure", f"{type(error).__name__}: {error}"]
