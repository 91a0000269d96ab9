"""When containers that an edge leads to are told to end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from modal_nomad.dispatcher._edge_drains import EdgeDrains


class Rim:
    """Functions, containers and what these were told."""

    def __init__(self) -> None:
        self.functions: dict[str, Any] = {
            "fu": SimpleNamespace(function_id="fu", version="one", spec=None, policy=lambda: self)
        }
        self.infos: dict[str, Any] = {}
        self.told: list[tuple[str, float]] = []
        self.heard = asyncio.Event()
        self.max_containers: int | None = None
        self.seconds = 0.01
        web: Any = SimpleNamespace(edge_seconds=lambda spec: self.seconds)
        self.drains = EdgeDrains(self.functions, self.infos, web)

    def container(self, name: str, version: str) -> Any:
        def send_frame(header: dict[str, Any]) -> None:
            assert header["t"] == "drain"
            self.told.append((name, header.get("w", 0.0)))
            self.heard.set()

        function = self.functions["fu"]
        info = SimpleNamespace(container_id=name, version=version, function=function, state="ready")
        info.session = SimpleNamespace(send_frame=send_frame)
        self.infos[name] = info
        return info


async def test_an_old_version_waits_for_the_new_one() -> None:
    rim = Rim()
    old = rim.container("ta-old", "one")
    rim.functions["fu"].version = "two"
    rim.drains.drain(old)
    await asyncio.sleep(0.05)
    assert rim.told == []
    new = rim.container("ta-new", "two")
    rim.drains.ready(new)
    async with asyncio.timeout(60):
        await rim.heard.wait()
    assert rim.told == [("ta-old", 0.01)]


async def test_who_leaves_no_place_for_the_new_version_goes_at_once() -> None:
    rim = Rim()
    rim.max_containers = 2
    rim.seconds = 600.0
    old = [rim.container(f"ta-{x}", "one") for x in range(2)]
    rim.functions["fu"].version = "two"
    for info in old:
        rim.drains.drain(info)
    assert rim.told == [("ta-1", 0.0)]


async def test_who_is_not_replaced_lingers_alone() -> None:
    rim = Rim()
    rim.drains.drain(rim.container("ta-1", "one"))
    assert rim.told == [("ta-1", 0.01)]
    # No edge leads there, or all of it is to end.
    rim.seconds = 0.0
    rim.drains.drain(rim.container("ta-2", "one"))
    gone = rim.container("ta-3", "one")
    rim.functions.clear()
    rim.seconds = 0.01
    rim.drains.drain(gone)
    assert rim.told[1:] == [("ta-2", 0.0), ("ta-3", 0.0)]
