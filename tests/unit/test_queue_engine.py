"""The engine of a Queue: by example, then by a model with kills, partitions, time and clients that go."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modal_nomad.dispatcher.objects.queue_commands import (
    FOREVER,
    Accepted,
    Dropped,
    Full,
    Given,
    Limits,
    Nothing,
    Seen,
)
from modal_nomad.dispatcher.objects.queue_engine import QueueEngine
from modal_nomad.dispatcher.store.objects import Item

SMALL = Limits(partitions=3, items=4, batch_bytes=25, lease_seconds=30.0)
DAY = 86400.0


@pytest.fixture
def engine() -> QueueEngine:
    return QueueEngine(itertools.count(1).__next__, SMALL)


def put(engine: QueueEngine, count: int = 1, *, key: str = "p", now: float = 0.0, **more: Any) -> list[Any]:
    given = {"owner": "o", "partition": "", "ttl": DAY, "deadline": now, **more}
    return engine.put(key, sizes=[10] * count, now=now, **given)


def get(engine: QueueEngine, key: str, wanted: int = 1, **more: Any) -> list[Any]:
    given = {"owner": "o", "partition": "", "deadline": FOREVER, "now": 0.0, **more}
    return engine.get(key, wanted=wanted, **given)


def test_gets_are_served_in_the_order_in_which_they_came(engine: QueueEngine) -> None:
    assert get(engine, "a") == get(engine, "b") == get(engine, "a") == []
    (accepted, first, second) = put(engine, 3)
    assert [x.number for x in accepted.items] == [1, 2, 3]
    assert (first, second) == (Given("a", (1,), False), Given("b", (2,), False))
    assert get(engine, "b") == [second] and engine.length("", 0.0) == 1


def test_what_a_client_that_left_was_given_goes_to_the_head(engine: QueueEngine) -> None:
    put(engine, 3)
    get(engine, "a", 2, owner="gone")
    get(engine, "b", owner="other")
    get(engine, "c", owner="gone")
    assert get(engine, "d", 5, owner="stays") == []
    assert engine.owner_left("gone", 1.0) == [Nothing("c"), Given("d", (1, 2), False)]
    assert engine.take("a", "", [1, 2], 1.0) == []
    assert engine.take("d", "", [1, 2], 1.0) == [1, 2]
    assert engine.take("b", "", [3], 1.0) == [3]


def test_a_lease_that_a_restart_lost_is_no_hindrance_while_the_items_are_there() -> None:
    engine = QueueEngine(itertools.count(10).__next__, SMALL)
    engine.load([Item(n, "", 10, DAY) for n in (1, 2, 3)])
    assert engine.take("before", "", [2], 0.0) == [2]
    assert get(engine, "a") == [Given("a", (1,), False)]
    assert engine.take("before", "", [1], 0.0) == []


def test_a_lease_runs_out(engine: QueueEngine) -> None:
    put(engine)
    get(engine, "a")
    get(engine, "b")
    assert engine.next_wakeup() == 30.0
    assert engine.tick(30.0) == [Given("b", (1,), False)]


def test_a_get_that_waited_long_enough(engine: QueueEngine) -> None:
    assert get(engine, "now", deadline=0.0) == [Nothing("now")]
    get(engine, "a", deadline=5.0)
    assert engine.tick(4.9) == [] and engine.next_wakeup() == 5.0
    assert engine.tick(5.0) == [Nothing("a")] and engine.next_wakeup() is None


def test_a_full_partition_makes_puts_wait_in_their_order(engine: QueueEngine) -> None:
    put(engine, 4)
    assert put(engine, key="no") == [Full("no", False)]
    assert put(engine, 2, key="a", deadline=FOREVER) == put(engine, 1, key="b", deadline=9.0) == []
    get(engine, "g", 1)
    assert engine.take("g", "", [1], 1.0) == [1]
    assert put(engine, key="early", now=1.0) == [Full("early", False)]
    assert engine.done("", [1], 1.0) == []
    # Room for b, but a is first.
    assert isinstance(put(engine, key="quick", now=1.0)[0], Accepted)
    assert engine.tick(9.0) == [Full("b", False)]
    assert engine.clear("", 9.5) == [2, 3, 4, 5]
    (accepted,) = engine.pump(9.5)
    assert accepted.key == "a" and engine.length("", 9.5) == 2
    assert put(engine, 5, key="never", deadline=FOREVER, now=9.5) == [Full("never", False)]


def test_too_many_partitions(engine: QueueEngine) -> None:
    for name in "abc":
        put(engine, partition=name)
    assert put(engine, partition="d", deadline=FOREVER) == [Full("p", True)]
    engine.clear("a", 0.0)
    assert isinstance(put(engine, partition="d")[0], Accepted)
    assert put(engine, partition="a") == [Full("p", True)]


def test_a_partition_expires_as_the_last_put_into_it_said(engine: QueueEngine) -> None:
    put(engine, ttl=10.0)
    put(engine, ttl=20.0, now=5.0)
    get(engine, "held", now=6.0)
    assert engine.tick(24.9) == [] and engine.length("", 24.9) == 1
    assert engine.tick(25.0) == [Dropped((2, 1))]
    assert engine.take("held", "", [1], 25.0) == []
    put(engine, ttl=20.0, now=30.0)
    put(engine, ttl=1.0, now=31.0)
    assert engine.tick(32.0) == [Dropped((3, 4))]


def test_bytes_bound_what_a_get_is_given(engine: QueueEngine) -> None:
    put(engine, 4)
    assert get(engine, "a", 4) == [Given("a", (1, 2), True)]
    assert get(engine, "b", 2) == [Given("b", (3, 4), False)]
    engine.put("p", "o", "big", [99, 1], DAY, 0.0, 0.0)
    assert engine.get("c", "o", "big", 2, 0.0, 0.0) == [Given("c", (5,), True)]


def test_what_is_there_is_taken_at_once(engine: QueueEngine) -> None:
    assert engine.take_ready("", 1, 25, 0.0) == ([], False)
    put(engine, 4)
    assert engine.take_ready("", 3, 25, 0.0) == ([1, 2], True)
    # They take up room until they are off the disk.
    assert put(engine, 1, key="q") == [Full("q", False)]
    engine.restore("", [2], 0.0)
    engine.done("", [1], 0.0)
    assert engine.take_ready("", 9, 5, 0.0) == ([2], True)
    assert engine.take_ready("", 2, 25, 0.0) == ([3, 4], False)
    engine.done("", [2, 3, 4], 0.0)
    assert engine.length("", 0.0) == 0 and engine.take_ready("", 1, 25, 0.0) == ([], False)


def test_looks_leave_items_in_place(engine: QueueEngine) -> None:
    put(engine, 2)
    assert engine.look("l", "o", "", 0, 10, 0.0, 0.0) == [Seen("l", (1, 2))]
    assert engine.look("l", "o", "", 2, 10, 0.0, 0.0) == [Nothing("l")]
    assert engine.look("l", "o", "", 2, 10, 9.0, 0.0) == []
    get(engine, "g", deadline=0.0)
    assert engine.release("g", 0.0) == []
    assert put(engine)[1] == Seen("l", (3,))


def test_what_the_store_failed_to_keep_or_to_remove(engine: QueueEngine) -> None:
    put(engine, 2)
    engine.forget("", [1])
    assert get(engine, "a") == [Given("a", (2,), False)]
    assert engine.take("a", "", [2], 0.0) == [2]
    get(engine, "b")
    assert engine.restore("", [2, 1], 0.0) == [Given("b", (2,), False)]
    assert engine.take("b", "", [2], 0.0) == [2]
    assert engine.done("", [2], 0.0) == []
    assert engine.restore("", [2], 0.0) == [] and engine.length(None, 0.0) == 0


def take(engine: QueueEngine, key: str, numbers: list[int], now: float = 0.0) -> None:
    assert engine.take(key, "", numbers, now) == numbers
    assert engine.done("", numbers, now) == []


def test_what_an_interrupted_get_puts_back_is_where_it_was(engine: QueueEngine) -> None:
    put(engine, 4)
    get(engine, "a", 2)
    take(engine, "a", [1, 2])
    put(engine, 2)
    # Full, but what was there before has its place.
    back = engine.put_back("", {2: 10, 1: 10}, DAY, 1.0)
    assert {old: item.number for old, item in back.items()} == {1: 1, 2: 2}
    assert engine.pump(1.0) == [] and engine.length("", 1.0) == 6
    assert get(engine, "b", 2, now=1.0) == [Given("b", (1, 2), False)]
    # Once only.
    assert [x.number for x in engine.put_back("", {1: 10}, DAY, 1.0).values()] == []


def test_what_is_put_back_is_for_who_waits(engine: QueueEngine) -> None:
    put(engine)
    get(engine, "a")
    take(engine, "a", [1])
    get(engine, "b")
    engine.look("l", "o", "", 0, 10, 9.0, 0.0)
    assert engine.put_back("", {1: 10}, DAY, 1.0) == {1: Item(1, "", 10, DAY)}
    assert engine.pump(1.0) == [Seen("l", (1,)), Given("b", (1,), False)]


def test_what_is_put_back_expires_as_it_would_have(engine: QueueEngine) -> None:
    put(engine, 2, ttl=10.0)
    get(engine, "a", 2)
    take(engine, "a", [1, 2])
    assert engine.put_back("", {1: 10}, DAY, 9.0) == {1: Item(1, "", 10, 10.0)}
    assert engine.tick(10.0) == [Dropped((1,))]
    assert engine.put_back("", {2: 10}, DAY, 10.0) == {} and engine.pump(10.0) == []
    assert not engine._partitions


def test_what_was_taken_long_ago_is_put_back_at_the_end(engine: QueueEngine) -> None:
    for number in range(1, 7):
        put(engine)
        get(engine, f"g{number}")
        take(engine, f"g{number}", [number])
    put(engine)
    assert engine.put_back("", {1: 10}, DAY, 0.0) == {1: Item(8, "", 10, DAY)}
    assert engine.put_back("", {6: 10}, DAY, 0.0) == {6: Item(6, "", 10, DAY)}
    assert get(engine, "all", 9) == [Given("all", (6, 7), True)]


def test_old_reminders_do_not_pile_up(engine: QueueEngine) -> None:
    for number in range(20_000):
        put(engine, now=number / 100)
        get(engine, f"g{number}", now=number / 100)
        engine.done("", engine.take(f"g{number}", "", [number + 1], number / 100), number / 100)
    assert len(engine._timers) < 3_000 and not engine._sizes and not engine._partitions


class QueueMachine(RuleBasedStateMachine):
    """Clients that put, get, take, wait, leave; a dispatcher that is killed; a store that keeps its word."""

    @initialize()
    def begin(self) -> None:
        self.numbers = itertools.count(1)
        self.keys = itertools.count(1)
        self.now = 0.0
        self.store: dict[int, Item] = {}
        self.taken: list[int] = []
        self.were: dict[int, str] = {}
        # What each get was given by its last answer, as its client has it in hand.
        self.hand: dict[str, tuple[str, str, tuple[int, ...]]] = {}
        self.waiting: dict[str, tuple[str, str, str]] = {}
        self.restart()

    def restart(self) -> None:
        self.engine = QueueEngine(self.numbers.__next__, SMALL)
        self.engine.load(sorted(self.store.values(), key=lambda x: x.number))
        self.waiting.clear()
        self.carry(self.engine.tick(self.now))

    def carry(self, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Dropped):
                for number in command.numbers:
                    del self.store[number]
                continue
            kind, owner, partition = self.waiting.pop(command.key)
            if isinstance(command, Accepted):
                assert kind == "put"
                for item in command.items:
                    assert item.partition == partition and item.number not in self.store
                    # The newest item's word counts for all of its partition.
                    self.store[item.number] = item
                assert sum(x.partition == partition for x in self.store.values()) <= SMALL.items
            elif isinstance(command, Given):
                assert kind == "get" and command.numbers
                for number in command.numbers:
                    assert self.store[number].partition == partition
                self.hand[command.key] = (owner, partition, command.numbers)
            elif isinstance(command, Full):
                assert kind == "put"

    owners = st.sampled_from(["one", "two", "three"])
    partitions = st.sampled_from(["", "a", "b", "c"])
    waits = st.sampled_from([0.0, 5.0, FOREVER])

    ttls = st.sampled_from([7.0, DAY])

    @rule(owner=owners, partition=partitions, count=st.integers(1, 5), wait=waits, ttl=ttls)
    def put(self, owner: str, partition: str, count: int, wait: float, ttl: float) -> None:
        key = f"p{next(self.keys)}"
        self.waiting[key] = ("put", owner, partition)
        self.carry(self.engine.put(key, owner, partition, [10] * count, ttl, self.now + wait, self.now))

    @rule(owner=owners, partition=partitions, wanted=st.integers(1, 3), wait=waits)
    def get(self, owner: str, partition: str, wanted: int, wait: float) -> None:
        key = f"g{next(self.keys)}"
        self.waiting[key] = ("get", owner, partition)
        self.carry(self.engine.get(key, owner, partition, wanted, self.now + wait, self.now))

    @rule(partition=partitions, wanted=st.integers(1, 3), fails=st.booleans())
    def take_ready(self, partition: str, wanted: int, fails: bool) -> None:
        numbers, more = self.engine.take_ready(partition, wanted, 25, self.now)
        left = [n for n, x in self.store.items() if x.partition == partition and n not in numbers]
        assert not more or left
        if fails:
            self.carry(self.engine.restore(partition, numbers, self.now))
            return
        for number in numbers:
            assert self.store.pop(number).partition == partition and number not in self.taken
            self.taken.append(number)
            self.were[number] = partition
        self.carry(self.engine.done(partition, numbers, self.now))

    @rule(choice=st.randoms(use_true_random=False), fails=st.booleans())
    def take(self, choice: Any, fails: bool) -> None:
        if not self.hand:
            return
        key = choice.choice(sorted(self.hand))
        _, partition, numbers = self.hand.pop(key)
        some = numbers[: choice.randint(1, len(numbers))]
        mine = self.engine.take(key, partition, some, self.now)
        assert set(mine) <= set(some)
        if fails:
            self.carry(self.engine.restore(partition, mine, self.now))
            return
        for number in mine:
            self.store.pop(number)
            assert number not in self.taken
            self.taken.append(number)
            self.were[number] = partition
        self.carry(self.engine.done(partition, mine, self.now))

    @rule(choice=st.randoms(use_true_random=False))
    def put_back(self, choice: Any) -> None:
        if self.taken:
            number = self.taken.pop(choice.randrange(len(self.taken)))
            partition = self.were.pop(number)
            for item in self.engine.put_back(partition, {number: 10}, DAY, self.now).values():
                assert item.partition == partition and item.number not in self.store
                self.store[item.number] = item
            self.carry(self.engine.pump(self.now))

    @rule(choice=st.randoms(use_true_random=False))
    def release(self, choice: Any) -> None:
        keys = sorted([*self.hand, *self.waiting])
        if keys:
            key = choice.choice(keys)
            self.hand.pop(key, None)
            self.carry(self.engine.release(key, self.now))

    @rule(owner=owners)
    def leave(self, owner: str) -> None:
        # Its hands are not empty: it may come back and try to take what it was given.
        self.carry(self.engine.owner_left(owner, self.now))
        assert all(x[1] != owner for x in self.waiting.values())

    @rule(partition=st.none() | partitions)
    def clear(self, partition: str | None) -> None:
        for number in self.engine.clear(partition, self.now):
            del self.store[number]
        self.carry(self.engine.pump(self.now))

    @rule(seconds=st.sampled_from([0.5, 5.0, 31.0, DAY]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.carry(self.engine.tick(self.now))

    @rule()
    def kill(self) -> None:
        self.restart()

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        for place in engine._partitions.values():
            assert not (place.ready and place.gets)
            assert list(place.ready) == sorted(place.ready)
            if place.puts:
                first = next(iter(place.puts.values()))
                assert place.held() + len(first.sizes) > SMALL.items
        held = {n for p in engine._partitions.values() for n in (*p.ready, *p.leased)}
        assert held == set(self.store) == set(engine._sizes)
        assert engine._filled == sum(p.held() > 0 for p in engine._partitions.values())
        wakeup = engine.next_wakeup()
        assert wakeup is None or wakeup > self.now

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        # Whatever is left comes out, in order, and nothing else.
        for owner in ("one", "two", "three"):
            self.carry(self.engine.owner_left(owner, self.now))
        for partition in ("", "a", "b", "c"):
            left = sorted(n for n, x in self.store.items() if x.partition == partition)
            for number in left:
                key = f"d{number}"
                (given,) = self.engine.get(key, "drain", partition, 1, self.now, self.now)
                assert given == Given(key, (number,), False)
                assert self.engine.take(key, partition, [number], self.now) == [number]
                self.engine.done(partition, [number], self.now)
            assert self.engine.get("last", "drain", partition, 1, self.now, self.now) == [Nothing("last")]


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
