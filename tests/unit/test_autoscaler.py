"""The autoscaler's decisions, one load at a time."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.dispatcher._events import FunctionPolicy
from modal_nomad.dispatcher.autoscaler import (
    FIRST_BURST,
    LARGEST_BURST,
    UNKNOWN_SECONDS,
    Autoscaler,
    Load,
)

POLICY = FunctionPolicy("v1")
QUIET = Load(queued=0, leased=0, ready=0, busy=0, starting=0, winding_down=0, average=None, start_seconds=0.2)


def load(**changes: object) -> Load:
    return dataclasses.replace(QUIET, **changes)  # type: ignore[arg-type]


def policy(**changes: object) -> FunctionPolicy:
    return dataclasses.replace(POLICY, **changes)  # type: ignore[arg-type]


def test_nothing_to_do_starts_nothing() -> None:
    assert Autoscaler(8).to_start(POLICY, QUIET) == 0


def test_the_first_input_starts_one_container_at_once() -> None:
    assert Autoscaler(8).to_start(POLICY, load(queued=1)) == 1
    assert Autoscaler(8).to_start(POLICY, load(queued=1, starting=1)) == 0


def test_an_unknown_burst_starts_a_few() -> None:
    assert Autoscaler(100).to_start(POLICY, load(queued=100)) == FIRST_BURST
    flood = Autoscaler(100_000).to_start(POLICY, load(queued=10_000))
    assert FIRST_BURST < flood <= 10_000 * UNKNOWN_SECONDS / 0.2 + 1


def test_silence_tells_that_unknown_inputs_are_long() -> None:
    silent = [load(queued=996, leased=4, ready=4, busy=4, silent=x) for x in (0.01, 0.05, 0.2)]
    counts = [Autoscaler(2000).to_start(POLICY, x) for x in silent]
    assert counts[0] < counts[1] < counts[2] == 996


def test_a_short_silence_says_nothing_where_outputs_have_come() -> None:
    known = load(queued=900, leased=100, ready=1, busy=1, average=1e-5, silent=0.1)
    assert Autoscaler(100).to_start(POLICY, known) == 0
    assert Autoscaler(100).to_start(POLICY, dataclasses.replace(known, silent=0.3)) == 99


def test_a_target_counts_instead_of_the_maximum() -> None:
    full = load(leased=30, ready=2, busy=2, average=10.0)
    slots = policy(max_concurrent_inputs=20)
    assert Autoscaler(100).to_start(slots, full) == 0
    assert Autoscaler(100).to_start(dataclasses.replace(slots, target_inputs=10), full) == 1


def test_tiny_inputs_start_nothing_more() -> None:
    tiny = load(queued=10_000, leased=256, ready=1, busy=1, average=5e-6)
    assert Autoscaler(100).to_start(POLICY, tiny) == 0


def test_long_inputs_start_one_container_each() -> None:
    long = load(queued=20, leased=1, ready=1, busy=1, average=10.0)
    assert Autoscaler(100).to_start(POLICY, long) == 20
    assert Autoscaler(5).to_start(POLICY, long) == 4


def test_slots_divide_the_demand() -> None:
    long = load(queued=20, leased=10, ready=1, busy=1, average=10.0)
    assert Autoscaler(100).to_start(policy(max_concurrent_inputs=10), long) == 2


def test_work_that_outlives_a_start_is_shared() -> None:
    second = load(queued=1000, ready=1, busy=1, average=0.001)
    assert 1 <= Autoscaler(100).to_start(POLICY, second) <= 6


def test_a_stalled_queue_doubles_the_containers_whatever_the_average_says() -> None:
    stalled = load(queued=10, leased=3, ready=3, busy=3, average=1e-6, stalled=True)
    assert Autoscaler(100).to_start(POLICY, stalled) == 3
    stalled = load(queued=1, leased=1, ready=1, busy=1, average=1e-6, stalled=True)
    assert Autoscaler(100).to_start(POLICY, stalled) == 1
    assert Autoscaler(100).to_start(POLICY, dataclasses.replace(stalled, starting=1)) == 0


def test_containers_blocked_on_children_do_not_count_against_the_default_ceiling() -> None:
    stalled = load(queued=1, leased=2, ready=2, busy=2, average=0.001, stalled=True)
    assert Autoscaler(2).to_start(POLICY, stalled) == 0
    assert Autoscaler(2).to_start(POLICY, dataclasses.replace(stalled, blocked=2)) == 1
    assert Autoscaler(2).to_start(policy(max_containers=2), dataclasses.replace(stalled, blocked=2)) == 0


def test_a_named_ceiling_counts_containers_on_their_way_out() -> None:
    assert Autoscaler(8).to_start(policy(max_containers=1), load(queued=1, winding_down=1)) == 0
    assert Autoscaler(8).to_start(POLICY, load(queued=1, winding_down=1)) == 1


def test_floor_and_buffer() -> None:
    assert Autoscaler(8).to_start(policy(min_containers=3), QUIET) == 3
    assert Autoscaler(8).to_start(policy(buffer_containers=2), QUIET) == 0
    assert Autoscaler(8).to_start(policy(buffer_containers=2), load(leased=1, ready=1, busy=1)) == 2


def test_single_use_needs_a_container_per_input() -> None:
    assert Autoscaler(50).to_start(policy(single_use=True), load(queued=30, average=1e-6)) == 30


def test_drain_keeps_the_floor_the_busy_and_the_buffer() -> None:
    scaler = Autoscaler(8)
    assert scaler.to_drain(POLICY, load(ready=4)) == 4
    assert scaler.to_drain(policy(min_containers=3), load(ready=4)) == 1
    assert scaler.to_drain(policy(buffer_containers=1), load(ready=4, busy=2, leased=2)) == 1


def test_a_ceiling_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Autoscaler(0)


def test_inputs_that_compute_get_a_container_a_core() -> None:
    many = load(queued=1700, leased=2, ready=2, busy=2, average=0.5, cpu_share=1.0)
    assert Autoscaler(100).to_start(POLICY, many) == 98
    assert Autoscaler(100, cores=2).to_start(POLICY, many) == 0
    assert Autoscaler(100, cores=16).to_start(POLICY, many) == 14


def test_inputs_that_wait_get_many_containers_a_core() -> None:
    waiting = load(queued=1700, leased=2, ready=2, busy=2, average=0.5, cpu_share=0.02)
    assert Autoscaler(100, cores=2).to_start(POLICY, waiting) == 78
    assert Autoscaler(100, cores=2).to_start(policy(max_concurrent_inputs=4), waiting) == 18
    assert Autoscaler(10, cores=2).to_start(POLICY, waiting) == 8


def test_an_unknown_burst_starts_a_container_a_core_and_twice_that_until_more_is_known() -> None:
    scaler = Autoscaler(100, cores=3)
    assert scaler.to_start(POLICY, load(queued=1000)) == 3
    assert scaler.to_start(POLICY, load(queued=1000, ready=3, busy=3, leased=3, silent=5.0)) == 3
    assert Autoscaler(1000, cores=500).to_start(POLICY, load(queued=1000)) == LARGEST_BURST


def test_a_fraction_of_a_core_packs_more_and_named_limits_are_obeyed_as_they_are() -> None:
    many = load(queued=1700, leased=2, ready=2, busy=2, average=0.5, cpu_share=1.0)
    scaler = Autoscaler(100, cores=2)
    assert scaler.to_start(policy(cpu=0.125), many) == 14
    assert scaler.to_start(policy(max_containers=30), many) == 28
    assert scaler.to_start(policy(min_containers=7), many) == 5
    assert scaler.to_start(policy(buffer_containers=3), many) == 3


def test_containers_blocked_on_children_do_not_count_as_fed() -> None:
    stalled = load(queued=2, leased=2, ready=2, busy=2, average=0.001, stalled=True, cpu_share=1.0)
    assert Autoscaler(100, cores=2).to_start(POLICY, stalled) == 0
    assert Autoscaler(100, cores=2).to_start(POLICY, dataclasses.replace(stalled, blocked=1)) == 1


@given(
    queued=st.integers(0, 5000),
    ready=st.integers(0, 20),
    busy=st.integers(0, 20),
    starting=st.integers(0, 20),
    winding_down=st.integers(0, 5),
    average=st.none() | st.floats(0, 1000),
    silent=st.floats(0, 100),
    stalled=st.booleans(),
    blocked=st.integers(0, 20),
    floor=st.integers(0, 5),
    ceiling=st.none() | st.integers(5, 30),
)
def test_never_above_the_ceiling(floor: int, ceiling: int | None, **state: object) -> None:
    scaler = Autoscaler(6)
    chosen = policy(min_containers=floor, max_containers=ceiling)
    state["busy"] = min(state["busy"], state["ready"])  # type: ignore[type-var]
    now = load(leased=state["busy"], **state)
    count = scaler.to_start(chosen, now)
    assert count >= 0
    if count:
        assert now.ready + now.starting + count <= scaler.ceiling(chosen, now.blocked)
    assert 0 <= scaler.to_drain(chosen, now) <= now.ready - now.busy
