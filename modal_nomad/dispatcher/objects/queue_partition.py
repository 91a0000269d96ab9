"""One partition of a Queue: its items in the order of their numbers, and who waits for what of it."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from modal_nomad.dispatcher.objects.queue_commands import FOREVER


@dataclass
class Wait:
    """A request that waits: a get, a look or a put.

    Attributes:
        key: the request's.
        owner: the client it comes from.
        partition: where it waits.
        deadline: until when, on the engine's clock.
        wanted: of a get or a look: how many items.
        after: of a look: for items above this number.
        sizes: of a put: its items' bytes.
        ttl: of a put: seconds that the partition lives after it.
    """

    key: str
    owner: str
    partition: str
    deadline: float
    wanted: int = 0
    after: int | None = None
    sizes: Sequence[int] = ()
    ttl: float = 0.0


@dataclass
class Lease:
    """Items that a get was given and has not taken yet."""

    owner: str
    partition: str
    numbers: set[int]
    expires_at: float


@dataclass
class Partition:
    """Items and waits of one partition.

    Attributes:
        ready: items that nobody was given.
        leased: items that were given.
        taking: items that were taken, but are not off the disk yet: they take up room until then.
        gets: who waits for items, in the order in which they came; ``looks`` and ``puts`` alike.
        expires_at: when all of it goes.
        counted: whether it counts among those with anything in them.
    """

    ready: deque[int] = field(default_factory=deque)
    leased: set[int] = field(default_factory=set)
    taking: set[int] = field(default_factory=set)
    gets: dict[str, Wait] = field(default_factory=dict)
    looks: dict[str, Wait] = field(default_factory=dict)
    puts: dict[str, Wait] = field(default_factory=dict)
    expires_at: float = FOREVER
    counted: bool = False

    def held(self) -> int:
        """Count what takes up room."""
        return len(self.ready) + len(self.leased) + len(self.taking)

    def idle(self) -> bool:
        """Tell whether there is nothing to remember of it."""
        return not (self.held() or self.gets or self.looks or self.puts)

    def without(self, numbers: Collection[int]) -> None:
        """Take items out from among those that nobody was given."""
        self.ready = deque(x for x in self.ready if x not in numbers)

    def insert(self, numbers: Sequence[int]) -> None:
        """Put items, sorted, in the places that their numbers say."""
        if not numbers:
            return
        if not self.ready or numbers[-1] < self.ready[0]:
            self.ready.extendleft(reversed(numbers))
        else:
            for number in numbers:
                bisect.insort(self.ready, number)

    def lend(self, sizes: Mapping[int, int], wanted: int, limit: int) -> list[int]:
        """Lease the next items: up to ``wanted``, and one of any size or several of ``limit`` bytes."""
        numbers: list[int] = []
        size = 0
        while self.ready and len(numbers) < wanted:
            size += sizes[self.ready[0]]
            if numbers and size > limit:
                break
            numbers.append(self.ready.popleft())
        self.leased.update(numbers)
        return numbers

    def after(self, number: int, sizes: Mapping[int, int], wanted: int, limit: int) -> list[int]:
        """Return items above a number, as many as ``lend`` would lend."""
        numbers: list[int] = []
        size = 0
        for one in self.ready:
            if one > number:
                size += sizes[one]
                if numbers and (size > limit or len(numbers) >= wanted):
                    break
                numbers.append(one)
        return numbers
