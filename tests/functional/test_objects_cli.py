"""The command groups for Dicts, Queues and environments."""

from __future__ import annotations

import json
import sys
import types
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal

ON_BOTH_STORES = True


def of_elsewhere(patch: pytest.MonkeyPatch) -> Any:
    """Return an object whose class the command line cannot import."""
    module = types.ModuleType("elsewhere")
    patch.setitem(sys.modules, "elsewhere", module)
    module.Kind = type("Kind", (), {"__module__": "elsewhere"})  # type: ignore[attr-defined]
    return module.Kind()  # type: ignore[attr-defined]


NOT_HERE = "<a value cannot be loaded: module 'elsewhere' is not installed here; add it to this side's"


def test_dict(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.cli("dict", "create", "d").returncode == 0
    again = own.cli("dict", "create", "d")
    assert again.returncode == 1 and "exists" in again.stderr and again.stderr.count("\n") == 1
    d = modal.Dict.from_name("d")
    d.update({"a": 1, "b": "two", "c": {3}})
    assert [x["Name"] for x in json.loads(own.cli("dict", "list", "--json").stdout)] == ["d"]
    assert own.cli("dict", "get", "d", "b").stdout == "two\n"
    missing = own.cli("dict", "get", "d", "z")
    assert missing.returncode == 1 and "no key 'z'" in missing.stderr
    assert own.cli("dict", "items", "d", "1").stdout.splitlines() == ["Key\tValue", "a\t1", "...\t..."]
    assert own.cli("dict", "items", "d", "--all", "-r").stdout.splitlines()[1:] == [
        "'a'\t1",
        "'b'\t'two'",
        "'c'\t{3}",
    ]
    shown = json.loads(own.cli("dict", "items", "d", "2", "--json").stdout)
    assert shown == [{"Key": "a", "Value": 1}, {"Key": "b", "Value": "two"}]
    d["e"], d["f"] = of_elsewhere(monkeypatch), "five"
    lines = own.cli("dict", "items", "d", "--all").stdout.splitlines()
    assert lines[4].startswith(f"e\t{NOT_HERE}") and lines[5] == "f\tfive"
    asked = own.cli("dict", "clear", "d")
    assert asked.returncode == 1 and d.len() == 5
    assert own.cli("dict", "clear", "d", "-y").returncode == 0 and d.len() == 0
    assert own.cli("dict", "delete", "d", "--yes").returncode == 0
    gone = own.cli("dict", "delete", "d", "--yes")
    assert gone.returncode == 1 and "not found" in gone.stderr and gone.stderr.count("\n") == 1


def test_queue(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.cli("queue", "create", "q", "--env", "dev").returncode == 0
    q = modal.Queue.from_name("q", environment_name="dev")
    q.put_many(["x", "y"])
    q.put("z", partition="p")
    q.put_many([of_elsewhere(monkeypatch), "last"], partition="p")
    env = ("--env", "dev")
    assert own.cli("queue", "list").stdout.count("\n") == 1
    assert [x["Name"] for x in json.loads(own.cli("queue", "list", "--json", *env).stdout)] == ["q"]
    assert own.cli("queue", "peek", "q", *env).stdout == "x\n"
    assert own.cli("queue", "peek", "q", "5", *env).stdout == "x\ny\n"
    lines = own.cli("queue", "peek", "q", "9", "-p", "p", *env).stdout.splitlines()
    assert lines[0] == "z" and lines[1].startswith(NOT_HERE) and lines[2] == "last"
    assert own.cli("queue", "len", "q", *env).stdout == "2\n"
    assert own.cli("queue", "len", "q", "--total", *env).stdout == "5\n"
    both = own.cli("queue", "len", "q", "-t", "-p", "p", *env)
    assert both.returncode == 1 and "not both" in both.stderr
    assert own.cli("queue", "clear", "q", "-y", *env).returncode == 0 and q.len(total=True) == 3
    assert own.cli("queue", "clear", "q", "-a", "-y", *env).returncode == 0 and q.len(total=True) == 0
    assert own.cli("queue", "delete", "q", "-y", *env).returncode == 0
    assert own.cli("queue", "len", "q", *env).returncode == 1


def test_environment(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.cli("environment", "create", "dev").returncode == 0
    assert own.cli("environment", "create", "dev").returncode == 1
    bad = own.cli("environment", "create", ".dev")
    assert bad.returncode == 1 and "first one a letter or a digit" in bad.stderr
    modal.Dict.from_name("d", {"a": 1}, environment_name="dev", create_if_missing=True).hydrate()
    assert own.cli("environment", "update", "dev").returncode == 2
    changed = own.cli("environment", "update", "dev", "--set-name", "test", "--set-web-suffix", "t")
    assert changed.returncode == 0, changed.stderr
    monkeypatch.setenv("MODAL_ENVIRONMENT", "test")
    assert modal.Dict.from_name("d")["a"] == 1
    listed = json.loads(own.cli("environment", "list", "--json").stdout)
    assert [(x["name"], x["web suffix"], x["active"]) for x in listed] == [
        ("main", "", False),
        ("test", "t", True),
    ]
    assert own.cli("environment", "delete", "test").returncode == 1
    assert own.cli("environment", "delete", "test", "--confirm").returncode == 0
    missing = own.cli("environment", "delete", "test", "--yes")
    assert missing.returncode == 1 and "environment list" in missing.stderr
    kept = own.cli("environment", "delete", "main", "--confirm")
    assert kept.returncode == 1 and "default" in kept.stderr
