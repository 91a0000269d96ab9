"""From cards to Nomad's devices: whole cards, MIG instances and slices; pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from modal_nomad_gpu._cards import Card
from modal_nomad_gpu._config import MOST_SLICES, Config, Share
from modal_nomad_gpu._health import Checked, instance_fault, without

VENDOR = "nvidia"
WHOLE = "gpu"
# A type of its own: a job that asks for `nvidia/gpu` or `gpu` never gets a part of a card.
SLICE = "gpu-slice"


class ReserveError(ValueError):
    """These devices cannot be had together, or at all; the text says why."""


@dataclass(frozen=True)
class Device:
    """One schedulable device.

    Attributes:
        id: what Nomad knows it by.
        visible: what CUDA knows it by.
        card: the card that it is or is part of.
        fault: why it may not be used; empty when it may.
        pci_bus_id: where it sits.
        memory: MiB of a slice, 0 for what has all its memory to itself.
        percentage: of a slice: how many of a hundred processors of the card.
    """

    id: str
    visible: str
    card: str
    fault: str = ""
    pci_bus_id: str = ""
    memory: int = 0
    percentage: float = 0.0


@dataclass
class Group:
    """Devices with one type, name and set of attributes."""

    type: str
    name: str
    attributes: dict[str, Any]
    devices: list[Device] = field(default_factory=list)


def inventory(checked: Checked, config: Config, *, mps: bool) -> list[Group]:
    """Return all devices in Nomad's groups, in a stable order.

    Args:
        checked: the cards and their health.
        config: what is left out, and what is cut into slices.
        mps: whether the daemon that holds slices to their share runs.
    """
    groups: dict[tuple[str, str], Group] = {}
    checked = without(checked, config.ignored_gpu_ids)
    for card in checked.cards:
        for kind, name, attributes, devices in _parts(card, checked, config, mps):
            attributes["driver_version"] = checked.driver_version
            group = groups.setdefault((kind, name), Group(kind, name, attributes))
            group.devices.extend(devices)
    for group in groups.values():
        # Nomad takes nodes with equal attributes for equal: without this number it would not look again
        # at a node where a card got well, nor at one that has more cards than another which had too few.
        group.attributes["healthy"] = sum(1 for device in group.devices if not device.fault)
    return [groups[key] for key in sorted(groups)]


def _parts(
    card: Card, checked: Checked, config: Config, mps: bool
) -> Iterator[tuple[str, str, dict[str, Any], list[Device]]]:
    fault = checked.faults.get(card.uuid, "")
    if card.mig is not None:
        kind = SLICE if config.mig_as_slices else WHOLE
        for instance in card.mig:
            attributes = {
                **_attributes(card),
                "memory": (instance.memory, "MiB"),
                "card_memory": (card.memory, "MiB"),
                "mig_profile": instance.profile,
                "share": _share_of(instance.memory, card.memory),
            }
            device = Device(
                id=instance.uuid,
                visible=instance.uuid,
                card=card.uuid,
                fault=instance_fault(checked, card, instance.uuid),
                pci_bus_id=card.pci_bus_id,
            )
            yield kind, f"{card.name} MIG {instance.profile}", attributes, [device]
        return
    share = next((share for share in config.share if share.covers(card.uuid, card.name)), None)
    if share is None:
        device = Device(card.uuid, card.uuid, card.uuid, fault, card.pci_bus_id)
        yield WHOLE, card.name, _attributes(card), [device]
        return
    count, memory = _slices(share, card)
    if config.require_mps and not mps:
        fault = fault or f"no MPS control daemon listens in {config.mps_pipe_directory}"
    attributes = {
        **_attributes(card),
        "memory": (memory, "MiB"),
        "card_memory": (card.memory, "MiB"),
        "share": _share_of(memory, card.memory) if share.slice_memory else round(1 / count, 4),
        "slices": count,
        "mps": mps,
    }
    percentage = 10_000 // count / 100
    devices = [
        Device(f"{card.uuid}-slice-{n}", card.uuid, card.uuid, fault, card.pci_bus_id, memory, percentage)
        for n in range(1, count + 1)
    ]
    yield SLICE, f"{card.name} slice {memory}MiB", attributes, devices


def _slices(share: Share, card: Card) -> tuple[int, int]:
    if share.slices:
        return share.slices, card.memory // share.slices
    # A card smaller than one slice is one slice; so is one whose memory cannot be read.
    memory = min(share.slice_memory, card.memory) or share.slice_memory
    return min(MOST_SLICES, max(1, card.memory // memory)), memory


def _share_of(memory: int, whole: int) -> float:
    return round(memory / whole, 4) if whole else 0.0


def _attributes(card: Card) -> dict[str, Any]:
    """Return a card's attributes under the names that HashiCorp's plugin gives them."""
    values: dict[str, Any] = {
        "memory": (card.memory, "MiB"),
        "power": (card.power, "W"),
        "bar1": (card.bar1, "MiB"),
        "cores_clock": (card.cores_clock, "MHz"),
        "memory_clock": (card.memory_clock, "MHz"),
        "pci_bandwidth": (card.pci_bandwidth, "MB/s"),
        "display_state": card.display_state,
        "persistence_mode": card.persistence_mode,
    }
    return {k: v for k, v in values.items() if not (isinstance(v, tuple) and v[0] is None)}


def reservation(
    groups: Sequence[Group], ids: Sequence[str], config: Config, *, mps: bool
) -> tuple[dict[str, str], list[str]]:
    """Return what a task with these devices gets: its environment, and directories of the host.

    Raises:
        ReserveError: a device is not known or not healthy, or several slices were asked for.
    """
    known = {device.id: device for group in groups for device in group.devices}
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise ReserveError(f"unknown devices: {', '.join(unknown)}; they were here when the task was placed")
    devices = [known[name] for name in ids]
    faulty = [f"{device.id}: {device.fault}" for device in devices if device.fault]
    if faulty:
        raise ReserveError(f"not healthy: {'; '.join(faulty)}")
    slices = [device for device in devices if device.memory]
    if slices and len(devices) > 1:
        raise ReserveError("slices do not add up to a larger one: ask for one a task, of a larger share")
    visible = ",".join(device.visible for device in devices)
    # Container runtimes read the one, CUDA itself the other, as under `exec` and `raw_exec`.
    environment = {"NVIDIA_VISIBLE_DEVICES": visible, "CUDA_VISIBLE_DEVICES": visible}
    mounts: list[str] = []
    for part in slices:
        environment["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={part.memory}M"
        environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{part.percentage:g}"
        environment["CUDA_MPS_PIPE_DIRECTORY"] = config.mps_pipe_directory
        if mps:
            mounts.append(config.mps_pipe_directory)
    return environment, mounts
