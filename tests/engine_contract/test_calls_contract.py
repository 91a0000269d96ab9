"""Calls must behave alike on every engine: generators, spawned calls, graphs, through a real dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_contract._program import run
from tests.stack._dispatcher import dispatcher

CALLER = """
import os
import signal
import sys

import modal_nomad as modal

app = modal.App("contract-calls")

@app.function(timeout=120)
def items(n):
    for x in range(n):
        yield x, os.getpid()

@app.function()
def square(x):
    return x * x

@app.function()
def total(n):
    return sum(square.map(range(n)))

if __name__ == "__main__":
    app.deploy()
    function = modal.Function.from_name("contract-calls", "items").hydrate()
    results = function.remote_gen(20_000)
    x, pid = next(results)
    os.kill(pid, signal.SIGKILL)
    numbers = [x] + [x for x, _ in results]
    assert numbers == list(range(20_000)), "an item was lost or came twice"
    # Left early: the slot is free for the next.
    for _ in function.remote_gen(10_000_000):
        break
    assert len(list(function.remote_gen(10))) == 10
    print(modal.Function.from_name("contract-calls", "square").experimental_spawn_map(range(50)).object_id)
    print(modal.Function.from_name("contract-calls", "total").spawn(5).object_id)
    print(function.spawn(300).object_id)
"""

READER = """
import sys

import modal_nomad as modal

squares, total, items = map(modal.FunctionCall.from_id, sys.argv[1:])
assert list(squares.iter()) == [x * x for x in range(50)] and squares.num_inputs() == 50
assert total.get(timeout=100) == 30
(root,) = total.get_call_graph()
assert (root.function_name, root.status.name) == ("total", "SUCCESS")
assert [x.function_name for x in root.children] == ["square"] * 5
assert [x for x, _ in items.get_gen()] == list(range(300))
print("read")
"""


@pytest.fixture(params=["local", "nomad"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    nomad = {"address": ""}
    if request.param == "nomad":
        nomad = {"address": request.getfixturevalue("nomad_address")}
    # Short: the embedded engine's sockets have short paths.
    folder = tmp_path_factory.mktemp("c")
    with dispatcher(folder, nomad, engine=request.param, auth="none") as url:
        yield url


def _python(folder: Path, url: str, text: str, *words: str) -> list[str]:
    file = folder / "contract_calls.py"
    file.write_text(text)
    done = run(url, file, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_calls(server: str, tmp_path: Path) -> None:
    ids = _python(tmp_path, server, CALLER)
    assert len(ids) == 3
    # Another process, another client, later.
    assert _python(tmp_path, server, READER, *ids) == ["read"]
