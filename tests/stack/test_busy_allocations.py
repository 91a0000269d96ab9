"""Nomad stops an allocation that runs an input: it finishes in time, or runs again elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engine_contract._nomad_agent import wait_until
from tests.stack._dispatcher import dispatcher, get, put

FILE = """
import atexit, os, pathlib, time
import modal

app = modal.App("busy")

@app.function(max_containers=1)
def held(folder: str) -> str:
    folder, allocation = pathlib.Path(folder), os.environ["NOMAD_ALLOC_ID"]
    atexit.register((folder / f"exit.{allocation}").touch)
    (folder / f"began.{allocation}").touch()
    try:
        while not (folder / "go").exists():
            time.sleep(0.02)
    except KeyboardInterrupt:
        (folder / f"interrupted.{allocation}").touch()
        raise
    return allocation

@app.local_entrypoint()
def main(folder: str):
    print("answer", held.remote(folder))
"""


class Run:
    """A client that waits for its one input, and the marks that the input leaves."""

    def __init__(self, marks: Path, process: subprocess.Popen[bytes], out: Path) -> None:
        self.marks, self.process, self.out = marks, process, out

    def allocations(self, mark: str) -> list[str]:
        return [x.name.split(".")[1] for x in self.marks.glob(f"{mark}.*")]

    def until(self, true: Callable[[], Any]) -> None:
        wait_until(true, self.process, self.out)

    def answer(self) -> str:
        assert self.process.wait(100) == 0, self.out.read_text()
        (line,) = (x for x in self.out.read_text().splitlines() if x.startswith("answer"))
        return line.split()[1]


@contextmanager
def busy(address: str, tmp_path: Path, kill_timeout: float) -> Iterator[Run]:
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    (tmp_path / "app.py").write_text(FILE)
    render: Any = {"kill_timeout": kill_timeout}
    with dispatcher(tmp_path, {"address": address}, auth="none", render=render) as url:
        command = [sys.executable, "-m", "modal_nomad", "run", "app.py", "--folder", str(marks)]
        env = {**os.environ, "MODAL_SERVER_URL": url, "MODAL_CONFIG_PATH": "/nonexistent"}
        with open(out, "wb") as file:
            process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=file, stderr=file)
        run = Run(marks, process, out)
        try:
            run.until(lambda: run.allocations("began"))
            yield run
        finally:
            process.kill()
            process.wait()


def test_a_stopped_allocation_finishes_its_input(nomad_address: str, tmp_path: Path) -> None:
    with busy(nomad_address, tmp_path, 30.0) as run:
        (allocation,) = run.allocations("began")
        put(nomad_address, f"/v1/allocation/{allocation}/stop", {})
        run.until(lambda: get(nomad_address, f"/v1/allocation/{allocation}")["DesiredStatus"] == "stop")
        (run.marks / "go").touch()
        assert run.answer() == allocation
        run.until(lambda: run.allocations("exit") == [allocation])
        assert not run.allocations("interrupted")


def test_what_outlives_the_kill_timeout_is_interrupted_and_runs_again(
    nomad_address: str, tmp_path: Path
) -> None:
    with busy(nomad_address, tmp_path, 3.0) as run:
        (first,) = run.allocations("began")
        put(nomad_address, f"/v1/allocation/{first}/stop", {})
        run.until(lambda: len(run.allocations("began")) == 2)
        assert run.allocations("interrupted") == run.allocations("exit") == [first]
        (run.marks / "go").touch()
        assert run.answer() != first


def test_a_drained_nodes_input_runs_again_when_there_is_a_place(nomad_address: str, tmp_path: Path) -> None:
    (node,) = get(nomad_address, "/v1/nodes")
    drain = f"/v1/node/{node['ID']}/drain"
    with busy(nomad_address, tmp_path, 3.0) as run:
        (first,) = run.allocations("began")
        # Batch jobs are left alone until a drain's deadline: this one is over at once.
        put(nomad_address, drain, {"DrainSpec": {"Deadline": -1, "IgnoreSystemJobs": True}})
        try:
            run.until(lambda: run.allocations("exit") == [first])
        finally:
            put(nomad_address, drain, {"DrainSpec": None, "MarkEligible": True})
        run.until(lambda: len(run.allocations("began")) == 2)
        (run.marks / "go").touch()
        assert run.answer() != first
