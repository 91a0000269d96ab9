"""Allocations whose container has ended, and that stay for the memory snapshot in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modal_nomad.dispatcher._containers import ContainerInfo, FunctionState


class Parked:
    """Ends what serves no longer; what nobody asks for a container ends by itself.

    After a restart of the dispatcher nothing is known of earlier ones: they end by themselves, or with
    their App's jobs.

    Args:
        functions: the live Functions, by id.
        stop: ends an allocation, by its container's id.
    """

    def __init__(self, functions: Mapping[str, FunctionState], stop: Callable[[str], None]) -> None:
        self._functions = functions
        self._stop = stop
        self._held: dict[str, tuple[str, str]] = {}

    def add(self, info: ContainerInfo) -> None:
        """Take note of a container that has ended and whose allocation stays."""
        self._held[info.container_id] = (info.function.function_id, info.version)
        self.review()

    def ended(self, container_id: str) -> None:
        """Take note of an allocation's end."""
        self._held.pop(container_id, None)

    def review(self) -> None:
        """End those of Functions and versions that are no longer there."""
        for container_id, (function_id, version) in list(self._held.items()):
            function = self._functions.get(function_id)
            if function is None or function.version != version:
                del self._held[container_id]
                self._stop(container_id)

    def give_way(self) -> None:
        """End all of them: a container waits for a place."""
        held, self._held = self._held, {}
        for container_id in held:
            self._stop(container_id)
