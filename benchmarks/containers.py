"""``python -m benchmarks.containers [--rounds N]``: building images and starting containers, beside docker.

It starts a Docker daemon of its own, as the tests do: that needs root and Debian's docker.io and debootstrap.
Builds are of three steps that write a file each; cold is with nothing of them built before, cached with all
of it. A start is what passes from the call to the answer of a Function that has no container, beside ``docker
run`` of the same image with a Python that does nothing. On Nomad's docker driver where ``nomad`` is on PATH.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import modal_nomad as modal
from benchmarks.home import private_home
from tests._docker import Docker, Unusable, docker_daemon
from tests.engine_contract._nomad_agent import docker_client, nomad_agent, nomad_binary
from tests.stack._dispatcher import dispatcher

Results = dict[str, float]
_STEPS = 3
_NOOP = ["--rm", "--network=host", "--log-driver=none"]
_LINES = (
    ("cold_ms", "docker_cold_ms", f"image build, {_STEPS} steps, cold"),
    ("cached_ms", "docker_cached_ms", "the same, cached"),
    ("start_ms", "run_python_ms", "container start, embedded"),
    ("nomad_ms", "run_python_ms", "container start, Nomad's docker driver"),
)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.containers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    found = measure(parser.parse_args().rounds)
    print(render(found))
    return 0 if found else 1


def measure(rounds: int) -> Results:
    """Measure what can be had here; where there is no docker, say so and give nothing."""
    with tempfile.TemporaryDirectory(prefix="mn-bench-") as folder:
        try:
            docker = docker_daemon(Path(folder))
        except Unusable as error:
            print(f"no container images: {error}", file=sys.stderr)
            return {}
        with _variables(DOCKER_HOST=docker.host):
            found = _builds(docker, rounds)
            found["run_ms"] = _median(_run(docker, "true"), rounds)
            found["run_python_ms"] = _median(_run(docker, "python3", "-c", "pass"), rounds)
            with private_home():
                found["start_ms"] = _first_answer(docker, rounds)
            found |= _on_nomad(docker, Path(folder), rounds)
    return found


def render(found: Results) -> str:
    """Give the text: docker's value and, in brackets, how many times better ours is."""
    lines = [f"{'':42}{'ours':>14}{'docker':>24}"]
    for ours, theirs, words in _LINES:
        mine, other = found.get(ours), found.get(theirs)
        cell = f"{other:,.0f} ms ({other / mine:.2f}x)" if mine and other else "-"
        lines.append(f"{words:42}{'-' if mine is None else f'{mine:,.1f} ms':>14}{cell:>24}")
    return "\n".join(lines)


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _median(run: Callable[[], object], rounds: int) -> float:
    run()
    return median(_timed(run) for _ in range(rounds))


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1e3


def _run(docker: Docker, *command: str) -> Callable[[], object]:
    return lambda: docker("run", *_NOOP, docker.image, *command)


def _builds(docker: Docker, rounds: int) -> Results:
    theirs, ours = [], []
    with private_home():
        home = Path(os.environ["MODAL_NOMAD_HOME"])
        home.mkdir(mode=0o700)
        (home / "local.toml").write_text('[images]\nbuilder = "docker"\nnetwork = "none"\n')
        for _ in range(rounds):
            # They take turns, so that what else the machine does is in both.
            theirs.append(_docker_build(docker, _commands()))
            ours.append(_our_build(docker, _commands()))
        _client()._close()
    names = ("docker_cold_ms", "docker_cached_ms", "cold_ms", "cached_ms")
    return dict(zip(names, map(median, (*zip(*theirs, strict=True), *zip(*ours, strict=True))), strict=True))


def _commands() -> list[str]:
    # Never run before: docker's own cache must not help the second of the two.
    return [f"echo {uuid.uuid4()} > /step-{number}" for number in range(_STEPS)]


def _docker_build(docker: Docker, commands: list[str]) -> tuple[float, float]:
    text = "\n".join([f"FROM {docker.image}", *(f"RUN {command}" for command in commands), ""])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(text)
        command = ["docker", "build", "--quiet", "--network", "none", folder]

        def build() -> None:
            subprocess.run(command, check=True, capture_output=True)

        return _timed(build), _timed(build)


def _our_build(docker: Docker, commands: list[str]) -> tuple[float, float]:
    from modal_nomad._bridge import run_blocking
    from modal_nomad._image_publish import built

    image = modal.Image.from_registry(docker.image)
    for command in commands:
        image = image.run_commands(command)
    app = modal.App("bench", image=image)
    app.function(serialized=True, name="f")(lambda: None)
    client = _client()

    def build() -> None:
        run_blocking(built(app, client, None, {}))

    return _timed(build), _timed(build)


def _client() -> Any:
    # Closed at the end of each part: one that stays open would start the dispatcher again.
    from modal_nomad.client import Client

    return Client.from_env()


def _first_answer(docker: Docker, rounds: int) -> float:
    """Return the milliseconds until the first answer of a Function that has no container."""
    app = modal.App("containers-benchmark")

    @app.function(image=modal.Image.from_registry(docker.image), serialized=True, single_use_containers=True)
    def answer() -> int:
        return 1

    try:
        with app.run():
            return _median(answer.remote, rounds)
    finally:
        _client()._close()


def _on_nomad(docker: Docker, folder: Path, rounds: int) -> Results:
    binary = nomad_binary()
    if binary is None:
        print("no Nomad: there is no `nomad` on PATH", file=sys.stderr)
        return {}
    agent = nomad_agent(binary, **docker_client(docker.host))
    found: Results = {}
    with (
        agent as address,
        dispatcher(folder, {"address": address}, auth="none") as url,
        private_home(MODAL_SERVER_URL=url),
    ):
        found["nomad_ms"] = _first_answer(docker, rounds)
    return found


if __name__ == "__main__":
    sys.exit(main())
