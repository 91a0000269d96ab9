"""A container that answers requests: they come to a port of its own, past the dispatcher.

Requests and inputs (of a class that has both) share the container's slots, its event loop and its end.
"""

import asyncio
import os
import socket
import sys
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional, Set, Tuple

from ..wire.spec import WebSpec
from ._loop_pool import LoopPool
from ._web_apps import Served, make_app
from ._web_front import Front
from ._web_port import listening
from ._web_server import ServerRouter

LINGER_SECONDS = 2.0
"""A gateway that has not heard yet that the container ends may send a last request."""
_SETTLE_SECONDS = 0.05
_SHUTDOWN_SECONDS = 30.0
_TELL_SECONDS = 0.05
_BACKLOG = 1024


def add_bundle() -> None:
    """Put what serves web Functions last on the path: the Image's own wins."""
    folder = os.environ.get("MODAL_WEB_DIR")
    if folder and folder not in sys.path:
        sys.path.append(folder)


class WebPool(LoopPool):
    """What a container does that has endpoints.

    Args, besides those of ``LoopPool``:
        served: the endpoints, by method; a plain function's is under the empty name.
        find: gives the user's function of a method.
        name: of the Function, for messages.
        key: what gateways prove themselves with.
        open_to_all: requests without it are taken as well, and counted for the dispatcher.
        single_use: the container takes one request in its life.
        tell: takes requests in progress, ended ones, and the seconds that these took.
    """

    def __init__(
        self,
        *args: Any,
        served: Mapping[str, WebSpec],
        find: Callable[[str], Callable[..., Any]],
        name: str,
        key: str,
        open_to_all: bool = False,
        single_use: bool = False,
        tell: Optional[Callable[[int, int, float], None]] = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.open_to_all = open_to_all
        self.single_use = single_use
        self.taken = False
        self.lingering = False
        self.alone = len(served) == 1
        self.only_method = next(iter(served)) if self.alone else ""
        self._tell = tell
        self._telling = False
        self._entered_at: Dict[int, float] = {}
        self._left_count = 0
        self._left_seconds = 0.0
        self.key = key.encode()
        self.failed = False
        self.requests: Set[Any] = set()
        self.fronts: Dict[int, Front] = {}
        self.loop = self._loop
        self.apps: Dict[str, Served] = {}
        self.servers: Dict[str, ServerRouter] = {}
        self._served = served
        self._find = find
        self._name = name
        self._waiting: Deque["asyncio.Future[None]"] = deque()
        self._server: Optional[asyncio.AbstractServer] = None
        self._closing: Optional["asyncio.Task[None]"] = None
        self._idle_since = monotonic()

    # --- begin and end ----------------------------------------------------------------------------

    def open(self) -> Tuple[str, int]:
        """Make the apps and begin to listen; gives the address that gateways find this at.

        Raises:
            BaseException: what the user's function or its app's startup raises.
        """
        asyncio.set_event_loop(self.loop)
        made: List[Served] = []
        for method, spec in self._served.items():
            label = f"{self._name}.{method}" if method else self._name
            function = self._find(method)
            if spec.kind == "server":
                router = ServerRouter(self, spec, label)
                router.check_free()
                function()
                self.servers[method] = router
            else:
                self.apps[method] = app = make_app(spec, function, label, self.slots)
                made.append(app)
        return self.loop.run_until_complete(self._open(made))

    async def _open(self, made: List[Served]) -> Tuple[str, int]:
        for router in self.servers.values():
            await router.wait()
        for app in made:
            await app.start()
        sock, address = listening(os.environ)
        make = self.loop.create_unix_server if sock.family == socket.AF_UNIX else self.loop.create_server
        self._server = await make(lambda: Front(self), sock=sock, backlog=_BACKLOG)
        return address

    @property
    def leaving(self) -> bool:
        """Whether it takes no more requests, or will take none soon."""
        return bool(self.stopping) or self.lingering

    def linger(self, seconds: float, end: Callable[[], None]) -> None:
        """Say that no more requests are to come, and take those that do until ``end`` is called."""
        self.lingering = True
        self._call(lambda: self._linger(seconds, end))

    def _linger(self, seconds: float, end: Callable[[], None]) -> None:
        self.loop.call_later(seconds, end)

    def _quiet(self) -> bool:
        """Whether all is over: looked at when the container is to end."""
        if self._closing is None:
            self._closing = self.loop.create_task(self._close())
        return self._closing.done()

    async def _close(self) -> None:
        await self._last_requests()
        if self._server is not None:
            self._server.close()
        for front in list(self.fronts.values()):
            front.transport.abort()
        await self._shut_down()
        # In the next round: until then this task is not done.
        self.loop.call_soon(self._start)

    async def _last_requests(self) -> None:
        self._idle_since = monotonic()
        while not self.abandoned:
            if self.requests or self.active:
                self._idle_since = monotonic()
            elif not self.fronts or monotonic() - self._idle_since >= LINGER_SECONDS:
                # One more look: a connection may have been made that nobody has accepted yet.
                await asyncio.sleep(_SETTLE_SECONDS)
                if not self.requests and (not self.fronts or self.abandoned or self._lingered()):
                    return
            await asyncio.sleep(_SETTLE_SECONDS)

    def _lingered(self) -> bool:
        return monotonic() - self._idle_since >= LINGER_SECONDS

    async def _shut_down(self) -> None:
        for app in self.apps.values():
            try:
                await asyncio.wait_for(app.stop(), _SHUTDOWN_SECONDS)
            except BaseException as error:
                self.failed = True
                sys.stderr.write(f"modal-nomad worker: {self._name}: {error}\n")

    def preempt(self) -> bool:
        self._call(self._cancel_requests)
        return super().preempt()

    def _cancel_requests(self) -> None:
        for request in list(self.requests):
            request.cancel()

    def busy(self) -> bool:
        """Whether user code runs."""
        return bool(self.requests) or super().busy()

    def interrupted(self) -> None:
        """End what is left of the apps after an interruption."""
        self._cancel_requests()
        with suppress(BaseException):
            self.loop.run_until_complete(asyncio.wait_for(self._shut_down(), _SHUTDOWN_SECONDS))

    # --- slots ------------------------------------------------------------------------------------

    def _room(self) -> bool:
        return len(self.active) + len(self.requests) < self.slots

    async def enter(self, request: Any, patience: Optional[float] = None) -> bool:
        """Wait for a slot and take it; False where none was free for so many seconds."""
        until = None if patience is None else monotonic() + patience
        while not self._room():
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                return False
            turn: "asyncio.Future[None]" = self.loop.create_future()
            self._waiting.append(turn)
            timer = None if left is None else self.loop.call_later(left, self._give_turn, turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake_next()
                raise
            finally:
                if timer is not None:
                    timer.cancel()
        self.requests.add(request)
        if self.open_to_all:
            self._entered_at[id(request)] = monotonic()
            self._count()
        return True

    def leave(self, request: Any) -> None:
        """Give a slot back."""
        self.requests.discard(request)
        begun = self._entered_at.pop(id(request), None)
        if begun is not None:
            self._left_count += 1
            self._left_seconds += monotonic() - begun
            self._count()
        self._freed()

    def _count(self) -> None:
        """Have the dispatcher told, soon: no gateway counts what comes past them."""
        if not self._telling:
            self._telling = True
            self.loop.call_later(_TELL_SECONDS, self._tell_now)

    def _tell_now(self) -> None:
        self._telling = False
        ended, seconds = self._left_count, self._left_seconds
        self._left_count, self._left_seconds = 0, 0.0
        if self._tell is not None:
            self._tell(len(self._entered_at), ended, seconds)

    def _freed(self) -> None:
        self._wake_next()
        if self.queue or self.stopping:
            self._start()

    def _wake_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if self._give_turn(turn):
                return

    @staticmethod
    def _give_turn(turn: "asyncio.Future[None]") -> bool:
        if turn.done():
            return False
        turn.set_result(None)
        return True
