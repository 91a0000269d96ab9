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
        self._unplaced: set[str] = set()

    def add(self, info: ContainerInfo) -> None:
        """Take note of a container that has ended and whose allocation stays."""
        self._held[info.container_id] = (info.function.function_id, info.version)
        self.review()
        if self._unplaced:
            self._give_way()

    def ended(self, container_id: str) -> None:
        """Take note of an allocation's end."""
        self._held.pop(container_id, None)
        self._unplaced.discard(container_id)

    def review(self) -> None:
        """End those of Functions and versions that are no longer there."""
        for container_id, (function_id, version) in list(self._held.items()):
            function = self._functions.get(function_id)
            if function is None or function.version != version:
                del self._held[container_id]
                self._stop(container_id)

    def unplaced(self, container_id: str) -> None:
        """Take note of a container that no node has room for: they all give way to it."""
        self._unplaced.add(container_id)
        self._give_way()

    def placed(self, container_id: str) -> None:
        """Take note of a container that has a place now."""
        self._unplaced.discard(container_id)

    def _give_way(self) -> None:
        held, self._held = self._held, {}
        for container_id in held:
            self._stop(container_id)
