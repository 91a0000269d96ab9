"""One Queue as a pure state machine: requests and the time in, commands out, no store, no clock.

It knows items by number and size alone. A get takes items in two steps: it is *given* items, which are
leased to it from then on; only when it *takes* them are they gone. Items of a lease that is released, or
that runs out, go back to where they were. So whoever dies between the two steps takes nothing along. A get
that is interrupted in the very moment of taking puts its items back, to where they were too.

Gets wait in the order in which they came, and so do puts on a full partition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush

from modal_nomad.dispatcher.objects.queue_commands import (
    FOREVER,
    Accepted,
    Command,
    Dropped,
    Full,
    Given,
    Limits,
    Nothing,
    Seen,
)
from modal_nomad.dispatcher.objects.queue_partition import Lease, Partition, Wait
from modal_nomad.dispatcher.store.objects import Item


class QueueEngine:
    """The state of one Queue.

    Args:
        numbers: gives the next item's number; later ones are higher.
        limits: how much it holds.
    """

    def __init__(self, numbers: Callable[[], int], limits: Limits | None = None) -> None:
        self._numbers = numbers
        self._limits = limits or Limits()
        self._partitions: dict[str, Partition] = {}
        self._sizes: dict[int, int] = {}
        self._waits: dict[str, Wait] = {}
        self._leases: dict[str, Lease] = {}
        self._owners: dict[str, dict[str, None]] = {}
        self._timers: list[tuple[float, str, str]] = []
        self._out: list[Command] = []
        self._filled = 0
        self._changed: dict[str, None] = {}
        # When items expire that were taken of late, by number: who took them may put them back.
        self._taken: dict[int, float] = {}

    def load(self, items: Iterable[Item]) -> None:
        """Take over items of an earlier process, in the order of their numbers."""
        for item in items:
            partition = self._at(item.partition)
            partition.ready.append(item.number)
            self._sizes[item.number] = item.size
            partition.expires_at = item.expires_at
        for name, partition in self._partitions.items():
            self._remind(partition.expires_at, "partition", name)
            self._count(partition)

    # --- requests ---------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        owner: str,
        partition: str,
        sizes: Sequence[int],
        ttl: float,
        deadline: float,
        now: float,
    ) -> list[Command]:
        """Add items, all or none; wait for room until ``deadline``, which may have passed."""
        self._advance(now)
        wait = Wait(key, owner, partition, deadline, sizes=sizes, ttl=ttl)
        place = self._partitions.get(partition)
        if (place is None or not place.held()) and self._filled >= self._limits.partitions:
            self._out.append(Full(key, True))
        elif not (place is not None and place.puts and deadline > now) and self._fits(partition, sizes):
            self._accept(wait, now)
        elif deadline <= now or len(sizes) > self._limits.items:
            self._out.append(Full(key, False))
        else:
            self._wait(wait, self._at(partition).puts)
        return self._commands()

    def get(
        self, key: str, owner: str, partition: str, wanted: int, deadline: float, now: float
    ) -> list[Command]:
        """Ask for up to ``wanted`` items; wait for one until ``deadline``, which may have passed.

        The same ``key`` again is the same get: it keeps its place, or gets what it was given.
        """
        self._advance(now)
        lease = self._leases.get(key)
        if lease is not None:
            self._out.append(Given(key, tuple(sorted(lease.numbers)), False))
        elif key not in self._waits:
            place = self._partitions.get(partition)
            wait = Wait(key, owner, partition, deadline, wanted)
            if place is not None and place.ready:
                self._give(place, wait, now)
            elif deadline <= now:
                self._out.append(Nothing(key))
            else:
                self._wait(wait, self._at(partition).gets)
        return self._commands()

    def take_ready(self, partition: str, wanted: int, limit: int, now: float) -> tuple[list[int], bool]:
        """Remove the next items for good, for somebody who is there; ``done`` or ``restore`` follows.

        Gives their numbers, and whether only their size kept others out.

        Args:
            partition: where.
            wanted: at most so many.
            limit: one item of any size, or several of so many bytes.
            now: the time.
        """
        self._advance(now)
        place = self._partitions.get(partition)
        if place is None or not place.ready:
            return [], False
        numbers = place.lend(self._sizes, wanted, limit)
        place.leased.difference_update(numbers)
        place.taking.update(numbers)
        return numbers, bool(place.ready) and len(numbers) < wanted

    def look(
        self, key: str, owner: str, partition: str, after: int, wanted: int, deadline: float, now: float
    ) -> list[Command]:
        """Ask for items in place with numbers above ``after``; wait for one until ``deadline``."""
        self._advance(now)
        place = self._partitions.get(partition)
        wait = Wait(key, owner, partition, deadline, wanted, after)
        if not (place is not None and self._show(place, wait)):
            if deadline <= now:
                self._out.append(Nothing(key))
            else:
                self._wait(wait, self._at(partition).looks)
        return self._commands()

    def take(self, key: str, partition: str, numbers: Collection[int], now: float) -> list[int]:
        """Remove items that a get was given, for good; gives those that were its own to take.

        A lease that was lost, to a restart or to time, is no hindrance while nobody else has the items.
        ``done`` or ``restore`` follows, when it is known whether the store has removed them. The rest of
        the lease goes back.
        """
        self._advance(now)
        place = self._at(partition)
        lease = self._end_lease(key)
        mine = set(numbers)
        if lease is not None:
            taken = sorted(place.leased & lease.numbers & mine)
            place.leased.difference_update(taken)
            self._give_back(partition, lease.numbers - mine)
        else:
            taken = sorted(mine.intersection(place.ready))
            if taken:
                place.without(mine)
        place.taking.update(taken)
        self._note(partition)
        return taken

    def release(self, key: str, now: float) -> list[Command]:
        """End a get, a look or a put that nobody waits for; what it was given goes back."""
        self._advance(now)
        self._release(key)
        return self._pumped(now)

    def owner_left(self, owner: str, now: float) -> list[Command]:
        """Release everything of a client that is gone."""
        self._advance(now)
        keys = list(self._owners.get(owner, ()))
        # Its waits first: what its leases give back is not for them.
        for key in sorted(keys, key=lambda x: x in self._leases):
            self._release(key)
        return self._pumped(now)

    def clear(self, partition: str | None, now: float) -> list[int]:
        """Remove what is in a partition, or in all, what is leased and not yet taken included.

        Returns:
            The numbers. ``pump`` serves who waited for the room.
        """
        self._advance(now)
        names = list(self._partitions) if partition is None else [partition]
        return [number for name in names if name in self._partitions for number in self._empty(name)]

    def length(self, partition: str | None, now: float) -> int:
        """Count the items of a partition, or of all, that nobody was given."""
        self._advance(now)
        if partition is None:
            return sum(len(x.ready) for x in self._partitions.values())
        place = self._partitions.get(partition)
        return 0 if place is None else len(place.ready)

    # --- what became of it ------------------------------------------------------------------------

    def done(self, partition: str, numbers: Collection[int], now: float) -> list[Command]:
        """Note that taken items are off the store: there is room for others."""
        self._advance(now)
        place = self._at(partition)
        for number in numbers:
            if self._sizes.pop(number, None) is not None:
                self._taken[number] = place.expires_at
        while len(self._taken) > self._limits.items:
            del self._taken[next(iter(self._taken))]
        place.taking.difference_update(numbers)
        self._note(partition)
        return self._pumped(now)

    def put_back(self, partition: str, sizes: Mapping[int, int], ttl: float, now: float) -> dict[int, Item]:
        """Take back items of a get that was interrupted while it took them, full or not.

        Args:
            partition: where they were.
            sizes: of each item, by number.
            ttl: seconds to live for what was taken too long ago to be remembered, at the end then.
            now: the time.

        Returns:
            What each is from now on; without those that have expired. ``pump`` serves who waits for them.
        """
        self._advance(now)
        place = self._at(partition)
        items: dict[int, Item] = {}
        for old in sorted(sizes):
            until = self._taken.pop(old, None)
            number = old if until is not None else self._numbers()
            if place.held():
                until = place.expires_at
            elif until is None:
                until = now + ttl
            if until > now and old not in self._sizes:
                place.expires_at = until
                self._sizes[number] = sizes[old]
                place.insert([number])
                items[old] = Item(number, partition, sizes[old], until)
        if items:
            self._remind(place.expires_at, "partition", partition)
            self._show_all(place)
        self._note(partition)
        return items

    def restore(self, partition: str, numbers: Collection[int], now: float) -> list[Command]:
        """Put taken items back: the store failed to remove them."""
        self._advance(now)
        place = self._at(partition)
        back = place.taking.intersection(numbers)
        place.taking -= back
        place.leased |= back
        self._give_back(partition, back)
        return self._pumped(now)

    def forget(self, partition: str, numbers: Collection[int]) -> None:
        """Drop items that the store failed to keep."""
        gone = set(numbers)
        for number in gone:
            self._sizes.pop(number, None)
        place = self._partitions.get(partition)
        if place is not None:
            place.without(gone)
            place.leased -= gone
            place.taking -= gone
            self._note(partition)

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Command]:
        """Let time pass."""
        self._advance(now)
        return self._pumped(now)

    def next_wakeup(self) -> float | None:
        """When to send the next ``tick``; None when nothing waits for time."""
        while self._timers and not self._due(*self._timers[0]):
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _due(self, at: float, kind: str, key: str) -> bool:
        if kind == "partition":
            place = self._partitions.get(key)
            return place is not None and place.expires_at == at and place.held() > 0
        if kind == "lease":
            lease = self._leases.get(key)
            return lease is not None and lease.expires_at == at
        wait = self._waits.get(key)
        return wait is not None and wait.deadline == at

    def _advance(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            entry = heappop(self._timers)
            if not self._due(*entry):
                continue
            _, kind, key = entry
            if kind == "partition":
                self._out.append(Dropped(tuple(self._empty(key))))
            elif kind == "lease":
                self._release(key)
            else:
                self._expire(self._waits[key])
        # What came back by this is for those who wait already.
        self._pump(now)

    def _remind(self, at: float, kind: str, key: str) -> None:
        timers = self._timers
        heappush(timers, (at, kind, key))
        if len(timers) > 1000 + 4 * (len(self._waits) + len(self._leases) + len(self._partitions)):
            timers[:] = {x for x in timers if self._due(*x)}
            heapify(timers)

    def _expire(self, wait: Wait) -> None:
        self._forget_wait(wait.key)
        self._out.append(Full(wait.key, False) if wait.sizes else Nothing(wait.key))

    # --- below ------------------------------------------------------------------------------------

    def _commands(self) -> list[Command]:
        out, self._out = self._out, []
        return out

    def _pumped(self, now: float) -> list[Command]:
        self._pump(now)
        return self._commands()

    def pump(self, now: float) -> list[Command]:
        """Serve who waits, after items were taken or cleared."""
        self._advance(now)
        return self._pumped(now)

    def _pump(self, now: float) -> None:
        changed, self._changed = self._changed, {}
        for name in changed:
            place = self._partitions.get(name)
            if place is None:
                continue
            if place.puts or place.gets:
                self._serve(place, now)
            self._count(place)
            if place.idle():
                del self._partitions[name]

    def _note(self, name: str) -> None:
        """Have a partition looked at when what waits is served."""
        self._count(self._partitions[name])
        self._changed[name] = None

    def _count(self, place: Partition) -> None:
        filled = place.held() > 0
        self._filled += filled - place.counted
        place.counted = filled

    def _serve(self, place: Partition, now: float) -> None:
        while place.puts:
            wait = next(iter(place.puts.values()))
            if not self._fits(wait.partition, wait.sizes):
                break
            self._forget_wait(wait.key)
            self._accept(wait, now)
        self._serve_gets(place, now)

    def _serve_gets(self, place: Partition, now: float) -> None:
        while place.ready and place.gets:
            wait = next(iter(place.gets.values()))
            self._forget_wait(wait.key)
            self._give(place, wait, now)

    def _fits(self, partition: str, sizes: Sequence[int]) -> bool:
        place = self._partitions.get(partition)
        return (0 if place is None else place.held()) + len(sizes) <= self._limits.items

    def _accept(self, wait: Wait, now: float) -> None:
        place = self._at(wait.partition)
        place.expires_at = now + wait.ttl
        self._remind(place.expires_at, "partition", wait.partition)
        items = []
        for size in wait.sizes:
            number = self._numbers()
            self._sizes[number] = size
            place.ready.append(number)
            items.append(Item(number, wait.partition, size, place.expires_at))
        self._count(place)
        self._out.append(Accepted(wait.key, tuple(items)))
        self._show_all(place)
        self._serve_gets(place, now)

    def _give(self, place: Partition, wait: Wait, now: float) -> None:
        numbers = place.lend(self._sizes, wait.wanted, self._limits.batch_bytes)
        expires_at = now + self._limits.lease_seconds
        self._leases[wait.key] = Lease(wait.owner, wait.partition, set(numbers), expires_at)
        self._owners.setdefault(wait.owner, {})[wait.key] = None
        self._remind(expires_at, "lease", wait.key)
        more = bool(place.ready) and len(numbers) < wait.wanted
        self._out.append(Given(wait.key, tuple(numbers), more))

    def _show_all(self, place: Partition) -> None:
        for look in list(place.looks.values()):
            if self._show(place, look):
                self._forget_wait(look.key)

    def _show(self, place: Partition, wait: Wait) -> bool:
        numbers = place.after(wait.after or 0, self._sizes, wait.wanted, self._limits.batch_bytes)
        if numbers:
            self._out.append(Seen(wait.key, tuple(numbers)))
        return bool(numbers)

    def _at(self, name: str) -> Partition:
        return self._partitions.setdefault(name, Partition())

    def _wait(self, wait: Wait, among: dict[str, Wait]) -> None:
        among[wait.key] = self._waits[wait.key] = wait
        self._owners.setdefault(wait.owner, {})[wait.key] = None
        if wait.deadline < FOREVER:
            self._remind(wait.deadline, "wait", wait.key)

    def _forget_wait(self, key: str) -> None:
        wait = self._waits.pop(key)
        place = self._partitions[wait.partition]
        for among in (place.gets, place.looks, place.puts):
            among.pop(key, None)
        self._disown(wait.owner, key)
        self._note(wait.partition)

    def _disown(self, owner: str, key: str) -> None:
        keys = self._owners.get(owner)
        if keys is not None:
            keys.pop(key, None)
            if not keys:
                del self._owners[owner]

    def _end_lease(self, key: str) -> Lease | None:
        lease = self._leases.pop(key, None)
        if lease is not None:
            self._disown(lease.owner, key)
        return lease

    def _release(self, key: str) -> None:
        wait = self._waits.get(key)
        if wait is not None:
            self._expire(wait)
        lease = self._end_lease(key)
        if lease is not None:
            self._give_back(lease.partition, lease.numbers)

    def _give_back(self, partition: str, numbers: Collection[int]) -> None:
        place = self._at(partition)
        # What was cleared meanwhile is not among the leased ones any more.
        back = sorted(place.leased.intersection(numbers))
        place.leased.difference_update(back)
        place.insert(back)
        self._note(partition)

    def _empty(self, name: str) -> list[int]:
        place = self._partitions[name]
        numbers = [*place.ready, *place.leased]
        place.ready.clear()
        place.leased.clear()
        for number in numbers:
            self._sizes.pop(number, None)
        self._note(name)
        return numbers
