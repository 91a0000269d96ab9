"""The autoscaler simulator: whatever the policy, limits hold, all is served, and nothing is left running."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import autoscaler_sim as sim
from benchmarks.autoscaler_policies import Knative, Ours
from benchmarks.autoscaler_world import Arrival, Controller, History, Placement, Trace

SMALL = {
    "steady": lambda: sim.steady(seconds=60.0),
    "bursts": lambda: sim.bursts(count=2, size=60, every=100.0),
    "diurnal": lambda: sim.diurnal(seconds=200.0, peak=10.0),
    "tiny": lambda: sim.tiny(2000),
    "flood": lambda: sim.flood(300),
    "concurrent": lambda: Trace(
        "concurrent", tuple(Arrival(i * 0.01, 1.0) for i in range(400)), slots=8, max_containers=5
    ),
    "nothing": lambda: Trace("nothing", ()),
}


def check(trace: Trace, history: History) -> None:
    assert history.served == [1] * len(trace.arrivals)
    assert all(wait >= 0 for wait in history.waits)
    assert history.peak <= trace.max_containers
    if history.samples:
        last = history.samples[-1]
        assert (last.alive, last.busy, last.queued) == (0, 0, 0)
    assert all(x.busy <= x.alive * trace.slots for x in history.samples)


@pytest.mark.parametrize("policy", [Ours, Knative])
@pytest.mark.parametrize("trace", SMALL)
def test_invariants(trace: str, policy: Callable[[], Controller]) -> None:
    made = SMALL[trace]()
    check(made, sim.simulate(made, policy()))


def test_the_same_trace_gives_the_same_history() -> None:
    trace = sim.bursts(count=1, size=50)
    assert sim.simulate(trace, Ours()) == sim.simulate(trace, Ours())
    assert sim.simulate(trace, Knative()) == sim.simulate(trace, Knative())


def test_a_low_ceiling_holds_under_a_flood() -> None:
    trace = Trace("low", tuple(Arrival(0.0, 1.0) for _ in range(100)), max_containers=3)
    history = sim.simulate(trace, Ours())
    check(trace, history)
    assert history.peak == 3


def test_known_inputs_wait_for_placement_and_nothing_else() -> None:
    """From the second burst on, durations are known: all containers are asked for as the burst arrives."""
    trace = sim.bursts(count=2, size=100, every=120.0)
    waits = sim.simulate(trace, Ours(), Placement(seconds=0.5, rate=100.0)).waits[100:]
    assert max(waits) <= 0.5 + 100 / 100.0 + 1e-6


def test_steady_load_waits_less_than_under_the_baseline() -> None:
    trace = sim.steady(seconds=120.0)
    ours, theirs = sim.simulate(trace, Ours()), sim.simulate(trace, Knative())
    assert ours.wait(0.99) < theirs.wait(0.99)


def test_tiny_inputs_start_fewer_containers_than_under_the_baseline() -> None:
    trace = sim.tiny(2000)
    assert 4 * sim.simulate(trace, Ours()).started < sim.simulate(trace, Knative()).started


def test_a_flood_of_unknown_inputs_costs_one_containers_start_more_than_under_the_baseline() -> None:
    trace, start = sim.flood(1000), Placement().seconds
    assert sim.simulate(trace, Ours()).wait(0.99) <= sim.simulate(trace, Knative()).wait(0.99) + start + 0.05


def test_a_target_below_the_maximum_keeps_containers_below_their_maximum() -> None:
    """Arrivals within the containers' slots still bring more containers when they exceed the target."""
    trace = Trace("target", tuple(Arrival(i * 0.05, 4.0) for i in range(400)), slots=20)
    target, without = sim.simulate(trace, Ours(target_inputs=10)), sim.simulate(trace, Ours())
    check(trace, target)
    assert target.peak > without.peak


def test_a_shorter_window_wastes_less() -> None:
    trace = sim.bursts(count=2, size=50)
    assert sim.simulate(trace, Ours(scaledown_window=5.0)).waste < sim.simulate(trace, Ours()).waste / 2


def test_the_table_has_a_line() -> None:
    trace = sim.bursts(count=1, size=10)
    line = sim.row(trace, "x", sim.simulate(trace, Ours()))
    assert line.startswith("| bursts | x | ") and line.count("|") == sim.HEADER.splitlines()[0].count("|")
