"""How much of a processor inputs want: the autoscaler adds containers only where some is left."""

import os
import threading
import time
from typing import List, Optional

PERIOD = 0.02
"""Seconds between two looks at the clocks, which cost some microseconds."""


class CpuClock:
    """Processor seconds that this container wanted: those it had, and those it waited for one.

    Without the waiting, containers that share a processor would look the idler the more they are.
    Made anew in each process: the file is its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waited: Optional[int] = None
        self._wanted = 0.0
        self._at = 0.0
        self._seconds = 0.0

    def start(self) -> None:
        """Begin: what was before is no input's."""
        try:
            # Of the main thread, which runs the user's code unless there are several slots.
            self._waited = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._waited = None
        self._wanted, self._at, self._seconds = self._read(), time.monotonic(), 0.0

    def spent(self, seconds: float) -> Optional[List[float]]:
        """Note seconds of user code; now and then give what was wanted in how many of them."""
        with self._lock:
            self._seconds += seconds
            return self._take(self._seconds) if time.monotonic() - self._at >= PERIOD else None

    def beat(self) -> Optional[List[float]]:
        """Give what was wanted since the last look, for inputs that run on."""
        with self._lock:
            return self._take(time.monotonic() - self._at)

    def _take(self, seconds: float) -> Optional[List[float]]:
        wanted = self._read()
        used, self._wanted = wanted - self._wanted, wanted
        self._at, self._seconds = time.monotonic(), 0.0
        return [round(max(0.0, used), 6), round(seconds, 6)] if seconds > 0 else None

    def _read(self) -> float:
        times = os.times()
        wanted = time.process_time() + times.children_user + times.children_system
        if self._waited is not None:
            try:
                wanted += int(os.pread(self._waited, 64, 0).split()[1]) / 1e9
            except (OSError, ValueError, IndexError):
                self._waited = None
        return wanted
