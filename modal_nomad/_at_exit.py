"""Let work on the library's loop come to its end before the program does."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable


def wait_for(seconds: float) -> Callable[[], None]:
    """Have the end of this program wait until the returned function was called, at most so long."""
    settled = threading.Event()
    here = os.getpid()

    def wait() -> None:
        # A forked child has no loop that would settle it.
        if os.getpid() == here:
            settled.wait(seconds)

    def settle() -> None:
        settled.set()
        atexit.unregister(wait)

    atexit.register(wait)
    return settle
