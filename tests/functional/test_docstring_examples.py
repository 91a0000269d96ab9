"""The examples in docstrings, run as a session at the prompt would run them, on a real dispatcher.

Each begins with the public names, ``modal`` (the package) and ``Path``; with ``app``, an App that is not
running, of the Image ``image`` and with the Function ``square``; in an empty folder of its own. An example
that needs what is not here says ``# doctest: +SKIP`` at its lines.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Live

import modal_nomad

PACKAGE = Path(str(modal_nomad.__file__)).parent
FOLDERS = ("", "wire")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
PRELUDE = """
image = Image.debian_slim()
app = App("example", image=image)

@app.function()
def square(x):
    return x * x
"""


def examples() -> list[Any]:
    """Return every docstring with an example, read from the sources: decorators may hide it otherwise."""
    found = []
    for folder in FOLDERS:
        for path in sorted((PACKAGE / folder).glob("*.py")):
            words = path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
            module = words.removesuffix(".__init__")
            for name, text in _docstrings(ast.parse(path.read_text()), module):
                if ">>>" in text:
                    found.append(pytest.param(module, text, id=name))
    return found


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, DEFINITIONS):
        yield name, ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        own = getattr(child, "name", "") if isinstance(child, DEFINITIONS) else ""
        yield from _docstrings(child, f"{name}.{own}" if own else name)


@pytest.mark.parametrize(("module", "text"), examples())
def test_example(live: Live, monkeypatch: pytest.MonkeyPatch, module: str, text: str) -> None:
    # What is defined here travels as itself, as from a prompt.
    session = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", session)
    monkeypatch.chdir(live.folder)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(live.folder / "modal.toml"))
    names = vars(importlib.import_module(module))
    session.__dict__.update((name, value) for name, value in names.items() if not name.startswith("__"))
    session.__dict__.update((name, getattr(modal_nomad, name)) for name in modal_nomad.__all__)
    session.__dict__.update(modal=modal_nomad, Path=Path)
    exec(PRELUDE, session.__dict__)
    test = doctest.DocTestParser().get_doctest(text, session.__dict__, module, None, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    before = _deployed(live)
    try:
        runner.run(test, out=said.append, clear_globs=False)
    finally:
        # An example may have configured another server.
        monkeypatch.setenv("MODAL_CONFIG_PATH", str(live.folder / "none.toml"))
        for app_id in _deployed(live) - before:
            live.request("app.stop", app_id=app_id)
    assert not said, "".join(said)


def _deployed(live: Live) -> set[str]:
    return {app["app_id"] for app in live.request("app.list")["apps"] if app["state"] == "deployed"}


def test_examples_are_found() -> None:
    found = {parameters.id for parameters in examples()}
    assert {"modal_nomad", "modal_nomad.app.App.run", "modal_nomad.image.Image.from_id"} <= found


def test_a_wrong_example_fails(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ">>> with app.run():\n...     square.remote(3)\n10\n"
    with pytest.raises(AssertionError, match=r"Expected:\n +10\n *Got:\n +9"):
        test_example(live, monkeypatch, "modal_nomad.app", text)
