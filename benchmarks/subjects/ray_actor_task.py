"""Ray: an actor's method and a task, and a map over tasks, with a window of 1,000 as ours has."""

import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import ray

from benchmarks.measure import map_rates, noop, warm_calls


class Actor:
    """Holds a no-op method."""

    def noop(self, _: Any) -> None:
        """Do nothing."""


def main(calls: int, inputs: int, rounds: int) -> None:
    """Measure."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    task = ray.remote(noop)

    def windowed(count: int) -> Iterator[Any]:
        held: deque[Any] = deque()
        for index in range(count):
            held.append(task.remote(index))
            if len(held) >= 1000:
                yield ray.get(held.popleft())
        while held:
            yield ray.get(held.popleft())

    result = {f"task_{k}": v for k, v in warm_calls(lambda: ray.get(task.remote(1)), calls, rounds).items()}
    result |= map_rates(windowed, (1, 100, inputs), rounds)
    actor = ray.remote(num_cpus=1)(Actor).remote()
    result |= warm_calls(lambda: ray.get(actor.noop.remote(1)), calls, rounds)
    ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
