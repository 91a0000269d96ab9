"""This project, embedded: warm calls, maps and spawns."""

import json
import sys
import time
from statistics import median

import modal_nomad as modal
from benchmarks.measure import map_rates, noop, warm_calls

app = modal.App("benchmark-warm")
one = app.function(name="one", max_containers=1, serialized=True)(noop)
two = app.function(name="two", max_containers=2, serialized=True)(noop)


def spawned(count: int, rounds: int) -> float:
    """Give calls accepted (on disk) per second, one blocking ``spawn`` after the other."""
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        calls = [one.spawn(1) for _ in range(count)]
        rates.append(count / (time.perf_counter() - began))
        modal.gather(*calls)
    return median(rates)


def main(calls: int, inputs: int, rounds: int) -> None:
    """Measure."""
    with app.run():
        result = warm_calls(lambda: one.remote(1), calls, rounds)
        result |= map_rates(lambda count: two.map(range(count)), (1, 100, inputs), rounds)
        result["spawn"] = spawned(min(calls, 500), rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
