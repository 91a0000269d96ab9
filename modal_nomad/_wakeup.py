"""Waking whoever consumes from whichever thread produces."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future


class Wakeup:
    """One consumer waits, in either face of a call; producers wake it from any thread."""

    def __init__(self) -> None:
        self._waiter: Future[None] | None = None
        self._lock = threading.Lock()

    def wake(self) -> None:
        """Wake the consumer; from any thread."""
        with self._lock:
            waiter, self._waiter = self._waiter, None
        if waiter is not None and waiter.set_running_or_notify_cancel():
            waiter.set_result(None)

    def waiter(self, ready: Callable[[], bool]) -> Future[None] | None:
        """Return a future that ``wake`` completes, or None when there is something to do already."""
        with self._lock:
            if ready():
                return None
            self._waiter = Future()
            return self._waiter
