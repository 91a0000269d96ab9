"""Finding the user's code and making one deterministic zip of it."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from modal_nomad import _automount
from modal_nomad._function_info import FunctionInfo, function_info
from modal_nomad.exception import InvalidError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script `amscript` that imports `ampkg.sub.mod` and `amhelper`, imported as a module."""
    (tmp_path / "ampkg" / "sub").mkdir(parents=True)
    sources = {
        "ampkg/__init__.py": "",
        "ampkg/unused.py": "",
        "ampkg/data.json": "{}",
        "ampkg/sub/__init__.py": "",
        "ampkg/sub/mod.py": "def f(): ...\n",
        "amhelper.py": "X = 1\n",
        "amscript.py": "import json, amhelper\nfrom ampkg.sub.mod import f\ndef g(): ...\n",
        "amother.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    import amscript  # noqa: F401

    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _names(info: FunctionInfo, automount: bool) -> list[str]:
    bundle = _automount.bundle([info], automount)
    assert bundle is not None
    assert hashlib.sha256(bundle.data).hexdigest() == bundle.sha256
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert names == sorted(names) == list(bundle.names)
    return names


def test_own_module_only(project: Path) -> None:
    info = function_info(sys.modules["amscript"].g)
    assert (info.module, info.qualname, info.file) == (
        "amscript",
        "g",
        os.path.realpath(project / "amscript.py"),
    )
    assert _names(info, automount=False) == ["amscript.py"]


def test_the_whole_package_comes_along(project: Path) -> None:
    info = function_info(sys.modules["ampkg.sub.mod"].f)
    assert _names(info, automount=False) == [
        "ampkg/__init__.py",
        "ampkg/sub/__init__.py",
        "ampkg/sub/mod.py",
        "ampkg/unused.py",
    ]
    bundle = _automount.bundle([info], False)
    assert bundle is not None
    assert bundle.file_of("ampkg.sub.mod") == "ampkg/sub/mod.py"
    assert bundle.file_of("ampkg.sub") == "ampkg/sub/__init__.py"
    assert bundle.file_of("json") is None


def test_local_imports_come_along_installed_ones_do_not(project: Path) -> None:
    names = _names(function_info(sys.modules["amscript"].g), automount=True)
    assert {"amscript.py", "amhelper.py", "ampkg/sub/mod.py"} <= set(names)
    assert "amother.py" not in names
    tops = {name.split("/")[0].removesuffix(".py") for name in names}
    assert not tops & {"json", "pytest", "_pytest", "modal_nomad", "cloudpickle", "os"}


def test_equal_sources_equal_bytes(project: Path) -> None:
    info = function_info(sys.modules["amscript"].g)
    first = _automount.bundle([info], False)
    os.utime(project / "amscript.py", (1, 1))
    second = _automount.bundle([info], False)
    (project / "amscript.py").write_text("def g(): return 2\n")
    third = _automount.bundle([info], False)
    assert first and second and third
    assert first.data == second.data and first.sha256 != third.sha256


def test_nothing_to_ship() -> None:
    assert _automount.bundle([function_info(lambda: 1, serialized=True)], automount=False) is None


SCRIPT = """
from modal_nomad._function_info import function_info
from modal_nomad import _automount
def g(): ...
info = function_info(g)
print(info.module, info.serialized, _automount.bundle([info]).names)
"""


@pytest.mark.parametrize(
    ("args", "stdin", "expected"),
    [
        (["foo.py"], "", "foo False ('foo.py',)"),
        (["-m", "pk.foo"], "", "pk.foo False ('pk/__init__.py', 'pk/foo.py')"),
        (["-"], SCRIPT.replace("_automount.bundle([info]).names", "info.file"), " True None"),
    ],
)
def test_main_modules(tmp_path: Path, args: list[str], stdin: str, expected: str) -> None:
    (tmp_path / "pk").mkdir()
    (tmp_path / "pk" / "__init__.py").write_text("")
    (tmp_path / "pk" / "foo.py").write_text(SCRIPT)
    (tmp_path / "foo.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *args], input=stdin, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.rstrip("\n") == expected, done.stderr


def test_function_kinds() -> None:
    async def coroutine(): ...
    async def async_generator():
        yield 1

    def generator():
        yield 1

    kinds = [function_info(f, serialized=True) for f in (coroutine, async_generator, generator)]
    assert [(k.is_async, k.is_generator) for k in kinds] == [(True, False), (True, True), (False, True)]
    assert function_info(lambda: iter(()), serialized=True, is_generator=True).is_generator
    assert function_info(lambda: 1, serialized=True).name == "lambda"


class Holder:
    def method(self) -> None: ...


def _local():
    def inner(): ...

    return inner


@pytest.mark.parametrize(
    ("raw_f", "error", "message"),
    [
        (_local(), InvalidError, "global scope"),
        (lambda: 1, InvalidError, "global scope"),
        (Holder, TypeError, "class Holder"),
        (Holder.method, InvalidError, "@app.cls"),
        (3, TypeError, "plain functions"),
        (staticmethod(_local), TypeError, "plain functions"),
    ],
)
def test_refused(raw_f, error, message: str) -> None:
    with pytest.raises(error, match=message):
        function_info(raw_f)


def test_what_sets_the_interpreter_up_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "usercustomize.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "usercustomize", raising=False)
    import usercustomize  # noqa: F401

    assert "usercustomize.py" not in _automount.local_modules()
    monkeypatch.delitem(sys.modules, "usercustomize")
