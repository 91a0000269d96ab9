"""docs/compatibility.md is true: its states and tests are real, and its signatures are the code's."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

import modal_nomad
from modal_nomad.cli._root import app as root

ROOT = Path(__file__).resolve().parents[2]
STATE = re.compile(r"works|present|not yet|not yet, issue \d+")
ROW = re.compile(r"\| (?P<number>\d{3}) \| `(?P<what>.+)` \| (?P<state>[^|]+) \| (?P<tests>.*)\|")
TESTS = re.compile(r"`(tests/[\w/]+\.py)`(?:, `(tests/[\w/]+\.py)`)*")
NAME = r"modal(?:\.\w+)+"
SIGNATURE = re.compile(
    rf"({NAME})\((?!\w+=(?:, \w+=)*\))(.*?)\)(?: \[[\w.]+\])*(?: decorator)?(?: \[S.*\])?(?: -> .*)?"
)
EXISTS = re.compile(rf"({NAME})(?: \[(?:class |property\]).*)?")
PARAMETERS = re.compile(rf"({NAME})\(((?:\w+=(?:, )?)+)\).*")
COMMAND = re.compile(r"CLI modal (.+)")


class Row(NamedTuple):
    number: int
    what: str
    state: str
    tests: str


def rows() -> list[Row]:
    lines = (ROOT / "docs/compatibility.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|") and line[2:3].isdigit()]
    found = []
    for line in table:
        match = ROW.fullmatch(line)
        assert match, f"no row: {line}"
        found.append(Row(int(match["number"]), match["what"], match["state"], match["tests"].strip()))
    return found


ROWS = rows()


def named(pattern: re.Pattern[str]) -> list[Any]:
    """The rows that a pattern fits, as parameters of a test."""
    found = [(row, pattern.fullmatch(row.what)) for row in ROWS]
    return [pytest.param(row, match, id=f"{row.number:03}") for row, match in found if match]


def test_rows_are_complete_and_in_order() -> None:
    assert [row.number for row in ROWS] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.number:03}") for row in ROWS])
def test_state_and_test(row: Row) -> None:
    assert STATE.fullmatch(row.state), f"the state of {row.what} is {row.state!r}"
    if row.state != "works":
        assert row.tests == "", f"{row.what} has a test but does not say that it works"
        return
    assert TESTS.fullmatch(row.tests), f"{row.what} works and names no test"
    for path in re.findall(r"`(.+?)`", row.tests):
        assert (ROOT / path).is_file(), f"{row.what} names {path}, which is not there"


def resolve(name: str) -> Any:
    """Return what stands at ``modal.…``, a submodule imported where it is one; None for nothing."""
    found: Any = modal_nomad
    path = "modal_nomad"
    for part in name.split(".")[1:]:
        path += "." + part
        if hasattr(found, "__path__") and importlib.util.find_spec(path) is not None:
            found = importlib.import_module(path)
        else:
            found = getattr(found, part, None)
        if found is None:
            return None
    return found


def same_default(theirs: Any, ours: Any) -> bool:
    # An empty list, dict or tuple says one thing, and None says it too where nothing is given.
    return theirs == ours or (not theirs and not ours and theirs is not False and ours is not False)


def differences(signature: str, ours: inspect.Signature) -> list[str]:
    """Say what a call as the reference writes it would meet otherwise here."""
    wanted = ast.parse(f"def f({signature}): ...").body[0].args  # type: ignore[attr-defined]
    have: Mapping[str, inspect.Parameter] = ours.parameters
    by_position = [name for name, p in have.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_position = by_position[by_position[:1] in (["self"], ["cls"]) :]
    anything = any(p.kind is p.VAR_KEYWORD for p in have.values())
    found = []
    positional = [argument.arg for argument in wanted.args]
    if wanted.vararg and not any(p.kind is p.VAR_POSITIONAL for p in have.values()):
        found.append(f"*{wanted.vararg.arg} is not taken")
    if positional != by_position[: len(positional)]:
        found.append(f"by position {positional}, here {by_position}")
    defaults: dict[str, ast.expr | None] = {
        **dict.fromkeys(positional),
        **dict(zip(positional[len(positional) - len(wanted.defaults) :], wanted.defaults, strict=True)),
        **{a.arg: d for a, d in zip(wanted.kwonlyargs, wanted.kw_defaults, strict=True)},
    }
    for name, default in defaults.items():
        if name not in have:
            if not anything:
                found.append(f"{name}= is not taken")
        elif default is not None:
            try:
                value = ast.literal_eval(default)
            except ValueError:
                continue
            if not same_default(value, have[name].default):
                found.append(f"{name}={value!r}, here {have[name].default!r}")
    return found


@pytest.mark.parametrize(("row", "match"), named(SIGNATURE))
def test_signatures_are_the_references(row: Row, match: re.Match[str]) -> None:
    found = resolve(match[1])
    if row.state.startswith("not yet"):
        assert found is None, f"{match[1]} exists: the row is at least 'present'"
        return
    assert found is not None, f"{match[1]} does not exist"
    wrong = differences(match[2], inspect.signature(found))
    assert wrong == [], f"{row.what}: {wrong}"


@pytest.mark.parametrize(("row", "match"), named(EXISTS))
def test_names_exist(row: Row, match: re.Match[str]) -> None:
    found = resolve(match[1])
    if row.state.startswith("not yet"):
        assert found is None, f"{match[1]} exists: the row is at least 'present'"
        return
    assert found is not None, f"{match[1]} does not exist"
    if "[property]" in row.what:
        assert not callable(found), f"{match[1]} is no property"


@pytest.mark.parametrize(("row", "match"), named(PARAMETERS))
def test_newer_parameters_exist(row: Row, match: re.Match[str]) -> None:
    found = resolve(match[1])
    names = re.findall(r"(\w+)=", match[2])
    taken = set(inspect.signature(found).parameters) if found is not None else set()
    if row.state.startswith("not yet"):
        assert not taken.issuperset(names), f"{row.what} is taken: the row is at least 'present'"
    else:
        assert taken.issuperset(names), f"{row.what} is not taken"


def command(words: str) -> Any:
    found = typer.main.get_command(root)
    context = found.make_context("modal-nomad", ["--no-such"], resilient_parsing=True)
    for word in words.split():
        found = found.get_command(context, word) if hasattr(found, "get_command") else None
        if found is None:
            return None
    return found


@pytest.mark.parametrize(("row", "match"), named(COMMAND))
def test_commands_exist(row: Row, match: re.Match[str]) -> None:
    exists = command(match[1]) is not None
    assert exists is not row.state.startswith("not yet"), f"{row.what} is {row.state!r}"
