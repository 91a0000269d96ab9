"""Ray: a streaming generator of a warm actor, read item by item."""

import json
import sys
import time
from collections.abc import Iterator
from statistics import median

import ray


class Actor:
    """Holds a generator method."""

    def items(self, count: int) -> Iterator[int]:
        """Yield numbers."""
        # Not `yield from`: Ray sends to what it iterates.
        for number in range(count):
            yield number + 1


def main(count: int, rounds: int) -> None:
    """Measure."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actor = ray.remote(num_cpus=1)(Actor).remote()
    rates = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        items = actor.items.options(num_returns="streaming").remote(count)
        found = sum(1 for item in items if ray.get(item) > 0)
        rates.append(found / (time.perf_counter() - began))
        assert found == count
    ray.shutdown()
    # The first round warms the actor.
    print(json.dumps({"items": median(rates[1:])}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
