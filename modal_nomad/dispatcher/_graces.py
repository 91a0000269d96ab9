"""Times that those who went away have to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Graces:
    """Timers by key: each calls its action unless it is ended first."""

    def __init__(self) -> None:
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()

    def begin(self, key: str, seconds: float, action: Callable[[str], None], argument: str) -> None:
        """Call ``action(argument)`` after this time; one that runs under the key is replaced."""
        self.end(key)
        self._timers[key] = self._loop.call_later(seconds, self._over, key, action, argument)

    def end(self, key: str) -> None:
        """Stop the timer of a key, if one runs."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Stop them all."""
        for key in list(self._timers):
            self.end(key)

    def _over(self, key: str, action: Callable[[str], None], argument: str) -> None:
        self._timers.pop(key, None)
        action(argument)
