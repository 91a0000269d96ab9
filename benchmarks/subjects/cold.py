"""This project, embedded: a first answer from nothing and from zero containers, and a deploy."""

import json
import sys
import time
from statistics import median

import modal_nomad as modal
from benchmarks.measure import noop


def first_answers(rounds: int) -> list[float]:
    """Give milliseconds of the first call of a function without a container, each function once."""
    app = modal.App("benchmark-cold")
    functions = [app.function(name=f"cold{i}", serialized=True)(noop) for i in range(rounds)]
    times = []
    with app.run():
        for function in functions:
            began = time.perf_counter()
            function.remote(1)
            times.append((time.perf_counter() - began) * 1e3)
    return times


def scaled_to_zero(rounds: int) -> list[float]:
    """Give milliseconds of a call after the function's only container has ended, idle."""
    app = modal.App("benchmark-zero")
    function = app.function(name="zero", serialized=True, scaledown_window=2)(noop)
    times = []
    with app.run():
        function.remote(1)
        for _ in range(rounds):
            time.sleep(4)
            began = time.perf_counter()
            function.remote(1)
            times.append((time.perf_counter() - began) * 1e3)
    return times


def deploys(rounds: int) -> list[float]:
    """Give milliseconds of deploying an App of two functions, changed each time."""
    times = []
    for index in range(rounds):
        app = modal.App("benchmark-deploy")
        for name in ("left", "right"):
            app.function(name=name, serialized=True, env={"ROUND": str(index)})(noop)
        began = time.perf_counter()
        app.deploy()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def main(rounds: int) -> None:
    """Measure."""
    modal.Client.from_env()  # The daemon runs before any clock does.
    first = first_answers(rounds + 1)
    result = {
        "first_fresh_home_ms": first[0],
        "first_ms": median(first[1:]),
        "zero_ms": median(scaled_to_zero(rounds)),
        "deploy_ms": median(deploys(rounds + 2)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]))
