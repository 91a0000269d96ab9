"""How containers end that an edge leads to, which hears of them from Consul and so later than a gateway.

An old version's container goes on until the new one's has been there for as long as the edge may take to
hear of it. Then its check fails, and it takes what comes for as long again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from modal_nomad.wire.spec import FunctionSpec

if TYPE_CHECKING:
    from modal_nomad.dispatcher._containers import ContainerInfo, FunctionState
    from modal_nomad.dispatcher.web import Web


class EdgeDrains:
    """Tells containers to end, when it is time for them.

    Args:
        functions: the live Functions, by id.
        infos: the containers, by id.
        web: knows which of them edges lead to.
    """

    def __init__(
        self, functions: Mapping[str, FunctionState], infos: Mapping[str, ContainerInfo], web: Web
    ) -> None:
        self._functions = functions
        self._infos = infos
        self._web = web
        # By Function: those that go when its new version is known.
        self._held: dict[str, dict[str, ContainerInfo]] = {}

    def drain(self, info: ContainerInfo) -> None:
        """Have a container end after what it runs: at once, or when nobody is led to it any more."""
        function = self._functions.get(info.function.function_id)
        seconds = self._web.edge_seconds(info.function.spec) if function is not None else 0.0
        if function is None or not seconds or info.version == function.version:
            self._tell(info, seconds)
            return
        held = self._held.setdefault(function.function_id, {})
        most = function.policy().max_containers
        if most is not None and len(held) >= most - 1:
            # Its successor has no place beside it.
            self._tell(info, 0.0)
            return
        held[info.container_id] = info
        others = list(self._infos.values())
        if any(x.function.function_id == function.function_id and self._new(x) for x in others):
            self._release_later(function.function_id, seconds)

    def ready(self, info: ContainerInfo) -> None:
        """Note a container that takes requests now."""
        function_id = info.function.function_id
        if function_id in self._held and self._new(info):
            self._release_later(function_id, self._web.edge_seconds(info.function.spec))

    def ended(self, info: ContainerInfo) -> None:
        """Forget a container."""
        held = self._held.get(info.function.function_id)
        if held is not None and held.pop(info.container_id, None) is not None and not held:
            del self._held[info.function.function_id]

    def _new(self, info: ContainerInfo) -> bool:
        function = self._functions.get(info.function.function_id)
        return info.state == "ready" and function is not None and info.version == function.version

    def _release_later(self, function_id: str, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._release, function_id, seconds)

    def _release(self, function_id: str, seconds: float) -> None:
        infos = [x for x in self._infos.values() if x.function.function_id == function_id]
        if not any(map(self._new, infos)):
            # It has ended meanwhile; the next one is waited for.
            return
        for info in self._held.pop(function_id, {}).values():
            self._tell(info, seconds)

    @staticmethod
    def _tell(info: ContainerInfo, seconds: float) -> None:
        if info.session is not None:
            info.session.send_frame({"t": "drain", "w": seconds} if seconds else {"t": "drain"})


def hold_seconds(spec: FunctionSpec, web: Web) -> float:
    """Return for how long a container may be there after it was to end, for the sake of edges."""
    seconds = web.edge_seconds(spec)
    return 2 * seconds + (spec.startup_timeout or spec.timeout) if seconds else 0.0
