"""A container is told to end: what its signals mean, and how long it has.

The first SIGTERM (a drain, a stop) lets running inputs finish; shortly before the grace period is over they
are interrupted, so that exit hooks still run. The first SIGINT (a preemption) interrupts them at once. A
second signal of either kind interrupts whatever runs, exit hooks too.
"""

import os
import signal
import threading
from time import monotonic
from typing import Any

# A real-time signal: user code has its own plans for SIGALRM and SIGUSR1.
INTERRUPT = getattr(signal, "SIGRTMIN", signal.SIGUSR2 - 7) + 7
FOREVER = float("inf")
PREEMPTION_SECONDS = 30.0
_MARGIN = 1.0
# For giving back what ran, and for sending what was printed, on a machine that has other work too.
_LAST_WORDS = 5.0
_AGAIN_AFTER = 0.01
_WRITERS = frozenset(("send", "_write_raw"))
_WIRE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "wire") + os.sep


def put_off(number: int, frame: Any) -> bool:
    """Tell whether a signal met the writing of a frame, which must not be torn; it comes again then."""
    while frame is not None:
        if frame.f_code.co_name in _WRITERS and frame.f_code.co_filename.startswith(_WIRE):
            timer = threading.Timer(_AGAIN_AFTER, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
            return True
        frame = frame.f_back
    return False


class Ending:
    """The signals that came.

    Args:
        grace: seconds between SIGTERM and the SIGKILL that follows it.

    Attributes:
        told: a signal came, whether or not its handler could run.
        signals: how many reached their handler.
        interrupt_at: when running inputs are to be interrupted.
        last: when the process must be gone.
        hooks: exit hooks run now.
    """

    def __init__(self, grace: float) -> None:
        self.told = False
        self.signals = 0
        self.interrupt_at = FOREVER
        self.last = FOREVER
        self.hooks = False
        self._grace = grace
        self._own = False

    def begin(self, number: int) -> None:
        """Start the clock, at the first signal. In a handler, or in the thread that learns of it first."""
        if self.told:
            return
        now = monotonic()
        if number == signal.SIGTERM:
            margin = min(5.0, 0.5 * self._grace)
            self.interrupt_at = now + self._grace - margin
            self.last = now + self._grace - margin / 5
        else:
            self.last = now + PREEMPTION_SECONDS + _MARGIN
        self.told = True

    def interrupt(self) -> None:
        """Interrupt what runs, as the grace period nears its end: what is left of it is for cleaning up."""
        self.interrupt_at = FOREVER
        self._own = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def note(self, number: int, frame: Any) -> bool:
        """Take note of a signal; False when it came amid a frame's writing and comes again after that."""
        if put_off(number, frame):
            return False
        self.begin(number)
        self.signals += 1
        own, self._own = self._own, False
        if self.signals > 1 and not own:
            self.last = min(self.last, monotonic() + _LAST_WORDS)
        return True
