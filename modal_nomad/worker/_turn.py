"""Whose turn it is to read the socket: the reader thread's, or the one lane's while it has nothing to run.

An idle lane that reads by itself saves a short call the way through another thread. The reader thread
takes over when the lane has been away for a while, and gives the turn back when the lane is idle again.
"""

import threading
from time import monotonic
from typing import Any, Callable, Dict, List

from ..wire import frames
from ._session import Session

TAKE_OVER_AFTER = 0.005
_SETTLED = 0.1
_LONG = 3600.0


class Turn:
    """The turn to read; the reader thread has it first.

    Args:
        session: the connection.
        handle: takes each frame.
        wake_lane: wakes the lane when it waits for a token.

    Attributes:
        lanes: it is the lane's turn.
    """

    def __init__(
        self,
        session: Session,
        handle: Callable[[Dict[str, Any], List[bytes]], None],
        wake_lane: Callable[[], None],
    ) -> None:
        self.lanes = False
        self._session = session
        self._handle = handle
        self._wake_lane = wake_lane
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._wanted = False
        self._polling = False
        self._asleep = False
        self._moved = 0.0

    # -- the lane's side -----------------------------------------------------------------------

    def read(self, enough: Callable[[], bool]) -> bool:
        """Read frames until there is enough to do; False when it is not the lane's turn (any more)."""
        if not self.lanes:
            return False
        with self._lock:
            if not self.lanes:
                return False
            self._moved = monotonic()
            self._polling = True
            try:
                while self.lanes and not enough():
                    data = self._session.receive(_LONG)
                    if data is not None:
                        self._handle(*frames.decode(data))
            except (OSError, frames.FrameError):
                # To connect again is the reader thread's work.
                self._session.drop()
                self.lanes = False
            finally:
                self._moved = monotonic()
                self._polling = False
        if self._asleep or not self.lanes:
            self._event.set()
        return self.lanes

    def want(self, wanted: bool) -> None:
        """Say whether the lane, idle, would have the turn."""
        self._wanted = wanted
        if wanted:
            self._session.wake()

    def interrupt(self) -> None:
        """Have the lane, if it reads, look at what there is to do. Safe in a signal handler."""
        self._session.wake()

    # -- the reader thread's side --------------------------------------------------------------

    def pass_on(self) -> None:
        """Give the lane the turn if it wants it."""
        if self._wanted:
            self._wanted = False
            self._moved = monotonic()
            self.lanes = True
            self._wake_lane()

    def park(self, until: float) -> None:
        """Stand by until it is the reader thread's turn, or until a moment of the monotonic clock."""
        event = self._event
        while self.lanes:
            now = monotonic()
            if now >= until:
                return
            since = now - self._moved
            event.clear()
            if not self._polling:
                if since >= TAKE_OVER_AFTER:
                    self.lanes = False
                    return
                event.wait(TAKE_OVER_AFTER - since)
            elif since < _SETTLED:
                event.wait(TAKE_OVER_AFTER)
            else:
                self._asleep = True
                if self._polling and self.lanes:
                    event.wait(until - now)
                self._asleep = False

    def receive(self, timeout: float) -> Any:
        """Read one frame's bytes, as ``Session.receive``, in the reader thread's turn."""
        with self._lock:
            return self._session.receive(timeout)

    def end(self) -> None:
        """The lane reads no more."""
        self.lanes = self._wanted = False
        self._event.set()
        self._session.wake()
