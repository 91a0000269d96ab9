"""References: how they are read, what they import, which runnable they mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modal_nomad.cli import _import_ref as refs
from modal_nomad.cli._errors import CommandError, UsageError, UserCodeError

APP = """
import modal_nomad as modal
app = modal.App("one")
other = modal.App("two")

@app.function()
def f(x): return x

@app.function()
def g(x): return x
"""
ENTRYPOINT = """
@app.local_entrypoint()
def main(): pass
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith("modal_nomad"):
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "an_app.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def choose(reference: str) -> refs.Runnable:
    ref = refs.parse_ref(reference)
    module = refs.import_target(ref)
    return refs.choose_runnable(refs.find_apps(module), ref, vars(module))


def test_a_file_is_run_from_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for value in ("1", "2"):
        path = write(tmp_path, f"value = {value}\n")
        # Saved twice within what a file's time tells apart.
        os.utime(path, (1, 1))
        assert str(refs.import_target(refs.parse_ref(path)).value) == value
        del sys.modules["an_app"]


def test_parse() -> None:
    assert refs.parse_ref("a/b.py::app.f") == refs.ImportRef("a/b.py", "app.f")
    assert refs.parse_ref("pkg.mod::f", True) == refs.ImportRef("pkg.mod", "f", True)


@pytest.mark.parametrize(
    "text, words",
    [("a.py:f", "Did you mean 'a.py::f'?"), ("a.py::", "must follow"), ("::f", "before")],
)
def test_parse_errors(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("?", r"\?")):
        refs.parse_ref(text)


@pytest.mark.parametrize(
    "name, words", [("absent.py", "no such file"), ("notes.txt", "extension"), ("", "directory")]
)
def test_wrong_file(tmp_path: Path, name: str, words: str) -> None:
    write(tmp_path, "", "notes.txt")
    with pytest.raises(UsageError, match=words):
        refs.import_target(refs.parse_ref(str(tmp_path / name)))


def test_module_is_imported_under_its_stem_beside_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "VALUE = 3", "a_neighbour.py")
    path = write(tmp_path, "import a_neighbour\nassert __name__ == 'an_app'\nV = a_neighbour.VALUE")
    module = refs.import_target(refs.parse_ref(path))
    assert module.V == 3 and sys.modules["an_app"] is module


def test_failing_import_is_the_users_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError) as caught:
        refs.import_target(refs.parse_ref(write(tmp_path, "1 / 0")))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "an_app" not in sys.modules


def test_dotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a_pkg").mkdir()
    write(tmp_path / "a_pkg", "", "__init__.py")
    write(tmp_path / "a_pkg", APP)
    monkeypatch.chdir(tmp_path)
    assert "app" in refs.find_apps(refs.import_target(refs.parse_ref("a_pkg.an_app", True)))
    # As programs of before -m write it.
    assert "app" in refs.find_apps(refs.import_target(refs.parse_ref("a_pkg.an_app", False)))
    assert "write '-m a_pkg.an_app'" in capsys.readouterr().err
    for name in ("a_pkg.absent", "absent_pkg.x"):
        with pytest.raises(UsageError, match="no"):
            refs.import_target(refs.parse_ref(name, True))


@pytest.mark.parametrize("name", ["f", "app.f"])
def test_exact_names(tmp_path: Path, name: str) -> None:
    assert choose(write(tmp_path, APP + ENTRYPOINT) + "::" + name).names == ("f", "app.f")


def test_single_entrypoint_wins(tmp_path: Path) -> None:
    assert choose(write(tmp_path, APP + ENTRYPOINT)).is_entrypoint
    assert choose(write(tmp_path, APP + ENTRYPOINT) + "::app").is_entrypoint


def test_several_are_listed_with_all_their_names(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"f / app\.f\n  g / app\.g") as caught:
        choose(write(tmp_path, APP))
    assert caught.value.code == 1


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing named 'h'"):
        choose(write(tmp_path, APP) + "::h")


def test_no_app_and_empty_app(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="defines no App"):
        choose(write(tmp_path, "x = 1"))
    with pytest.raises(UsageError, match="no function"):
        choose(write(tmp_path, "import modal_nomad\napp = modal_nomad.App()"))


def test_choose_app(tmp_path: Path) -> None:
    path = write(tmp_path, APP)
    module = refs.import_target(refs.parse_ref(path))
    assert refs.choose_app(module, refs.parse_ref(path)) is module.app
    assert refs.choose_app(module, refs.parse_ref(path + "::other")) is module.other
    with pytest.raises(UsageError, match="is not a Modal App"):
        refs.choose_app(module, refs.parse_ref(path + "::f"))
    with pytest.raises(UsageError, match="no App named 'absent'"):
        refs.choose_app(module, refs.parse_ref(path + "::absent"))


def test_methods_are_runnables_and_classes_a_prefix(tmp_path: Path) -> None:
    text = """
import modal_nomad as modal
app = modal.App("one")

@app.cls()
class Model:
    @modal.method()
    def a(self, x: int) -> None: ...

    @modal.method()
    def b(self) -> None: ...

@app.cls()
class Single:
    size: int = modal.parameter(default=1)

    @modal.method()
    def only(self, size: int) -> None: ...

Other = Model.with_options(timeout=3)
"""
    path = write(tmp_path, text)
    assert choose(f"{path}::Model.a").label == "Model.a / app.Model.a"
    assert choose(f"{path}::app.Single").label == "Single.only / app.Single.only"
    assert choose(f"{path}::Other.b").label == "Other.b"
    with pytest.raises(CommandError, match="several things to run"):
        choose(f"{path}::Model")
    with pytest.raises(CommandError, match="'size' is a parameter of the method and of its class"):
        choose(f"{path}::Single").target.get_raw_f()
