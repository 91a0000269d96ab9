"""What a Queue's engine tells those who carry it out, and how much a Queue holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from modal_nomad.dispatcher.store.objects import Item

FOREVER = float("inf")


@dataclass(frozen=True)
class Limits:
    """How much a Queue holds.

    Attributes:
        partitions: partitions with anything in them.
        items: items of one partition, leased ones included.
        batch_bytes: bytes given to one get; one item is given whatever its size.
        lease_seconds: a get that was given items has this long to take them.
    """

    partitions: int = 100_000
    items: int = 5_000
    batch_bytes: int = 8 << 20
    lease_seconds: float = 60.0


class Given(NamedTuple):
    """A get is given items; ``more`` says that only their size kept others out."""

    key: str
    numbers: tuple[int, ...]
    more: bool


class Seen(NamedTuple):
    """A look at items in place found these."""

    key: str
    numbers: tuple[int, ...]


class Nothing(NamedTuple):
    """A get or a look ends without an item."""

    key: str


class Accepted(NamedTuple):
    """A put is in: its items have these numbers, and all of their partition expires then."""

    key: str
    items: tuple[Item, ...]


class Full(NamedTuple):
    """A put ends without having been accepted. ``partitions``: there are too many of these."""

    key: str
    partitions: bool


class Dropped(NamedTuple):
    """Items have expired."""

    numbers: tuple[int, ...]


Command: TypeAlias = "Given | Seen | Nothing | Accepted | Full | Dropped"
