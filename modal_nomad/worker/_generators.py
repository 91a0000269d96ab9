"""Running generators: what they yield goes out as it comes, and they wait for a slow reader.

A generator is run by the same pools as any function: ``Streams.wrap`` makes one into a function that
sends each item and returns how many there were.
"""

import threading
from contextlib import suppress
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Tuple

from .._execution_context import current_work
from ..exception import InputCancellation, InvalidError
from ..wire import frames
from ..wire.serialization import dumps, unpack_exception
from ..wire.window import SendWindow
from ._outbox import MAX_BYTES, MAX_OUTPUTS, Values
from ._session import Session

_SEND_AT_ONCE = 0.002
"""An item that comes this long after the last frame is not kept back for others to join it."""
_SEND_WITHIN = 0.005
_IDLE = 3600.0
# An exception thrown at a thread shows only between its waits.
_TURN = 0.2


class Stream:
    """One input's items: numbered, gathered into frames, held back by the reader's window."""

    def __init__(self, lease: Any, session: Session, values: Values, buffered: Callable[[], None]) -> None:
        self.lease = lease
        self.stopped = False
        self.wakeup: Optional[Callable[[], None]] = None
        self._session = session
        self._values = values
        self._buffered = buffered
        self._window = SendWindow()
        self._changed = threading.Condition()
        self._first = 0
        self._items: List[Tuple[bytes, int]] = []
        self._size = 0
        self._oldest = self._sent = 0.0

    # -- the generator's side ------------------------------------------------------------------

    def encode(self, value: Any) -> Tuple[bytes, int, int]:
        """Return payload, flags and size of an item; a large one goes by way of a blob."""
        data = dumps(value)
        if len(data) <= frames.INLINE_LIMIT:
            return data, 0, len(data)
        _, status, flags, name = self._values.output(self.lease, frames.SUCCESS, data)
        if status != frames.SUCCESS:
            raise unpack_exception(name)
        return name, flags, len(data)

    def put(self, payload: bytes, flags: int, size: int) -> bool:
        """Send an item, soon; False when the reader's window is full then."""
        full = False
        with self._changed:
            number = self._window.send(size)
            if number is not None:
                now = monotonic()
                if number != self._first + len(self._items):
                    # Those between were known to the reader; a frame's items have no gap.
                    self._flush()
                if not self._items:
                    self._first, self._oldest = number, now
                self._items.append((payload, flags))
                self._size += len(payload)
                full = (
                    len(self._items) >= MAX_OUTPUTS
                    or self._size >= MAX_BYTES
                    or now - self._sent >= _SEND_AT_ONCE
                )
            going = self._window.open()
            if full or not going:
                self._flush()
            first = len(self._items) == 1
        if first:
            self._buffered()
        self.check()
        return going

    def open(self) -> bool:
        """Tell whether the generator may go on."""
        return self.stopped or self._window.open()

    def wait(self) -> None:
        """Wait until the generator may go on."""
        with self._changed:
            while not self.open():
                self._changed.wait(_TURN)
        self.check()

    def check(self) -> None:
        """Raise InputCancellation when the lease has ended with its connection."""
        if self.stopped:
            raise InputCancellation("the connection to the dispatcher was lost: the generator runs again")

    def end(self) -> int:
        """Send what is left; return how many items there were."""
        with self._changed:
            self._flush()
            return self._window.next

    # -- the reader thread's side --------------------------------------------------------------

    def took(self, count: int) -> None:
        """Note how many items the reader has taken."""
        with self._changed:
            self._window.took(count)
            self._wake()

    def stop(self) -> None:
        """Have the generator closed where it is."""
        with self._changed:
            self.stopped = True
            self._wake()

    def tick(self, now: float) -> float:
        """Send what has waited for company long enough; return the seconds until there may be more."""
        with self._changed:
            if not self._items:
                return _IDLE
            left = self._oldest + _SEND_WITHIN - now
            if left <= 0:
                self._flush()
                return _IDLE
            return left

    def _wake(self) -> None:
        self._changed.notify_all()
        if self.wakeup is not None:
            self.wakeup()

    def _flush(self) -> None:
        items = self._items
        if not items:
            return
        header: Dict[str, Any] = {"t": "gen", "x": self.lease, "q": self._first}
        if any(item[1] for item in items):
            header["f"] = [item[1] for item in items]
        self._items, self._size = [], 0
        # On another connection the input runs again, under another lease.
        self._session.send(header, [item[0] for item in items])
        self._sent = monotonic()


class Streams:
    """The generators that run in this container.

    Args:
        session: the connection.
        values: makes blobs of large items.
    """

    def __init__(self, session: Session, values: Values) -> None:
        self._session = session
        self._values = values
        self._streams: Dict[Any, Stream] = {}
        self._ticking = False

    def wrap(self, function: Callable[..., Any], name: str, is_async: bool) -> Callable[..., Any]:
        """Return a function that runs a generator function and returns how many items it yielded."""
        return self._wrap_async(function, name) if is_async else self._wrap_sync(function, name)

    def more(self, lease: Any, count: int) -> None:
        """Note how many items of a generator its reader has taken."""
        stream = self._streams.get(lease)
        if stream is not None:
            stream.took(count)

    def stop(self) -> None:
        """Have all generators closed: their leases ended with the connection."""
        for stream in list(self._streams.values()):
            stream.stop()

    def tick(self, now: float) -> float:
        """Send what waits; return the seconds until that may be needed again."""
        if not self._streams:
            return _IDLE
        # First, so that an item which begins to wait behind this look wakes us for another.
        self._ticking = False
        wait = min([stream.tick(now) for stream in list(self._streams.values())], default=_IDLE)
        if wait < _IDLE:
            self._ticking = True
        return wait

    def _buffered(self) -> None:
        # The reader thread may sleep long in its socket: it is who sends what the generator does not.
        if not self._ticking:
            self._ticking = True
            self._session.wake()

    def _begin(self) -> Stream:
        work: Any = current_work.get()
        stream = Stream(work[0], self._session, self._values, self._buffered)
        self._streams[work[0]] = stream
        return stream

    def _wrap_sync(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> int:
            iterator = _iterator(function(*args, **kwargs), name)
            stream = self._begin()
            try:
                for value in iterator:
                    if not stream.put(*stream.encode(value)):
                        stream.wait()
                return stream.end()
            except BaseException:
                stream.end()
                raise
            finally:
                self._streams.pop(stream.lease, None)
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()

        return run

    def _wrap_async(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        import asyncio

        async def run(*args: Any, **kwargs: Any) -> int:
            result = function(*args, **kwargs)
            if hasattr(result, "__await__"):
                result = await result
            if not hasattr(result, "__aiter__"):
                result = _as_async(_iterator(result, name))
            stream = self._begin()
            loop = asyncio.get_running_loop()
            changed = asyncio.Event()

            def wake() -> None:
                # RuntimeError: the loop has ended, and the generator with it.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(changed.set)

            stream.wakeup = wake
            try:
                async for value in result:
                    item = stream.encode(value)
                    if not stream.put(*item):
                        while not stream.open():
                            changed.clear()
                            if not stream.open():
                                await changed.wait()
                        stream.check()
                    # Others share the loop with a generator that never waits for anything.
                    await asyncio.sleep(0)
                return stream.end()
            except BaseException:
                stream.end()
                raise
            finally:
                self._streams.pop(stream.lease, None)
                close = getattr(result, "aclose", None)
                if close is not None:
                    await close()

        return run


def _iterator(result: Any, name: str) -> Any:
    if hasattr(result, "__aiter__"):
        raise InvalidError(
            f"{name} returned an async generator from a plain function; make it an `async def`, "
            "so that it runs on a loop"
        )
    try:
        return iter(result)
    except TypeError:
        raise InvalidError(
            f"{name} is declared a generator and returned a {type(result).__name__}; "
            "yield the items, or drop is_generator=True"
        ) from None


async def _as_async(iterator: Any) -> Any:
    for value in iterator:
        yield value
