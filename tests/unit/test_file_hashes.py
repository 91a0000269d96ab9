"""What the hashes of a large directory cost when nothing in it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import modal_nomad._file_hashes as file_hashes
from modal_nomad._image_files import LocalFiles, mounted
from tests._large_tree import MANY, large_tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return large_tree(tmp_path, monkeypatch)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the changes of the test's files be long past."""

    def pass_by() -> None:
        now = file_hashes.time.time_ns()
        monkeypatch.setattr(file_hashes.time, "time_ns", lambda: now + 10**10)

    return pass_by


def read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, str]]:
    """Return which files are read for their hashes, and those of all."""
    names: list[str] = []
    real = file_hashes.file_sha256

    def counted(path: str | os.PathLike[str]) -> str:
        names.append(os.path.basename(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(file_hashes, "file_sha256", counted)
        files, _ = mounted((LocalFiles("dir", str(tree), "/data"),))
    # Several threads read them.
    return sorted(names), {file.path: file.blob for file in files}


def test_files_that_did_not_change_are_not_read_again(
    tree: Path, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    later()
    names, first = read(tree, monkeypatch)
    assert len(names) == MANY
    assert read(tree, monkeypatch) == ([], first)
    # Another content of the same size, and the time of the one before: as some tools leave it.
    changed = tree / "7.txt"
    before = changed.stat()
    changed.write_text("other")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    names, second = read(tree, monkeypatch)
    assert names == ["7.txt"] and {x for x in first if first[x] != second[x]} == {"/data/7.txt"}


def test_what_has_just_changed_is_not_taken_for_known(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = file_hashes.time.time_ns()
    monkeypatch.setattr(file_hashes.time, "time_ns", lambda: now)
    names, first = read(tree, monkeypatch)
    assert len(names) == MANY and read(tree, monkeypatch) == (names, first)


def test_a_home_that_cannot_be_written_costs_nothing_but_time(
    tree: Path, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    later()
    _, first = read(tree, monkeypatch)
    (kept,) = Path(os.environ["MODAL_NOMAD_HOME"], "file-hashes").iterdir()
    kept.write_bytes(b'["no object"')
    names, again = read(tree, monkeypatch)
    assert again == first and len(names) == MANY
    # And is mended.
    assert read(tree, monkeypatch) == ([], first)
