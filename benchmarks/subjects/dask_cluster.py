"""Dask: a LocalCluster of two single-threaded worker processes."""

import json
import sys

from distributed import Client, LocalCluster

from benchmarks.measure import map_rates, noop, warm_calls


def main(calls: int, inputs: int, rounds: int) -> None:
    """Measure."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        result = warm_calls(lambda: client.submit(noop, 1, pure=False).result(), calls, rounds)
        result |= map_rates(
            lambda count: client.gather(client.map(noop, range(count), pure=False)), (1, 100, inputs), rounds
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
