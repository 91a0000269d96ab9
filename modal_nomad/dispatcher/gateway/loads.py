"""How busy all gateways together are: what each of them says, added up for the call engine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Tell = Callable[[str, int, Mapping[str, int], int, float], None]
"""Takes a Function's load: requests that wait, those that each container has, how many ended, in how long."""
_Load = tuple[int, Mapping[str, int]]
_NOTHING: _Load = (0, {})


class Loads:
    """What each gateway says of each Function.

    Args:
        tell: takes what all of them say together.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._of: dict[str, dict[str, _Load]] = {}
        self._own: dict[str, dict[str, int]] = {}

    def say(
        self,
        source: str,
        function_id: str,
        waiting: int,
        running: Mapping[str, int],
        finished: int,
        seconds: float,
    ) -> None:
        """Take a gateway's word."""
        loads = self._of.setdefault(function_id, {})
        if waiting or running:
            loads[source] = (waiting, running)
        else:
            loads.pop(source, None)
            if not loads:
                del self._of[function_id]
        self._tell(function_id, *self.total(function_id), finished, seconds)

    def forget(self, source: str) -> list[str]:
        """Take a gateway for gone; gives the Functions that it had requests for."""
        left = [x for x, loads in self._of.items() if source in loads]
        for function_id in left:
            self.say(source, function_id, 0, {}, 0, 0.0)
        return left

    def say_own(
        self, function_id: str, container_id: str, running: int, finished: int, seconds: float
    ) -> None:
        """Take a container's own word: requests come to it past the gateways as well."""
        own = self._own.setdefault(function_id, {})
        if running:
            own[container_id] = running
        elif own.pop(container_id, None) is not None and not own:
            del self._own[function_id]
        self._tell(function_id, *self.total(function_id), finished, seconds)

    def container_gone(self, function_id: str, container_id: str) -> None:
        """Forget what a container said."""
        self._own.get(function_id, {}).pop(container_id, None)

    def withdraw(self, function_id: str) -> None:
        """Forget a Function."""
        self._of.pop(function_id, None)
        self._own.pop(function_id, None)

    def total(self, function_id: str) -> _Load:
        """Return how many wait for a Function, and how many each container has."""
        waiting, running = self._added(list(self._of.get(function_id, {}).values()))
        own = self._own.get(function_id)
        if own:
            # It counts those of the gateways, too.
            running = {x: max(running.get(x, 0), own.get(x, 0)) for x in {*running, *own}}
        return waiting, running

    def elsewhere(self, source: str, function_id: str) -> Mapping[str, int]:
        """Return how many requests each container has from the other gateways."""
        loads = self._of.get(function_id, {})
        return self._added([x for name, x in loads.items() if name != source])[1]

    @staticmethod
    def _added(loads: list[_Load]) -> _Load:
        if len(loads) < 2:
            return loads[0] if loads else _NOTHING
        waiting, running = 0, dict[str, int]()
        for part, counts in loads:
            waiting += part
            for container_id, count in counts.items():
                running[container_id] = running.get(container_id, 0) + count
        return waiting, running
