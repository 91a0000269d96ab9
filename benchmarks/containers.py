"""``python -m benchmarks.containers IMAGE [ROUNDS]``: what starting a container costs, beside ``docker run``.

IMAGE has a CPython and is on this machine; DOCKER_HOST names the daemon. It is no part of
``python -m benchmarks``, which needs no container runtime. All times are medians in milliseconds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import modal_nomad as modal
from benchmarks.home import private_home

_NOOP = ["--rm", "--network=host", "--log-driver=none"]


def _median(run: Callable[[], None], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return median(times) * 1000


def _docker(image: str, *command: str) -> Callable[[], None]:
    words = ["docker", "run", *_NOOP, image, *command]
    return lambda: void(subprocess.run(words, check=True, capture_output=True))


def void(_: object) -> None:
    """Take a value and give none."""


def first_answer(image: str, rounds: int) -> float:
    """Return the milliseconds until the first answer of a Function that has no container."""
    app = modal.App("containers-benchmark")

    @app.function(
        image=modal.Image.from_registry(image) if image else None,
        serialized=True,
        single_use_containers=True,
    )
    def answer() -> int:
        return 1

    with app.run():
        return _median(lambda: void(answer.remote()), rounds)


def main() -> int:
    """Measure and print."""
    if len(sys.argv) < 2:
        sys.stderr.write("usage: python -m benchmarks.containers IMAGE [ROUNDS]\n")
        return 2
    image, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    rows = [
        ("docker run: true", _median(_docker(image, "true"), rounds)),
        ("docker run: python3 -c pass", _median(_docker(image, "python3", "-c", "pass"), rounds)),
    ]
    with private_home():
        rows.append(("first answer, a container of the image", first_answer(image, rounds)))
        rows.append(("first answer, a process", first_answer("", rounds)))
    for what, milliseconds in rows:
        print(f"{what:45}{milliseconds:8.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
