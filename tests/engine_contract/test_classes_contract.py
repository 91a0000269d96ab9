"""A class with parameters, hooks and options: the same on every engine, through a real dispatcher."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.stack._dispatcher import dispatcher, modal_nomad

FILE = """
import json
import os
import sys

import modal

app = modal.App("contract-classes")

@app.cls(enable_memory_snapshot=True)
class Model:
    label: str = modal.parameter()
    path: str = modal.parameter(default="")

    def mark(self, word):
        if self.path:
            with open(self.path, "a") as file:
                file.write(word + "\\n")

    @modal.enter()
    async def enter(self):
        self.mark("enter")

    @modal.enter(snap=True)
    def snap(self):
        self.mark("snap")

    @modal.method()
    def where(self):
        self.mark("input")
        return [self.label, os.environ.get("SAID", ""), os.getpid()]

    @modal.method()
    def again(self):
        return [self.where.remote(), self.where.local()]

    @modal.exit()
    def exit(self):
        self.mark("exit")

@app.cls(enable_memory_snapshot=True, single_use_containers=True, max_containers=1)
class Forked:
    @modal.enter(snap=True)
    def load(self):
        self.loaded = os.getpid()

    @modal.method()
    def pids(self):
        return [self.loaded, os.getpid()]

@app.function()
@modal.batched(max_batch_size=3, wait_ms=600_000)
def sizes(xs):
    return [len(xs)] * len(xs)

@app.local_entrypoint()
def main(path: str):
    one = Model(label="one", path=path)
    print(json.dumps({
        "one": one.where.remote(),
        "same": Model(path=path, label="one").where.remote(),
        "other": Model(label="two").where.remote(),
        "nested": Model(label="two").again.remote(),
        "options": Model.with_options(env={"SAID": "yes"})(label="one").where.remote(),
        "forked": [Forked().pids.remote() for _ in range(3)],
        "sizes": list(sizes.map(range(6))),
    }))
"""


@pytest.mark.parametrize("name", ["local", "nomad"])
def test_a_class_lives_alike(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    nomad = {"address": request.getfixturevalue("nomad_address")} if name == "nomad" else {}
    marks = tmp_path / "marks"
    with dispatcher(tmp_path, nomad, auth="none", engine=name) as url:
        done = modal_nomad(tmp_path, url, "run", "-q", "app.py", "--path", str(marks), file=FILE)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout.strip().splitlines()[-1])
        deadline = time.monotonic() + 100
        while not marks.read_text().endswith("exit\n"):
            assert time.monotonic() < deadline, marks.read_text()
            time.sleep(0.05)
    assert found["one"] == found["same"] and found["one"][:2] == ["one", ""]
    assert found["other"][:2] == ["two", ""] and found["other"][2] != found["one"][2]
    assert [x[0] for x in found["nested"]] == ["two", "two"]
    assert found["options"][:2] == ["one", "yes"]
    assert found["sizes"] == [3] * 6
    # The first container loads, and the later ones are forks of what it had loaded.
    loaded, pids = zip(*found["forked"], strict=True)
    assert set(loaded) == {pids[0]} and len(set(pids)) == 3
    assert marks.read_text().split() == ["snap", "enter", "input", "input", "exit"]
