"""Who called whom, as the reference shows it: trees of ``InputInfo`` with an ``InputStatus``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.call_graph import InputInfo, InputStatus

SCRIPT = """
import os
import time

import modal

app = modal.App("graphs")

@app.function()
def leaf(x):
    if x < 0:
        raise ValueError(x)
    return x

@app.function()
def wait(path):
    while not os.path.exists(path):
        time.sleep(0.005)

@app.function(max_containers=8)
def middle(x):
    return sum(leaf.map(range(x))) + leaf.remote(x)

@app.function()
def top(folder):
    middle.remote(2)
    call = middle.spawn(1)
    call.get()
    try:
        leaf.remote(-1)
    except ValueError:
        pass
    leaf.spawn_map([7, 8])
    wait.remote(folder + "/go")
    return "done"

@app.function()
def deep(n):
    return 0 if n == 0 else 1 + deep.remote(n - 1)

@app.function()
def itself(n):
    sum(leaf.map(range(n)))
    call = modal.FunctionCall.from_id(modal.current_function_call_id())
    (root,) = call.get_call_graph()
    assert root.input_id == modal.current_input_id()
    return root.status.name, root.function_name, [c.status.name for c in root.children]

@app.cls()
class Model:
    @modal.method()
    def run(self, x):
        return sum(self.parts.remote_gen(x)) + leaf.remote(x)

    @modal.method()
    def parts(self, x):
        yield from range(x)

@app.function()
def many(calls, inputs):
    for _ in range(calls):
        leaf.for_each(range(inputs))
"""


@pytest.fixture
def deployed(live: Live) -> Iterator[None]:
    done = live.cli("deploy", str(live.write("graphs.py", SCRIPT)))
    assert done.returncode == 0, done.stderr
    yield
    live.cli("app", "stop", "graphs")


def function(name: str) -> Any:
    return modal.Function.from_name("graphs", name)


def shape(infos: list[InputInfo]) -> list[Any]:
    return [(x.function_name, x.status.name, shape(x.children)) for x in infos]


LEAF = ("leaf", "SUCCESS", [])


def test_a_graph_of_every_kind_of_call(deployed: None, live: Live) -> None:
    call = function("top").spawn(str(live.folder))

    def waiting() -> Any:
        (root,) = call.get_call_graph()
        last = root.children[-1] if root.children else None
        return root if last is not None and last.function_name == "wait" and last.task_id else None

    root = until(waiting, what="the last call")
    assert isinstance(root, InputInfo) and root.status is InputStatus.PENDING
    assert (root.function_call_id, root.input_id) == (call.object_id, f"in-{call.object_id[3:]}:0")
    assert (root.function_name, root.module_name) == ("top", "graphs") and root.task_id.startswith("ta-")
    assert root.children[-1].status is InputStatus.PENDING
    (live.folder / "go").touch()
    assert call.get(timeout=100) == "done"

    def done() -> Any:
        graph = call.get_call_graph()
        return graph if shape(graph)[0][2][-1][1] == "SUCCESS" else None

    (root,) = until(done, what="the last row")
    assert shape([root]) == [
        (
            "top",
            "SUCCESS",
            [
                ("middle", "SUCCESS", [LEAF, LEAF, LEAF]),
                ("middle", "SUCCESS", [LEAF, LEAF]),
                ("leaf", "FAILURE", []),
                LEAF,
                LEAF,
                ("wait", "SUCCESS", []),
            ],
        )
    ]
    middle = root.children[0]
    first, second, third = middle.children
    # Two inputs of one map, then a call of its own.
    assert first.function_call_id == second.function_call_id != third.function_call_id
    assert [x.input_id.rpartition(":")[2] for x in (first, second, third)] == ["0", "1", "0"]
    assert all(x.task_id.startswith("ta-") for x in (middle, first, second, third))
    # A part of the graph, from its own call.
    spawned = root.children[1]
    assert shape(modal.FunctionCall.from_id(spawned.function_call_id).get_call_graph()) == [
        ("middle", "SUCCESS", [LEAF, LEAF])
    ]


def test_calls_of_calls_at_any_depth(deployed: None) -> None:
    call = function("deep").spawn(6)
    assert call.get(timeout=100) == 6

    def whole() -> list[InputStatus]:
        infos, statuses = call.get_call_graph(), []
        while infos:
            (info,) = infos
            statuses.append(info.status)
            infos = info.children
        return statuses

    until(lambda: whole() == [InputStatus.SUCCESS] * 7, what="seven nodes")


def test_a_call_that_nobody_spawned_sees_its_own_graph(deployed: None) -> None:
    assert function("itself").remote(3) == ("PENDING", "itself", ["SUCCESS"] * 3)


def test_methods_and_generators_are_named(deployed: None) -> None:
    call = modal.Cls.from_name("graphs", "Model")().run.spawn(4)
    assert call.get(timeout=100) == 10
    nodes = [("Model.parts", "SUCCESS", []), LEAF]
    until(lambda: shape(call.get_call_graph()) == [("Model.run", "SUCCESS", nodes)], what="the graph")


def test_a_large_graph(deployed: None) -> None:
    call = function("many").spawn(10, 300)
    call.get(timeout=100)
    until(lambda: len(call.get_call_graph()[0].children) == 3000, what="3,000 nodes")
    (root,) = call.get_call_graph()
    assert {x.status for x in root.children} == {InputStatus.SUCCESS}


def test_cancelled_calls(deployed: None, live: Live) -> None:
    call = function("wait").experimental_spawn_map([str(live.folder / "a"), str(live.folder / "b")])
    call.cancel()
    until(lambda: {x.status.name for x in call.get_call_graph()} == {"TERMINATED"}, what="the statuses")


def test_an_unknown_call(live: Live) -> None:
    with pytest.raises(exception.NotFoundError, match="fc-unknown"):
        modal.FunctionCall.from_id("fc-unknown").get_call_graph()


def test_a_graph_survives_a_killed_dispatcher(own: Live) -> None:
    done = own.cli("deploy", str(own.write("graphs.py", SCRIPT)))
    assert done.returncode == 0, done.stderr
    call = function("top").spawn(str(own.folder))

    def waits() -> bool:
        (root,) = call.get_call_graph()
        return bool(root.children) and root.children[-1].function_name == "wait"

    until(waits, what="the last call")
    own.kill()
    (own.folder / "go").touch()
    assert call.get(timeout=100) == "done"
    names = [x.function_name for x in call.get_call_graph()[0].children]
    # The input runs again after the loss, and then its calls are there twice.
    assert names[:6] == ["middle", "middle", "leaf", "leaf", "leaf", "wait"]
    assert own.cli("app", "stop", "graphs").returncode == 0
