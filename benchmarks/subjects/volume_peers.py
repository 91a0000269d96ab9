"""rsync and rclone on the same tree, from a directory to another one of this machine: no server between."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.subjects import _volumes

_PATIENCE = 60


def run(*command: str) -> None:
    """Run a program to its end."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)


def copies(program: str, source: str, target: str) -> list[str]:
    """Return the command that copies a tree, or what changed in it."""
    if program == "rsync":
        return ["rsync", "-a", f"{source}/", target]
    return ["rclone", "sync", "--links", "--transfers", "8", "--config", "/dev/null", source, target]


@contextlib.contextmanager
def mounted(source: str, where: str) -> Iterator[None]:
    """Mount a directory by rclone."""
    command = ["rclone", "mount", "--vfs-cache-mode", "full", "--config", "/dev/null"]
    command += ["--cache-dir", f"{where}-cache", source, where]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + _PATIENCE
    try:
        while not os.path.ismount(where):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("rclone did not mount")
            time.sleep(0.001)
        yield
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def measure(program: str, folder: Path) -> dict[str, float]:
    """Measure one program."""
    source, target, again, where = (str(folder / x) for x in ("source", "target", "again", "mounted"))
    os.mkdir(where)
    found = {"upload_ms": _volumes.timed(lambda: run(*copies(program, source, target)))}
    if program == "rclone":

        def read(work: object) -> None:
            with mounted(target, where):
                work(where)  # type: ignore[operator]

        found["one_ms"] = _volumes.timed(lambda: read(_volumes.read_one))
        shutil.rmtree(f"{where}-cache", ignore_errors=True)
        found["all_ms"] = _volumes.timed(lambda: read(_volumes.read_all))
    else:

        def fetch(work: object) -> None:
            shutil.rmtree(again, ignore_errors=True)
            run(*copies(program, target, again))
            work(again)  # type: ignore[operator]

        found["one_ms"] = _volumes.timed(lambda: fetch(_volumes.read_one))
        found["all_ms"] = _volumes.timed(lambda: fetch(_volumes.read_all))
    _volumes.change(source)
    found["commit_ms"] = _volumes.timed(lambda: run(*copies(program, source, target)))
    return found


def main(large_mib: int, small: int) -> None:
    """Measure what is installed."""
    found: dict[str, float] = {}
    for program in ("rsync", "rclone"):
        if shutil.which(program) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            _volumes.make(Path(folder, "source"), large_mib, small)
            for key, value in measure(program, Path(folder)).items():
                found[f"{program}_{key}"] = value
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
