"""Mounts and the older ``copy_...`` steps of an Image: which files they take, and where these go."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad._image_files import mounted, walk
from modal_nomad.exception import DeprecationError, InvalidError, ModuleNotMountable
from modal_nomad.file_pattern_matcher import FilePatternMatcher
from modal_nomad.runner import function_specs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.txt", "b.py", "sub/c.txt", "sub/deep/d.txt", ".venv/e.txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


def old(make: Callable[[], Any]) -> Any:
    """Make something the old way: each step warns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    assert caught and all(x.category is DeprecationError and x.filename == __file__ for x in caught)
    return made


def paths(mount: modal.Mount) -> list[str]:
    return [file.path for file in mounted(mount._wishes)[0]]


def copied(image: modal.Image) -> list[str]:
    return [file.path for file in image._resolve()[0].files]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, ["/tree/.venv/e.txt", "/tree/a.txt", "/tree/b.py", "/tree/sub/c.txt", "/tree/sub/deep/d.txt"]),
        ({"recursive": False, "remote_path": "/x"}, ["/x/a.txt", "/x/b.py"]),
        ({"remote_path": "x/y", "recursive": False}, ["/x/y/a.txt", "/x/y/b.py"]),
        (
            {"remote_path": "/", "condition": lambda path: ".venv" not in path},
            ["/a.txt", "/b.py", "/sub/c.txt", "/sub/deep/d.txt"],
        ),
    ],
)
def test_a_directory(tree: Path, options: dict[str, Any], found: list[str]) -> None:
    assert paths(old(lambda: modal.Mount.from_local_dir(tree, **options))) == found


def test_the_condition_gets_local_paths(tree: Path) -> None:
    seen: list[str] = []
    paths(old(lambda: modal.Mount.from_local_dir(str(tree), condition=lambda path: bool(seen.append(path)))))
    assert str(tree / "sub/c.txt") in seen


def test_files_and_directories_add_up(tree: Path) -> None:
    mount = old(lambda: modal.Mount.from_local_file(tree / "a.txt", "/etc/words"))
    more = old(lambda: mount.add_local_file(tree / "b.py").add_local_dir(tree / "sub", remote_path="/sub"))
    assert paths(mount) == ["/etc/words"]
    assert paths(more) == ["/b.py", "/etc/words", "/sub/c.txt", "/sub/deep/d.txt"]


def test_python_packages(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tree.parent / "mn_mount_package"
    package.mkdir()
    for name in ("__init__.py", "data.json", "_secret.py", ".hidden", "old.pyc"):
        (package / name).write_text("")
    (tree.parent / "mn_mount_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tree.parent))
    of = modal.Mount.from_local_python_packages
    names = ("mn_mount_package", "mn_mount_module")
    base = "/root/mn_mount_package/"
    assert paths(old(lambda: of(*names))) == [
        "/root/mn_mount_module.py",
        *(base + x for x in ("__init__.py", "_secret.py", "data.json")),
    ]
    assert paths(old(lambda: of(names[0], ignore=["*.json"], remote_dir="/x"))) == [
        "/x/mn_mount_package/__init__.py",
        "/x/mn_mount_package/_secret.py",
    ]
    assert paths(old(lambda: of(names[0], condition=lambda path: path.endswith(".json")))) == [
        base + "data.json"
    ]
    with pytest.raises(InvalidError, match="not both"):
        old(lambda: of(names[0], ignore=[], condition=str.isascii))
    with pytest.raises(ModuleNotMountable, match="mn_absent"):
        paths(old(lambda: of("mn_absent")))


def test_the_warning_points_at_the_users_line(tree: Path) -> None:
    with pytest.warns(DeprecationError, match=r"use Image\.add_local_file") as caught:
        line = sys._getframe().f_lineno + 1
        mount = modal.Mount.from_local_file(tree / "a.txt")
    assert [(x.filename, x.lineno) for x in caught] == [(__file__, line)]
    app = modal.App("mounts")
    with pytest.warns(DeprecationError, match="'mounts' of a Function") as caught:
        line = sys._getframe().f_lineno + 1
        app.function(serialized=True, name="f", mounts=[mount])(lambda: 1)
    assert [(x.filename, x.lineno) for x in caught] == [(__file__, line)]


def test_mounts_of_apps_functions_and_classes(tree: Path) -> None:
    def define() -> modal.App:
        of_app = modal.Mount.from_local_file(tree / "a.txt", "/one")
        own = modal.Mount.from_local_file(tree / "b.py", "/one").add_local_file(tree / "b.py", "/two")
        image = modal.Image.debian_slim().add_local_file(tree / "a.txt", "/of-image")
        app = modal.App("mounts", image=image, mounts=[of_app])
        app.function(serialized=True, name="plain")(lambda: 1)
        app.function(serialized=True, name="own", mounts=[own])(lambda: 1)

        @app.cls(serialized=True, mounts=(own,))
        class Reader:
            @modal.method()
            def read(self) -> None: ...

        return app

    specs, contents = function_specs(old(define), "mounts")
    files = {spec.name: {x.path: x.blob for x in spec.image.files} for spec in specs}
    assert {name: sorted(found) for name, found in files.items()} == {
        "plain": ["/of-image", "/one"],
        "own": ["/of-image", "/one", "/two"],
        "Reader.*": ["/of-image", "/one", "/two"],
    }
    # A Function's own come last, and win.
    assert files["own"]["/one"] == files["own"]["/two"] != files["plain"]["/one"]
    assert {sha for found in files.values() for sha in found.values()} <= set(contents)
    assert len({spec.env["MODAL_IMAGE_ID"] for spec in specs}) == 1


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda image, tree: image.copy_local_file(tree / "a.txt"), ["/a.txt"]),
        (lambda image, tree: image.copy_local_file(tree / "a.txt", "x/"), ["/x/a.txt"]),
        (lambda image, tree: image.copy_local_file(tree / "a.txt", "/x/b.txt"), ["/x/b.txt"]),
        (lambda image, tree: image.workdir("/w").copy_local_file(tree / "a.txt"), ["/w/a.txt"]),
        (lambda image, tree: image.workdir("/w").copy_local_file(tree / "a.txt", "b"), ["/w/b"]),
        (lambda image, tree: image.copy_local_dir(tree / "sub", "/x"), ["/x/c.txt", "/x/deep/d.txt"]),
        (lambda image, tree: image.copy_local_dir(tree / "sub", ignore=["deep"]), ["/c.txt"]),
        (
            lambda image, tree: image.copy_mount(
                modal.Mount.from_local_dir(tree / "sub", remote_path="/"), "/s"
            ),
            ["/s/c.txt", "/s/deep/d.txt"],
        ),
        (
            lambda image, tree: image.workdir("/w").copy_mount(modal.Mount.from_local_file(tree / "a.txt")),
            ["/w/a.txt"],
        ),
    ],
)
def test_copy_steps(tree: Path, make: Callable[[modal.Image, Path], modal.Image], found: list[str]) -> None:
    assert copied(old(lambda: make(modal.Image.debian_slim(), tree))) == found


def test_what_is_refused(tree: Path) -> None:
    image = modal.Image.debian_slim()
    with pytest.raises(InvalidError, match=r"modal\.Mount"):
        old(lambda: image.copy_mount("x"))  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="mounts of App"):
        modal.App("x", mounts=["x"])  # type: ignore[list-item]
    with pytest.raises(InvalidError, match="condition is 'x'"):
        old(lambda: modal.Mount.from_local_dir(tree, condition="x"))  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="cannot be passed on"):
        pickle.dumps(old(lambda: modal.Mount.from_local_dir(tree)))
    with pytest.raises(FileNotFoundError, match="absent"):
        paths(old(lambda: modal.Mount.from_local_dir(tree / "absent")))


@pytest.mark.parametrize(
    ("matcher", "looks_into"),
    [
        (FilePatternMatcher("sub"), False),
        (FilePatternMatcher("sub", "!sub/deep/d.txt"), True),
        (~FilePatternMatcher("a.txt"), True),
        (lambda path: path.parts[0] == "sub", True),
    ],
)
def test_directories_that_are_left_out_are_not_looked_into(
    tree: Path, matcher: Any, looks_into: bool
) -> None:
    asked: list[str] = []

    class Watched(FilePatternMatcher):
        def __call__(self, path: Any) -> bool:
            asked.append(path.as_posix())
            return bool(matcher(path))

        def can_prune_directories(self) -> bool:
            return getattr(matcher, "can_prune_directories", lambda: False)()

    found = [file.place for file in walk(tree, "/", Watched())]
    assert ("sub/c.txt" in asked) is looks_into
    assert [x for x in found if not matcher(Path(x).relative_to("/"))] == found


def test_patterns_of_a_file_say_late_whether_directories_can_be_left_out(tmp_path: Path) -> None:
    matcher = FilePatternMatcher.from_file(tmp_path / "ignore")
    (tmp_path / "ignore").write_text("sub\n!sub/keep\n")
    assert matcher.can_prune_directories() is False


def test_what_lies_in_a_directory_besides_files(tree: Path) -> None:
    (tree / "empty").mkdir()
    (tree / "link").symlink_to("a.txt")
    (tree / "broken").symlink_to("nowhere")
    (tree / "again").symlink_to(".")
    os.mkfifo(tree / "fifo")
    (tree / "two\nlines").write_text("")
    found = [file.place for file in walk(tree, "/x", FilePatternMatcher("sub", ".venv"))]
    assert sorted(found) == ["/x/a.txt", "/x/b.py", "/x/link", "/x/two\nlines"]


def test_a_name_that_is_no_text_is_said(tree: Path) -> None:
    (tree / os.fsdecode(b"bad\xff")).write_text("")
    image = modal.Image.debian_slim().add_local_dir(tree, "/x")
    with pytest.raises(InvalidError, match=r"bad\\xff' is no UTF-8: rename the file, or leave it out"):
        image._resolve()
    assert modal.Image.debian_slim().add_local_dir(tree, "/x", ignore=["bad*"])._resolve()
