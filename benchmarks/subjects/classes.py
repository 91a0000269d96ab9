"""This project, embedded: an async function 100 at a time, batches of 64, a class of many parameter sets."""

import asyncio
import json
import sys
import time
from statistics import median
from typing import Any

import modal_nomad as modal
from benchmarks.measure import CONCURRENCY, WAIT_SECONDS, map_rate, noop_batch

app = modal.App("benchmark-classes")
batched = app.function(name="batched", max_containers=1, serialized=True)(
    modal.batched(max_batch_size=64, wait_ms=10)(noop_batch)
)


@app.function(name="waiting", max_containers=1, serialized=True)
@modal.concurrent(max_inputs=CONCURRENCY)
async def waiting(_: Any) -> None:
    """Wait as for a network."""
    await asyncio.sleep(WAIT_SECONDS)


@app.cls(serialized=True, scaledown_window=600, max_containers=1)
class Model:
    """Knows its number."""

    number: int = modal.parameter()

    @modal.method()
    def get(self) -> int:
        """Give the number."""
        return self.number


async def each(models: list[Any]) -> float:
    """Give the seconds until every instance has answered, all asked at once."""
    began = time.perf_counter()
    answers = await asyncio.gather(*(model.get.remote.aio() for model in models))
    assert answers == list(range(len(models)))
    return time.perf_counter() - began


def main(inputs: int, sets: int, rounds: int) -> None:
    """Measure."""
    with app.run():
        waiting.remote(0)
        # Twice as many inputs as fit at least: a shorter map would measure its beginning and its end.
        few = max(inputs // 10, 2 * CONCURRENCY)
        result = {"concurrent": map_rate(lambda count: waiting.map(range(count)), few, rounds)}
        list(batched.map(range(64)))
        result["batched"] = map_rate(lambda count: batched.map(range(count)), inputs, rounds)
        create: Any = Model
        models = [create(number=number) for number in range(sets)]
        result["sets_first_ms"] = asyncio.run(each(models)) * 1e3 / sets
        result["sets"] = sets / median(asyncio.run(each(models)) for _ in range(rounds))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
