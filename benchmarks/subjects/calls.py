"""This project, embedded: many calls handed over, a generator read, a graph of many nodes."""

import json
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import modal_nomad as modal
from benchmarks.measure import noop

app = modal.App("benchmark-calls")
one = app.function(name="one", max_containers=1, serialized=True)(noop)


@app.function(name="items", max_containers=1, serialized=True)
def items(count: int) -> Iterator[int]:
    """Yield numbers."""
    yield from range(count)


@app.function(name="tree", max_containers=1, serialized=True)
def tree(leaves: int) -> None:
    """Call a no-op many times, from inside a container."""
    import modal_nomad

    noop = modal_nomad.Function.from_name("benchmark-calls-tree", "one")
    noop.for_each(range(leaves))


def accepted(count: int, rounds: int) -> float:
    """Give inputs accepted (on disk) per second by ``spawn_map``, while one container works on them."""
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        call = one.experimental_spawn_map(range(count))
        rates.append(count / (time.perf_counter() - began))
        for _ in call.iter():
            pass
    return median(rates)


def streamed(count: int, rounds: int) -> float:
    """Give a generator's items per second, from the call to the last item."""
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        assert sum(1 for _ in items.remote_gen(count)) == count
        rates.append(count / (time.perf_counter() - began))
    return median(rates)


def graph(nodes: int) -> dict[str, float]:
    """Give the milliseconds of ``get_call_graph`` for a tree of so many nodes."""
    deployed: Any = modal.App("benchmark-calls-tree")
    deployed.function(name="one", max_containers=1, serialized=True)(noop)
    root = deployed.function(name="tree", max_containers=1, serialized=True)(tree.get_raw_f())
    deployed.deploy()
    call = root.spawn(nodes - 1)
    call.get()
    times = []
    while True:
        began = time.perf_counter()
        found = 1 + len(call.get_call_graph()[0].children)
        times.append((time.perf_counter() - began) * 1e3)
        if found == nodes and len(times) > 5:
            return {"graph_ms": median(times[-5:])}


def main(inputs: int, rounds: int) -> None:
    """Measure."""
    with app.run():
        one.remote(1)
        next(items.remote_gen(1))
        result = {"spawn_map": accepted(inputs, rounds), "items": streamed(inputs, rounds)}
    result |= graph(10_000)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
