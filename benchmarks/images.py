"""``python -m benchmarks.images --base IMAGE``: image builds beside ``docker build`` of the same Dockerfile.

It needs docker, and an image that its daemon has and that has a shell. Three steps, each of which writes a
file; cold is with nothing of them built before, cached with all of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.home import private_home

_STEPS = 3


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    parser.add_argument("--base", required=True, help="an image that docker has: debian:bookworm-slim")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    docker, ours = [], []
    with private_home():
        home = Path(os.environ["MODAL_NOMAD_HOME"])
        home.mkdir(mode=0o700)
        (home / "local.toml").write_text('[images]\nbuilder = "docker"\nnetwork = "none"\n')
        for _ in range(options.rounds):
            docker.append(_docker(options.base, _commands()))
            ours.append(_ours(options.base, _commands()))
        # One that stays open would start the dispatcher again.
        _client()._close()
    print(f"{'':28}{'ours':>12}{'docker build':>16}")
    for line, words in enumerate((f"cold, {_STEPS} steps", "cached")):
        mine, theirs = (median(x[line] for x in found) for found in (ours, docker))
        print(f"{words:28}{mine * 1e3:>9,.1f} ms{theirs * 1e3:>13,.1f} ms ({theirs / mine:.2f}x)")
    return 0


def _commands() -> list[str]:
    # Never run before: docker's own cache must not help the second of the two.
    return [f"echo {uuid.uuid4()} > /step-{number}" for number in range(_STEPS)]


def _docker(base: str, commands: list[str]) -> tuple[float, float]:
    text = "\n".join([f"FROM {base}", *(f"RUN {command}" for command in commands), ""])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(text)

        def build() -> float:
            began = time.perf_counter()
            command = ["docker", "build", "--quiet", "--network", "none", folder]
            subprocess.run(command, check=True, capture_output=True)
            return time.perf_counter() - began

        return build(), build()


def _client() -> Any:
    from modal_nomad.client import Client

    return Client.from_env()


def _ours(base: str, commands: list[str]) -> tuple[float, float]:
    import modal_nomad as modal
    from modal_nomad._bridge import run_blocking
    from modal_nomad._image_publish import built

    image = modal.Image.from_registry(base)
    for command in commands:
        image = image.run_commands(command)
    app = modal.App("bench", image=image)
    app.function(serialized=True, name="f")(lambda: None)

    def build() -> float:
        client = _client()

        async def body() -> float:
            began = time.perf_counter()
            await built(app, client, None, {})
            return time.perf_counter() - began

        seconds: float = run_blocking(body())
        return seconds

    return build(), build()


if __name__ == "__main__":
    sys.exit(main())
