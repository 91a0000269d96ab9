"""This machine's NVIDIA GPUs: who has which, and who waits for one."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modal_nomad.engines.base import EngineError

if TYPE_CHECKING:
    from modal_nomad.engines._local_container import LocalContainer

_QUERY = ("nvidia-smi", "--query-gpu=uuid,name", "--format=csv,noheader")
_QUERY_SECONDS = 20


@dataclass(frozen=True)
class LocalGPU:
    """One GPU: the driver's id and its product name."""

    uuid: str
    model: str


@dataclass(frozen=True)
class GPURequest:
    """What a job's ``device`` block asks for.

    Attributes:
        count: how many.
        patterns: regular expressions that the product name must match, all of them.
        preferences: regular expressions with their weights.
    """

    count: int
    patterns: tuple[str, ...] = ()
    preferences: tuple[tuple[str, int], ...] = ()

    def fits(self, gpu: LocalGPU) -> bool:
        """Tell whether a GPU will do."""
        return all(re.search(pattern, gpu.model) for pattern in self.patterns)

    def weight(self, gpu: LocalGPU) -> int:
        """Return how much a GPU is preferred."""
        return max((w for pattern, w in self.preferences if re.search(pattern, gpu.model)), default=0)


def gpu_request(resources: Mapping[str, Any]) -> GPURequest | None:
    """Read the GPUs of a task's ``Resources``. Raises EngineError for a device that is none."""
    devices = resources.get("Devices") or ()
    if not devices:
        return None
    if len(devices) > 1 or devices[0].get("Name") != "nvidia/gpu":
        names = ", ".join(str(device.get("Name")) for device in devices)
        raise EngineError(f"this machine's engine hands out one kind of device, 'nvidia/gpu', not {names}")
    block = devices[0]

    def patterns(key: str) -> list[tuple[str, int]]:
        return [(str(rule.get("RTarget")), int(rule.get("Weight") or 0)) for rule in block.get(key) or ()]

    constraints = tuple(pattern for pattern, _ in patterns("Constraints"))
    return GPURequest(int(block.get("Count") or 1), constraints, tuple(patterns("Affinities")))


class GPUs:
    """Hands out whole GPUs.

    Args:
        inventory: all there are.
    """

    def __init__(self, inventory: Sequence[LocalGPU]) -> None:
        self.inventory = tuple(inventory)
        self._holders: dict[str, str] = {}

    def impossible(self, request: GPURequest) -> str:
        """Say why a request can never be met here; empty when it can."""
        fitting = sum(1 for gpu in self.inventory if request.fits(gpu))
        if fitting >= request.count:
            return ""
        have = ", ".join(sorted(gpu.model for gpu in self.inventory)) or "no NVIDIA GPU"
        return (
            f"needs {request.count} GPU(s) that this machine does not have (it has {have}): ask for another "
            "kind, leave out gpu=, or send the app to a Nomad cluster (MODAL_SERVER_URL)"
        )

    def take(self, holder: str, request: GPURequest) -> list[LocalGPU] | None:
        """Give a holder its GPUs, the preferred ones that are free; None when too few are free."""
        free = [gpu for gpu in self.inventory if gpu.uuid not in self._holders and request.fits(gpu)]
        if len(free) < request.count:
            return None
        free.sort(key=request.weight, reverse=True)
        taken = free[: request.count]
        for gpu in taken:
            self._holders[gpu.uuid] = holder
        return taken

    def give_back(self, holder: str) -> bool:
        """Take a holder's GPUs back; True when it had any."""
        mine = [uuid for uuid, who in self._holders.items() if who == holder]
        for uuid in mine:
            del self._holders[uuid]
        return bool(mine)


def find_gpus() -> list[LocalGPU]:
    """Ask NVIDIA's driver for this machine's GPUs; none where there is no driver."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.partition(",") for line in done.stdout.splitlines() if "," in line]
    return [LocalGPU(uuid.strip(), model.strip()) for uuid, _, model in rows]


class GPUQueue:
    """Containers that want GPUs, in the order they came; a small one may overtake a large one.

    Args:
        wait: tells what a container waits for.
        start: goes on with a container that has its GPUs.
        refuse: ends a container that can never have them, and why.
    """

    def __init__(
        self,
        wait: Callable[[LocalContainer, str], None],
        start: Callable[[LocalContainer], None],
        refuse: Callable[[LocalContainer, str], None],
    ) -> None:
        self._wait = wait
        self._start = start
        self._refuse = refuse
        self._gpus: GPUs | None = None
        self._waiting: list[LocalContainer] = []

    async def place(self, container: LocalContainer) -> None:
        """Find a container's GPUs, now or when others give theirs back."""
        if self._gpus is None:
            found = GPUs(await asyncio.to_thread(find_gpus))
            # Another may have asked the driver meanwhile, and handed out some already.
            self._gpus = self._gpus or found
        assert container.plan.gpus is not None
        reason = self._gpus.impossible(container.plan.gpus)
        if reason:
            self._refuse(container, reason)
            return
        self._wait(container, "waits for a GPU that is free")
        self._waiting.append(container)
        self._hand_out()

    def leave(self, container: LocalContainer) -> None:
        """Forget a container that ended, and let the next ones have its GPUs."""
        if container in self._waiting:
            self._waiting.remove(container)
        if self._gpus is not None and self._gpus.give_back(container.request.container_id):
            self._hand_out()

    def _hand_out(self) -> None:
        assert self._gpus is not None
        for container in list(self._waiting):
            assert container.plan.gpus is not None
            taken = self._gpus.take(container.request.container_id, container.plan.gpus)
            if taken is not None:
                self._waiting.remove(container)
                container.gpus = tuple(gpu.uuid for gpu in taken)
                self._start(container)
