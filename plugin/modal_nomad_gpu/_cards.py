"""What a node has: cards, MIG instances, what is wrong with them, and how much of them is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class BackendError(Exception):
    """The driver does not answer; the text says why."""


@dataclass(frozen=True)
class Instance:
    """A MIG instance: a part of a card that the hardware keeps apart.

    Attributes:
        uuid: the driver's id, ``MIG-...``.
        profile: its size as NVIDIA names it, such as ``1g.10gb``.
        memory: MiB.
        gpu_instance: the driver's number of it, by which errors name it.
        compute_instance: the same, within the GPU instance.
    """

    uuid: str
    profile: str
    memory: int
    gpu_instance: int = 0
    compute_instance: int = 0


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        uuid: the driver's id, ``GPU-...``.
        name: the product name.
        memory: MiB.
        power: the limit in W; None where the card does not say.
        bar1: MiB of it that the host can map.
        cores_clock: the highest, in MHz.
        memory_clock: the highest, in MHz.
        pci_bandwidth: MB/s.
        display_state: ``Enabled`` or ``Disabled``.
        persistence_mode: the same.
        pci_bus_id: where it sits.
        mig: its MIG instances; None when MIG is off.
    """

    uuid: str
    name: str
    memory: int
    power: int | None = None
    bar1: int | None = None
    cores_clock: int | None = None
    memory_clock: int | None = None
    pci_bandwidth: int | None = None
    display_state: str = "Disabled"
    persistence_mode: str = "Disabled"
    pci_bus_id: str = ""
    mig: tuple[Instance, ...] | None = None


@dataclass(frozen=True)
class Survey:
    """A look at all cards.

    Attributes:
        driver_version: the driver's.
        cards: those that answer.
        faults: what the driver says is wrong now, by the id of card or instance.
    """

    driver_version: str = ""
    cards: tuple[Card, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """An error that the driver reported: its XID, and the card (or instance) that it names."""

    uuid: str
    xid: int


@dataclass(frozen=True)
class Usage:
    """What a card or an instance does now; None for what it does not say."""

    power: int | None = None
    power_limit: int | None = None
    gpu: int | None = None
    memory_bandwidth: int | None = None
    encoder: int | None = None
    decoder: int | None = None
    temperature: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    bar1_used: int | None = None
    bar1_total: int | None = None
    ecc_l1: int | None = None
    ecc_l2: int | None = None
    ecc_memory: int | None = None


class Backend(Protocol):
    """Where cards come from: NVIDIA's driver, or a file that plays it. Used from several threads."""

    def survey(self) -> Survey:
        """Look at all cards. Raises BackendError when the driver does not answer."""

    def events(self, seconds: float) -> Sequence[Event]:
        """Wait at most so long for errors; may come back early with none when something changed."""

    def usage(self) -> Mapping[str, Usage]:
        """Say how much is used, by id. Raises BackendError when the driver does not answer."""

    def mps_ready(self, pipe_directory: str) -> bool:
        """Tell whether NVIDIA's MPS control daemon listens there."""
