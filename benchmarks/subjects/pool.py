"""ProcessPoolExecutor of the standard library."""

import json
import sys
from concurrent.futures import ProcessPoolExecutor

from benchmarks.measure import map_rates, noop, warm_calls


def main(calls: int, inputs: int, rounds: int) -> None:
    """Measure."""
    with ProcessPoolExecutor(1) as pool:
        result = warm_calls(lambda: pool.submit(noop, 1).result(), calls, rounds)
    with ProcessPoolExecutor(2) as pool:
        result |= map_rates(lambda count: pool.map(noop, range(count)), (1, 100, inputs), rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
