"""Requests with arguments of any kind: each is answered in one line, none troubles anybody else."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _served import Raw, Served
from hypothesis import given, settings
from hypothesis import strategies as st

from modal_nomad.dispatcher import _requests
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.spec import FunctionSpec, ImageSpec

METHODS = sorted(set(_requests._METHODS) - {"server.stop"})
PLACES = ("<app>", "<function>", "<call>", "<finished>")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # A Unix socket's path must be short, which pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as home:
        yield Path(home)


class Target:
    """A dispatcher with an App, a Function, a call that waits and one that is done."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.client = served.client()
        self.app, self.function, job = served.function(self.client)
        self.call, self.finished = new_id("fc"), new_id("fc")
        for number, call in enumerate((self.finished, self.call)):
            header = {"t": "in", "c": call, "f": self.function, "x": [0], "d": 1, "i": 1000 + number}
            self.client.send(header, [b"in"])
            self.client.take("rs")
        worker = served.worker(job)
        lease = worker.take("run")[0]["x"][0]
        worker.send({"t": "done", "x": [lease], "d": 0.1}, [b"out"])
        assert self.client.request("call.get", {"call_id": self.finished})["v"]["done"]
        worker.socket.close()

    def real(self, value: Any) -> Any:
        """Put real ids where a generated value names a place."""
        if isinstance(value, str) and value in PLACES:
            return dict(zip(PLACES, (self.app, self.function, self.call, self.finished), strict=True))[value]
        if isinstance(value, list):
            return [self.real(x) for x in value]
        if isinstance(value, dict):
            return {k: self.real(v) for k, v in value.items()}
        return value


@pytest.fixture(scope="module")
def target(home: Path) -> Iterator[Target]:
    with Served(home).running() as served:
        target = Target(served)
        yield target
        target.client.socket.close()


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**53, 2**63, 2**64, 10**30, "", "\x00", "a" * 300, "deployed", "ephemeral", "f"])
    | st.sampled_from(PLACES)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def _fields(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _mutated(base: dict[str, Any], names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    changes = st.dictionaries(st.sampled_from(names), _json, max_size=3)
    return changes.map(lambda change: {**base, **change})


_task = {"Name": "container", "Driver": "raw_exec", "Config": {"command": "/bin/true", "args": []}}
_spec = FunctionSpec(app="a", name="f", module="m", qualname="f").to_dict()
_images = _mutated(_spec["image"], _fields(ImageSpec))
_specs = st.builds(
    lambda spec, image: {**spec, **({"image": image} if isinstance(spec.get("image"), dict) else {})},
    _mutated(_spec, _fields(FunctionSpec)),
    _images,
)
_tasks = _mutated(
    _task, ["Name", "Driver", "Config", "Env", "Artifacts", "Resources", "KillTimeout", "Meta", "LogConfig"]
)
_groups = st.builds(
    lambda group, task: {**group, **({"Tasks": [task]} if group.get("Tasks") == [_task] else {})},
    _mutated({"Name": "container", "Tasks": [_task]}, ["Name", "Tasks", "Count", "Meta", "EphemeralDisk"]),
    _tasks,
)
_jobs = st.builds(
    lambda job, group: {**job, **({"TaskGroups": [group]} if job.get("TaskGroups") is None else {})},
    _mutated(
        {"ID": "job", "Type": "batch", "ParameterizedJob": {}, "TaskGroups": None},
        ["ID", "Name", "Type", "Namespace", "ParameterizedJob", "Meta", "TaskGroups", "Datacenters"],
    ),
    _groups,
)
_entries = st.fixed_dictionaries({"spec": _specs | _json, "job": _jobs | _json}) | _json
_names = st.sampled_from(
    ["app", "app_id", "name", "environment", "state", "hashes", "call_id", "function_id", "index", "start",
     "limit", "timeout", "tag", "description", "backlog", "create_if_missing", "settings", "params",
     "options", "terminate_containers", "client_version", "method", "spec", "job"]
)  # fmt: skip
_args = st.builds(
    lambda args, functions: {**args, "functions": functions},
    st.dictionaries(_names, _json | st.sampled_from(PLACES), max_size=7),
    st.lists(_entries, max_size=2) | _json,
)
_words = st.sampled_from(["tag", "description", "client_version", "environment"])
_publications = st.builds(
    lambda state, name, entries, more: {"state": state, "name": name, "functions": entries, **more},
    st.sampled_from(["deployed", "ephemeral", "detached"]),
    st.sampled_from(["one", "two"]),
    st.lists(st.fixed_dictionaries({"spec": _specs, "job": _jobs}), min_size=1, max_size=2),
    st.dictionaries(
        st.sampled_from(["tag", "description", "client_version", "environment"]), _json, max_size=2
    ),
)


def _sound(served: Served, client: Raw) -> None:
    assert client.request("server.status", {})["v"]["pid"]
    assert not served.complaints.texts, served.complaints.texts[-1]


@settings(max_examples=80, deadline=None, database=None)
@given(requests=st.lists(st.tuples(st.sampled_from(METHODS), _args | _json), min_size=1, max_size=4))
def test_any_arguments(target: Target, requests: list[tuple[str, Any]]) -> None:
    client = target.served.client()
    with contextlib.closing(client.socket):
        for method, args in requests:
            # Not waited for: some of them wait, as they should, for a call that does not end.
            client.send({"t": "rq", "i": 0, "m": method, "a": target.real(args)})
        _sound(target.served, client)


@settings(max_examples=60, deadline=None, database=None)
@given(args=_publications)
def test_publications_of_odd_functions(target: Target, args: dict[str, Any]) -> None:
    client = target.served.client()
    with contextlib.closing(client.socket):
        answer = client.request("app.publish", args)
        if "e" in answer:
            kind, text = answer["e"]
            assert kind not in ("InternalFailure",) and text and "\n" not in text, answer
        _sound(target.served, client)


def test_what_was_accepted_does_not_stop_the_next_start(target: Target, home: Path) -> None:
    # The same store, by way of a copy: the first dispatcher still has it open.
    with tempfile.TemporaryDirectory(prefix="mn-", dir="/tmp") as again:
        target.served.do(_copy(target.served, Path(again) / "store.db"))
        with Served(Path(again)).running() as served:
            client = served.client()
            _sound(served, client)
            client.socket.close()


async def _copy(served: Served, path: Path) -> None:
    await served.store._write(lambda db: None)
    import sqlite3

    with sqlite3.connect(served.store.path) as source, sqlite3.connect(path) as target:
        source.backup(target)
    source.close()
    target.close()
