"""What users write, as ASGI: their ASGI and WSGI apps, and functions that FastAPI calls."""

import asyncio
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, MutableMapping, Optional, Tuple

from .._execution_context import current_work
from ..exception import ExecutionError, InputCancellation, InvalidError
from ..wire.ids import new_id
from ..wire.spec import WebSpec
from ..wire.web import FIELDS
from ._pool import STUCK_AFTER
from ._web_given import Given
from ._web_threads import RequestExecutor, RequestThread, follow_anyio, owner

if TYPE_CHECKING:
    from ._web import WebPool
    from ._web_front import Front

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Dict[str, Any], Receive, Send], Awaitable[None]]

_FOREVER = 10 * 365 * 86400
"""Seconds that an idle connection is kept: the gateway decides."""
_HEAD_BYTES = 1 << 17
_GRACE = 0.1
_SOCKET_GRACE = 10.0


def make_app(spec: WebSpec, function: Callable[..., Any], name: str, slots: int) -> "Served":
    """Return what serves a user's function.

    Args:
        spec: how it is served.
        function: the user's.
        name: of the Function, for messages.
        slots: requests at a time.

    Raises:
        InvalidError: it gives nothing that can be served.
        ExecutionError: a package is missing.
        BaseException: what the function raises.
    """
    if spec.kind == "endpoint":
        app = _fastapi(spec, function, name)
        follow_anyio()
        return Served(app, name, lifespan=False)
    made = function()
    if not callable(made):
        raise InvalidError(f"{name} returned {made!r}; it must return the {spec.kind.upper()} app")
    if spec.kind == "asgi":
        follow_anyio()
        return Served(made, name)
    from a2wsgi import WSGIMiddleware  # type: ignore[import-not-found, unused-ignore]

    adapted: Any = WSGIMiddleware(made, workers=slots)
    adapted.executor = RequestExecutor(max_workers=slots, thread_name_prefix="WSGI")

    async def served(scope: Dict[str, Any], receive: Receive, send: Send) -> None:
        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                # Else what came of a body that was cut off would be taken for all of it.
                raise ConnectionResetError("the client left before its request had come")
            return message

        await adapted(scope, received, send)

    return Served(served, name, lifespan=False)


def _fastapi(spec: WebSpec, function: Callable[..., Any], name: str) -> App:
    try:
        from fastapi import FastAPI  # type: ignore[import-not-found, unused-ignore]
        from fastapi.middleware.cors import (  # type: ignore[import-not-found, unused-ignore]
            CORSMiddleware,
        )
    except ImportError as error:
        raise ExecutionError(
            f"{name} is a FastAPI endpoint, and its Image has no FastAPI ({error}): add "
            '.pip_install("fastapi[standard]")'
        ) from error
    pages: Any = {}
    if not spec.docs:
        pages = {"openapi_url": None, "docs_url": None, "redoc_url": None}
    app: Any = FastAPI(title=name, **pages)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    app.add_api_route("/", function, methods=[spec.method])
    made: App = app
    return made


class Served:
    """An ASGI app and its lifespan.

    Args:
        app: the app.
        name: of the Function, for messages.
        lifespan: whether it may have one.
    """

    def __init__(self, app: App, name: str, *, lifespan: bool = True) -> None:
        self.app = app
        self.state: Dict[str, Any] = {}
        self._name = name
        self._lifespan = lifespan
        self._events: "Optional[asyncio.Queue[Message]]" = None
        self._answers: "Optional[asyncio.Queue[Message]]" = None
        self._task: "Optional[asyncio.Task[None]]" = None
        self._config: Any = None

    # --- lifespan ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Run the app's startup. Raises ExecutionError when it fails."""
        if not self._lifespan:
            return
        self._events, self._answers = asyncio.Queue(), asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self._task = asyncio.ensure_future(self.app(scope, self._events.get, self._answers.put))
        answer = await self._say("startup")
        if answer is None:
            # An app without a lifespan refuses the scope in whatever way it likes.
            self._task = None

    async def stop(self) -> None:
        """Run the app's shutdown. Raises ExecutionError when it fails."""
        if self._task is not None:
            await self._say("shutdown")
            self._task.cancel()
            self._task = None

    async def _say(self, what: str) -> Optional[Message]:
        task, events, answers = self._task, self._events, self._answers
        assert task is not None and events is not None and answers is not None
        await events.put({"type": f"lifespan.{what}"})
        answer = asyncio.ensure_future(answers.get())
        await asyncio.wait({task, answer}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            if not task.cancelled():
                task.exception()
            return None
        said = answer.result()
        if said.get("type") == f"lifespan.{what}.failed":
            if task.done() and not task.cancelled():
                task.exception()
            text = said.get("message", "")
            raise ExecutionError(f"the {what} of the ASGI app of {self._name} failed: {text}")
        return said

    # --- requests ---------------------------------------------------------------------------------

    def protocol(self, pool: "WebPool") -> Any:
        """Return what reads and writes HTTP on one connection."""
        if self._config is None:
            self._config = _config(self, pool)
        config, state = self._config
        kind = config.http_protocol_class
        try:
            return kind(config=config, server_state=state, app_state={}, _loop=pool.loop)
        except TypeError:
            # Older versions of uvicorn, which an Image may have.
            return kind(config=config, server_state=state, _loop=pool.loop)


def _config(served: Served, pool: "WebPool") -> Tuple[Any, Any]:
    import uvicorn  # type: ignore[import-not-found, unused-ignore]
    from uvicorn.server import ServerState  # type: ignore[import-not-found, unused-ignore]

    async def app(scope: Dict[str, Any], receive: Receive, send: Send) -> None:
        await Request(served, pool, scope).run(receive, send)

    config = uvicorn.Config(
        app,
        interface="asgi3",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_FOREVER,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    config.load()
    return config, ServerState()


class Request:
    """One request of an ASGI app, which is an input to user code.

    Args:
        served: the app.
        pool: whose slot it takes.
        scope: of the request.

    Attributes:
        thread: where synchronous code runs for it.
    """

    def __init__(self, served: Served, pool: "WebPool", scope: Dict[str, Any]) -> None:
        self._served = served
        self._pool = pool
        self._scope = scope
        self.thread: Optional[RequestThread] = None
        self._task: "Optional[asyncio.Task[Any]]" = None
        self._left = False
        self._late = False
        self._begun = False
        self._said: "Optional[asyncio.Task[None]]" = None
        self._closed: "Optional[asyncio.Future[None]]" = None

    async def run(self, receive: Receive, send: Send) -> None:
        """Answer it."""
        pool = self._pool
        front: Front = _front(pool, self._scope)
        self._task = asyncio.current_task()
        front.request = self
        timer: Optional[asyncio.TimerHandle] = None
        entered = False

        async def told(message: Message) -> None:
            if self._said is None:
                self._begun = True
                await send(message)

        try:
            given = front.given() or _take_given(self._scope)
            _adapt(self._scope, given, self._served.state)
            call_id, patience = given.call_id or new_id("fc"), given.patience
            current_work.set((None, call_id, 0, 0, b"", ""))
            owner.set(self)
            entered = await pool.enter(self, patience)
            if not entered:
                await self._refuse(front)
                return
            timer = pool.loop.call_later(pool.timeout, self._out_of_time, front, send)
            await self._served.app(self._scope, receive, told)
        except (asyncio.CancelledError, InputCancellation):
            if not self._left and not self._late:
                raise
        finally:
            if front.request is self:
                front.request = None
            if timer is not None:
                timer.cancel()
            if entered:
                pool.leave(self)
        if self._said is not None:
            await self._said
        elif self._late and not self._left and not self._begun:
            await _say_late(self._scope, send, pool.timeout)

    async def _refuse(self, front: "Front") -> None:
        self._closed = self._pool.loop.create_future()
        front.refuse_full()
        # What read the request has to see the end of its connection first, or it answers as well.
        await self._closed

    def client_left(self) -> None:
        """Cancel the work, of which nobody waits for the result any more.

        An app that listens for it is told first (``http.disconnect``, ``websocket.disconnect``), and may end
        by itself.
        """
        self._left = True
        if self._closed is not None:
            if not self._closed.done():
                self._closed.set_result(None)
            return
        grace = _SOCKET_GRACE if self._scope["type"] == "websocket" else _GRACE
        self._pool.loop.call_later(grace, self.cancel)

    def _out_of_time(self, front: "Front", send: Send) -> None:
        self._late = True
        if self._in_thread() and not self._left:
            # The client is not to wait for the thread, which ends when it can.
            if self._begun:
                front.transport.abort()
            else:
                late = _say_late(self._scope, send, self._pool.timeout)
                self._said = self._pool.loop.create_task(late)
        self.cancel()
        self._pool.loop.call_later(STUCK_AFTER, self._look)

    def _look(self) -> None:
        """Give the container up whose thread does not end: it has no room for another request."""
        if self._task is not None and not self._task.done():
            self._pool.request_drain()

    def _in_thread(self) -> bool:
        return self.thread is not None and not self.thread.over

    def cancel(self) -> None:
        """Cancel the work."""
        if self._task is None or self._task.done():
            # A thread may go on for what the request has left behind.
            return
        if self._in_thread():
            assert self.thread is not None
            self.thread.interrupt()
        else:
            self._task.cancel()


def _front(pool: "WebPool", scope: Dict[str, Any]) -> Any:
    number = scope["client"][1]
    return pool.fronts[number]


def _take_given(scope: Dict[str, Any]) -> Given:
    """Take what a gateway, or an edge in its place, says of a request out of the fields of its head."""
    given = Given()
    kept: List[Tuple[bytes, bytes]] = []
    for name, value in scope["headers"]:
        if name in FIELDS or name.startswith(b"x-forwarded-"):
            given.take(name, value)
        else:
            kept.append((name, value))
    scope["headers"] = kept
    return given


def _adapt(scope: Dict[str, Any], given: Given, state: Dict[str, Any]) -> None:
    """Make a scope what the user's app is to see."""
    scope["headers"] = [*scope["headers"], *given.headers]
    scope["client"] = given.client
    scope["state"] = dict(state)
    if given.encrypted:
        scope["scheme"] = "wss" if scope["type"] == "websocket" else "https"
    prefix = given.prefix
    if prefix:
        scope["root_path"] = prefix
        scope["path"] = prefix + scope["path"]
        scope["raw_path"] = prefix.encode("latin-1") + (scope.get("raw_path") or b"")


async def _say_late(scope: Dict[str, Any], send: Send, timeout: float) -> None:
    if scope["type"] != "http":
        return
    why = f"the request ran longer than the Function's timeout of {timeout:g} s"
    text = f"504 Gateway Timeout: {why}\n".encode()
    fields = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 504, "headers": fields})
    await send({"type": "http.response.body", "body": text})
