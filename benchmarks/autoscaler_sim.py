"""Replays traces against the autoscaler and against Knative's default policy, and draws what happens.

    python -m benchmarks.autoscaler_sim            # prints the table, draws into benchmarks/autoscaler/
    python -m benchmarks.autoscaler_sim --no-plots

The autoscaler under test is the dispatcher's own call engine, event by event; only the clock, the containers
and the inputs' durations are simulated. The same trace always gives the same history.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.autoscaler_policies import Knative, Ours
from benchmarks.autoscaler_world import Arrival, Controller, History, Placement, Trace, World

FOLDER = Path(__file__).parent / "autoscaler"
POLICIES: tuple[Callable[[], Controller], ...] = (
    Ours,
    lambda: Ours("modal-nomad, window 15 s", scaledown_window=15.0),
    Knative,
)


def _poisson(
    rate: Callable[[float], float], most: float, seconds: float, mean: float, seed: int
) -> list[Arrival]:
    """Arrivals at a changing rate, with durations around a mean (log-normal, as requests have)."""
    draw = random.Random(seed)
    arrivals, now = [], 0.0
    sigma = 0.5
    while True:
        now += draw.expovariate(most)
        if now >= seconds:
            return arrivals
        if draw.random() * most <= rate(now):
            arrivals.append(Arrival(now, draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


def steady(seconds: float = 600.0, rate: float = 20.0) -> Trace:
    """A constant load: ten inputs at a time on average."""
    return Trace("steady", tuple(_poisson(lambda _: rate, rate, seconds, 0.5, 1)))


def bursts(count: int = 5, size: int = 200, every: float = 120.0) -> Trace:
    """A few hundred inputs of two seconds at once, with pauses: each burst finds less than it needs."""
    draw = random.Random(2)
    arrivals = [Arrival(k * every, draw.uniform(1.5, 2.5)) for k in range(count) for _ in range(size)]
    return Trace("bursts", tuple(arrivals))


def diurnal(seconds: float = 1800.0, peak: float = 40.0) -> Trace:
    """A day in half an hour: from nothing to twenty inputs at a time and back, twice."""

    def rate(now: float) -> float:
        return peak * max(0.0, math.sin(2 * math.pi * now / (seconds / 2) - math.pi / 2))

    return Trace("diurnal", tuple(_poisson(rate, peak, seconds, 0.5, 3)))


def flood(size: int = 10_000) -> Trace:
    """Ten thousand inputs of a minute at once, and room for a container each."""
    draw = random.Random(4)
    return Trace(
        "flood", tuple(Arrival(0.0, draw.uniform(50.0, 70.0)) for _ in range(size)), max_containers=size
    )


def tiny(size: int = 10_000) -> Trace:
    """Ten thousand inputs of two milliseconds at once: hardly worth a second container."""
    return Trace("tiny", tuple(Arrival(0.0, 0.002) for _ in range(size)))


TRACES: tuple[Callable[[], Trace], ...] = (steady, bursts, diurnal, tiny, flood)


def simulate(trace: Trace, controller: Controller, placement: Placement | None = None) -> History:
    """Run one trace under one policy."""
    return World(trace, placement or Placement(), controller).run()


def row(trace: Trace, name: str, history: History) -> str:
    """A line of the table."""
    cells = (
        f"{history.wait(0.5):.2f}",
        f"{history.wait(0.99):.2f}",
        f"{sum(history.waits) / max(1, len(history.waits)):.2f}",
        str(history.peak),
        str(history.started),
        f"{history.waste:,.0f}",
        f"{history.busy_seconds / history.container_seconds / trace.slots:.0%}",
    )
    return f"| {trace.name} | {name} | " + " | ".join(cells) + " |"


HEADER = """\
| trace | policy | wait p50, s | p99 | mean | most containers | started | unused container seconds | used |
|---|---|---|---|---|---|---|---|---|"""


def plot(trace: Trace, histories: dict[str, History], folder: Path) -> Path:
    """Draw containers, queue and waits of one trace."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(histories, ("#1f6f54", "#6db39a", "#c2642d"), strict=True))
    figure, (top, middle, bottom) = pyplot.subplots(3, 1, figsize=(9, 8.5), height_ratios=(3, 2, 2))
    # The baseline first: where lines coincide, ours is seen.
    for name, history in reversed(histories.items()):
        style = {"color": colours[name], "linewidth": 1.2}
        times = [x.at for x in history.samples]
        label = f"{name}: {history.waste:,.0f} container seconds unused"
        top.step(times, [x.alive for x in history.samples], where="post", label=label, **style)
        middle.step(times, [x.queued for x in history.samples], where="post", **style)
        ordered = sorted(history.waits)
        shares = [100 * (i + 1) / len(ordered) for i in range(len(ordered))]
        bottom.plot(shares, ordered, **style)
    ours = histories[Ours.name]
    top.fill_between(
        [x.at for x in ours.samples],
        [x.busy / trace.slots for x in ours.samples],
        step="post",
        color="#9fb8ad",
        alpha=0.5,
        linewidth=0,
        label=f"busy containers ({Ours.name})",
    )
    figure.suptitle(f"{trace.name}: {len(trace.arrivals):,} inputs")
    top.set_ylabel("containers")
    middle.set_ylabel("inputs that wait")
    middle.set_xlabel("seconds")
    middle.sharex(top)
    bottom.set_xlabel("inputs, by how long they wait, %")
    bottom.set_ylabel("seconds of waiting")
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    top.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{trace.name}.png"
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    return path


def main() -> None:
    """Print the table and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-plots", action="store_true", help="print the table only")
    parser.add_argument("--only", help="one trace, by name")
    arguments = parser.parse_args()
    print(HEADER)
    for make in TRACES:
        if arguments.only not in (None, make.__name__):
            continue
        trace = make()
        histories = {}
        for policy in POLICIES:
            controller = policy()
            histories[controller.name] = simulate(trace, controller)
            print(row(trace, controller.name, histories[controller.name]), flush=True)
        if not arguments.no_plots:
            plot(trace, histories, FOLDER)


if __name__ == "__main__":
    main()
