"""Ray: an async actor 100 at a time, serve.batch of 64, an actor for each of many parameter sets."""

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import ray
from ray import serve

from benchmarks.measure import CONCURRENCY, WAIT_SECONDS, map_rate, noop_batch


class Waiting:
    """Holds an async method."""

    async def wait(self, _: Any) -> None:
        """Wait as for a network."""
        await asyncio.sleep(WAIT_SECONDS)


class Batched:
    """Holds a batched method."""

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)  # type: ignore[misc, unused-ignore]
    async def __call__(self, values: list[Any]) -> list[None]:
        """Do nothing."""
        return noop_batch(values)


class Model:
    """Knows its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get(self) -> int:
        """Give the number."""
        return self.number


def windowed(ask: Callable[[int], Any], answer: Callable[[Any], Any], count: int) -> Iterator[Any]:
    """Ask with a window of 1,000, as ours has."""
    held: deque[Any] = deque()
    for index in range(count):
        held.append(ask(index))
        if len(held) >= 1000:
            yield answer(held.popleft())
    while held:
        yield answer(held.popleft())


def each(models: list[Any]) -> float:
    """Give the seconds until every actor has answered, all asked at once."""
    began = time.perf_counter()
    assert ray.get([model.get.remote() for model in models]) == list(range(len(models)))
    return time.perf_counter() - began


def main(inputs: int, sets: int, rounds: int) -> None:
    """Measure."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    waiting = ray.remote(num_cpus=0.1, max_concurrency=CONCURRENCY)(Waiting).remote()
    ray.get(waiting.wait.remote(0))
    few = max(inputs // 10, 2 * CONCURRENCY)
    result = {
        "concurrent": map_rate(lambda count: windowed(waiting.wait.remote, ray.get, count), few, rounds)
    }
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    handle = serve.run(
        serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})(Batched).bind(),
        route_prefix=None,
    )
    handle.remote(0).result()
    result["batched"] = map_rate(
        lambda count: windowed(handle.remote, lambda response: response.result(), count), inputs, rounds
    )
    actor = ray.remote(num_cpus=0.001)(Model)
    began = time.perf_counter()
    models = [actor.remote(number) for number in range(sets)]
    each(models)
    result["sets_first_ms"] = (time.perf_counter() - began) * 1e3 / sets
    result["sets"] = sets / median(each(models) for _ in range(rounds))
    ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
