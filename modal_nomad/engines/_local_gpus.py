"""This machine's NVIDIA GPUs: who has which, and who waits for one."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modal_nomad.engines.base import EngineError
from modal_nomad.wire.gpus import SLICE, WHOLE

if TYPE_CHECKING:
    from modal_nomad.engines._local_container import LocalContainer

_QUERY = ("nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 20
_WHOLE_CARD = 1.0
# Quarters and thirds add up to a whole card only nearly.
_NEARLY = 1e-6


@dataclass(frozen=True)
class LocalGPU:
    """One GPU: the driver's id, its product name, and its memory in MiB where it is known."""

    uuid: str
    model: str
    memory: int = 0


@dataclass(frozen=True)
class GPURequest:
    """What a job's ``device`` block asks for.

    Attributes:
        count: how many.
        patterns: regular expressions that the product name must match, all of them.
        preferences: regular expressions with their weights.
        share: the least part of one card that will do; 0 for whole cards.
        memory: the same as MiB; 0 for whole cards.
    """

    count: int
    patterns: tuple[str, ...] = ()
    preferences: tuple[tuple[str, int], ...] = ()
    share: float = 0.0
    memory: int = 0

    def fits(self, gpu: LocalGPU) -> bool:
        """Tell whether a GPU will do."""
        return self.part_of(gpu) <= _WHOLE_CARD and all(re.search(p, gpu.model) for p in self.patterns)

    def weight(self, gpu: LocalGPU) -> int:
        """Return how much a GPU is preferred."""
        return max((w for pattern, w in self.preferences if re.search(pattern, gpu.model)), default=0)

    def part_of(self, gpu: LocalGPU) -> float:
        """Return how much of a card is asked for: 1 is all of it, more is more than there is."""
        if self.memory:
            return self.memory / gpu.memory if gpu.memory else math.inf
        return self.share or _WHOLE_CARD


@dataclass(frozen=True)
class Grant:
    """What a container was given of one GPU: the part of it, 1 for all."""

    gpu: LocalGPU
    part: float = _WHOLE_CARD


def gpu_request(resources: Mapping[str, Any]) -> GPURequest | None:
    """Read the GPUs of a task's ``Resources``. Raises EngineError for a device that is none."""
    devices = resources.get("Devices") or ()
    if not devices:
        return None
    if len(devices) > 1 or devices[0].get("Name") not in (WHOLE, SLICE):
        names = ", ".join(str(device.get("Name")) for device in devices)
        raise EngineError(
            f"this machine's engine hands out one kind of device, {WHOLE!r} or {SLICE!r}, not {names}"
        )
    block = devices[0]
    models = [rule for rule in block.get("Constraints") or () if rule.get("Operand") == "regexp"]
    liked = [rule for rule in block.get("Affinities") or () if rule.get("Operand") == "regexp"]
    sizes = {
        str(rule.get("LTarget")): float(str(rule.get("RTarget")).removesuffix(" MiB"))
        for rule in block.get("Constraints") or ()
        if rule.get("Operand") == ">="
    }
    return GPURequest(
        int(block.get("Count") or 1),
        tuple(str(rule.get("RTarget")) for rule in models),
        tuple((str(rule.get("RTarget")), int(rule.get("Weight") or 0)) for rule in liked),
        share=sizes.get("${device.attr.share}", 0.0),
        memory=int(sizes.get("${device.attr.memory}", 0)),
    )


def gpu_environment(grants: Sequence[Grant]) -> dict[str, str]:
    """Return what a container with these GPUs has in its environment: which they are, and its part of one.

    NVIDIA's MPS holds the container to its part, where its control daemon runs.
    """
    if not grants:
        return {}
    visible = ",".join(grant.gpu.uuid for grant in grants)
    found = {"CUDA_VISIBLE_DEVICES": visible, "NVIDIA_VISIBLE_DEVICES": visible}
    for grant in grants:
        if grant.part < _WHOLE_CARD:
            found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{grant.part * 100:.4g}"
            if grant.gpu.memory:
                found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={int(grant.gpu.memory * grant.part)}M"
    return found


class GPUs:
    """Hands out whole GPUs, and parts of them; a card of which anybody has a part is nobody's whole.

    Args:
        inventory: all there are.
    """

    def __init__(self, inventory: Sequence[LocalGPU]) -> None:
        self.inventory = tuple(inventory)
        self._holders: dict[str, dict[str, float]] = {gpu.uuid: {} for gpu in inventory}

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

    def take(self, holder: str, request: GPURequest) -> list[Grant] | None:
        """Give a holder its GPUs, the preferred ones that are free; None when too few are free."""
        free = [
            gpu
            for gpu in self.inventory
            if request.fits(gpu) and self._used(gpu) + request.part_of(gpu) <= _WHOLE_CARD + _NEARLY
        ]
        if len(free) < request.count:
            return None
        # The fullest card first, so that others stay whole.
        free.sort(key=lambda gpu: (request.weight(gpu), self._used(gpu)), reverse=True)
        taken = [Grant(gpu, request.part_of(gpu)) for gpu in free[: request.count]]
        for grant in taken:
            self._holders[grant.gpu.uuid][holder] = grant.part
        return taken

    def give_back(self, holder: str) -> bool:
        """Take a holder's GPUs back; True when it had any."""
        mine = [holders for holders in self._holders.values() if holder in holders]
        for holders in mine:
            del holders[holder]
        return bool(mine)

    def _used(self, gpu: LocalGPU) -> float:
        return sum(self._holders[gpu.uuid].values())


def find_gpus() -> list[LocalGPU]:
    """Ask NVIDIA's driver for this machine's GPUs; none where there is no driver."""
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if "," in line]
    # A card that has its memory from the host says so in words.
    return [
        LocalGPU(uuid, model, int(rest[0]) if rest and rest[0].isdecimal() else 0)
        for uuid, model, *rest in rows
    ]


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
                container.gpus = tuple(taken)
                self._start(container)
