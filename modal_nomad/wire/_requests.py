"""What a connection asked and has no answer to yet, and how an answer reaches the thread that wants it."""

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from asyncio import Future as LoopFuture
    from concurrent.futures import Future

    from ._client_socket import Socket

Answer = Tuple[Any, List[bytes]]
_NEVER = float("inf")


class NoAnswer(Exception):
    """A request was not answered in the time that it was given."""


class Outcome:
    """A value or a failure that one thread sets and another one wants; ``io`` awaits it.

    A caller that reads the socket itself needs no Future, which is a lock and two conditions.
    """

    def __init__(self) -> None:
        self._value: Any = None
        self._error: Optional[BaseException] = None
        self._done = False
        self._future: Optional["Future[Any]"] = None
        self._making = threading.Lock()

    def done(self) -> bool:
        """Tell whether the value, or a failure, is here."""
        return self._done

    def result(self) -> Any:
        """Return the value, waiting for it; raises the failure."""
        if not self._done:
            return self.future().result()
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        """Wait no more."""

    def future(self) -> "Future[Any]":
        """Return a Future of the value, made now."""
        from concurrent.futures import Future

        with self._making:
            if self._future is None:
                self._future = Future()
                if self._done:
                    self._complete(self._future)
            return self._future

    def settle(self, value: Any) -> None:
        """Set the value."""
        self._set(value, None)

    def fail(self, error: BaseException) -> None:
        """Set a failure, unless there is a value."""
        self._set(None, error)

    def _set(self, value: Any, error: Optional[BaseException]) -> bool:
        with self._making:
            if self._done:
                return False
            self._value, self._error, self._done = value, error, True
            if self._future is not None:
                self._complete(self._future)
            return True

    def _complete(self, future: "Future[Any]") -> None:
        if future.done() or not future.set_running_or_notify_cancel():
            return
        if self._error is not None:
            future.set_exception(self._error)
        else:
            future.set_result(self._value)


class Asked(Outcome):
    """A request whose caller waits in a thread of its own, or on a loop of its own.

    Attributes:
        number: the request's.
        frame: what was sent; it is sent again after a reconnect.
        alone: who asked says whether it reads the socket or somebody else has to.
        until: the moment on the monotonic clock after which nobody waits.
    """

    alone = True

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.frame = b""
        self.until = _NEVER
        self._then: Optional[Callable[[], None]] = None

    def then(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once the answer is here, on whichever thread brings it."""
        with self._making:
            if not self._done:
                self._then = call
                return
        call()

    def _set(self, value: Any, error: Optional[BaseException]) -> bool:
        first = super()._set(value, error)
        if first and self._then is not None:
            self._then()
        return first


class LoopAsked:
    """A request that a coroutine of the library's loop waits for."""

    alone = False
    until = _NEVER

    def __init__(self, loop: "AbstractEventLoop", thread: int) -> None:
        self.number = 0
        self.frame = b""
        self.future: "LoopFuture[Any]" = loop.create_future()
        self._loop = loop
        self._thread = thread

    def done(self) -> bool:
        """Tell whether the answer is here."""
        return self.future.done()

    def settle(self, value: Any) -> None:
        """Set the answer, from any thread."""
        self._on_loop(self._settle, value)

    def fail(self, error: BaseException) -> None:
        """Set a failure, from any thread."""
        self._on_loop(self._fail, error)

    def _on_loop(self, call: Callable[[Any], None], value: Any) -> None:
        if threading.get_ident() == self._thread:
            call(value)
        else:
            self._loop.call_soon_threadsafe(call, value)

    def _settle(self, value: Any) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Requests:
    """The unanswered requests of a connection, by number; from any thread.

    Whether the socket is ready is known under the same lock: a request that crosses a reconnect is sent by
    exactly one of those who may send it.
    """

    def __init__(self, loop: "AbstractEventLoop") -> None:
        self.last = 0
        self._loop = loop
        self._lock = threading.Lock()
        self._open: Dict[int, Any] = {}
        self._forgotten: List[int] = []
        self._peer: Optional["Socket"] = None
        self._closed = False
        self._sweep_at = _NEVER
        self._sweep_timer: Any = None

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, asked: Any, frame: Callable[[int, int, List[int]], bytes]) -> Optional["Socket"]:
        """Number and keep a request; returns the socket to send it over, None while there is none.

        Args:
            asked: the request.
            frame: gives what to send, from its number, the lowest number that is not answered, and
                higher ones that are, which it empties when it tells them.

        Raises:
            ConnectionError: the client is closed.
        """
        with self._lock:
            if self._closed:
                raise ConnectionError("the client is closed")
            self.last += 1
            asked.number = self.last
            asked.frame = frame(self.last, next(iter(self._open), self.last), self._forgotten)
            self._open[self.last] = asked
            peer = self._peer
        if asked.until < self._sweep_at:
            self._loop.call_soon_threadsafe(self._sweep_by, asked.until)
        return peer

    def forget(self, asked: Any) -> None:
        """Nobody waits for a request."""
        with self._lock:
            known = self._open.pop(asked.number, None) is not None
            # One that waits for long must not keep the answers to all that came after it.
            if known and next(iter(self._open), asked.number) < asked.number:
                self._forgotten.append(asked.number)

    def find(self, number: int) -> Any:
        """Return a request that waits for its answer, or None."""
        asked = self._open.get(number)
        return None if asked is None or asked.done() else asked

    def ready(self, peer: "Socket") -> List[bytes]:
        """Send over a socket from now on; returns what is to be sent again."""
        with self._lock:
            self._peer = peer
            return [asked.frame for asked in self._open.values() if not asked.done()]

    def lost(self) -> None:
        """Send nothing for now."""
        with self._lock:
            self._peer = None

    def close(self, error: BaseException) -> None:
        """Let everything that is unanswered fail, and whatever is asked from now on."""
        with self._lock:
            self._closed = True
            left = list(self._open.values())
        for asked in left:
            asked.fail(error)

    def _sweep_by(self, moment: float) -> None:
        if moment < self._sweep_at:
            if self._sweep_timer is not None:
                self._sweep_timer.cancel()
            self._sweep_at = moment
            self._sweep_timer = self._loop.call_later(max(0.0, moment - monotonic()), self._sweep)

    def _sweep(self) -> None:
        self._sweep_at, self._sweep_timer = _NEVER, None
        now = monotonic()
        with self._lock:
            waiting = [x for x in self._open.values() if x.until < _NEVER and not x.done()]
        for asked in waiting:
            if asked.until <= now:
                asked.fail(NoAnswer())
        earliest = min((x.until for x in waiting if not x.done()), default=_NEVER)
        if earliest < _NEVER:
            self._sweep_by(earliest)
