"""A caller that waits in its own thread reads the connection's socket itself.

The loop's thread would only read an answer to wake the caller for it. It hands the socket over when an
answer has gone to such a caller, and takes it back as soon as callers have left it alone for a moment.
"""

import os
import select
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Optional

from .frames import FrameError

if TYPE_CHECKING:
    from .connection import Connection

_MOMENT = 0.005
_PIECE = 1 << 14


class Direct:
    """Who reads: the loop, or the callers.

    Attributes:
        callers: the callers do.
        wished: a caller waits that would have read.
        thread: the thread of the caller that reads now, or None.
    """

    def __init__(self, connection: "Connection") -> None:
        self.callers = False
        self.wished = False
        self.thread: Optional[int] = None
        self._connection = connection
        self._peer: Any = None
        self._poll: Any = None
        self._descriptor = -1
        self._lock = threading.Lock()
        self._moved = 0.0
        self._armed = False

    # -- a caller's thread ---------------------------------------------------------------------

    def read_until(self, done: Callable[[], bool]) -> None:
        """Read until ``done``, unless it is the loop or another caller that reads."""
        if not self.callers:
            self.wished = True
            return
        if not self._lock.acquire(blocking=False):
            return
        connection = self._connection
        try:
            peer, poll = self._peer, self._poll
            self.thread = threading.get_ident()
            while self.callers and not done():
                # In turns, because the loop cannot wake a poll when it takes the socket back.
                if not poll.poll(1000):
                    continue
                try:
                    data = os.read(self._descriptor, _PIECE)
                    if not data:
                        raise ConnectionError("the dispatcher closed the connection")
                    peer.take(data)
                except BlockingIOError:
                    continue
                except (OSError, FrameError):
                    connection.loop.call_soon_threadsafe(self._broken, peer)
                    return
                except BaseException:
                    # Ctrl-C may have come when the bytes were here and not yet understood: they come again.
                    connection.loop.call_soon_threadsafe(self._broken, peer)
                    raise
        finally:
            self.thread = None
            self._moved = monotonic()
            self._lock.release()
            if not self.callers or not self._armed or connection.waiting() > 1:
                connection.loop.call_soon_threadsafe(self._left)

    def look_soon(self) -> None:
        """Say that something waits that no caller reads for. From any thread."""
        if self.callers and self.thread is None:
            self._connection.loop.call_soon_threadsafe(self.look)

    # -- the loop's thread ---------------------------------------------------------------------

    def hand_over(self, peer: Any) -> None:
        """Leave the socket to the callers from now on."""
        if not peer.plain:
            return
        peer.transport.pause_reading()
        if peer is not self._peer:
            self._peer = peer
            self._close()
            # One of our own: the transport may close its descriptor while a caller polls.
            self._descriptor = os.dup(peer.descriptor)
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN)
        self._moved = monotonic()
        self.callers = True
        self.wished = False
        self._arm()

    def look(self) -> None:
        """Take the socket back if something waits that no caller reads for."""
        if self.callers and self.thread is None and self._connection.waiting():
            self.take_back()

    def take_back(self) -> None:
        """Read on the loop again, unless a caller is reading just now."""
        if not self.callers or not self._lock.acquire(blocking=False):
            return
        self.callers = False
        self._lock.release()
        if not self._peer.transport.is_closing():
            self._peer.transport.resume_reading()

    def forget(self) -> None:
        """The connection is gone."""
        self.callers = False
        if self._lock.acquire(blocking=False):
            self._peer = None
            self._close()
            self._lock.release()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _left(self) -> None:
        if not self.callers:
            self.forget()
            self._connection.loop.call_later(_MOMENT, self._connection._flush_ended)
            return
        self.look()
        if self.callers and not self._armed:
            self._arm()

    def _arm(self) -> None:
        self._armed = True
        self._connection.loop.call_later(_MOMENT, self._check)

    def _check(self) -> None:
        self._armed = False
        self._connection._flush_ended()
        if not self.callers or self.thread is not None:
            # Who reads now looks after this when it leaves.
            return
        if monotonic() - self._moved >= _MOMENT:
            self.take_back()
        else:
            self._arm()

    def _broken(self, peer: Any) -> None:
        if peer is self._peer:
            peer.transport.abort()
