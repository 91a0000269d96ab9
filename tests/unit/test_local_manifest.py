"""Local files that a build step copies: what is read of them when nothing has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import modal_nomad._file_hashes as file_hashes
import modal_nomad._local_manifest as local_manifest
from modal_nomad import Image
from modal_nomad._image_files import LocalFiles
from modal_nomad._local_manifest import LocalManifest
from modal_nomad.exception import ExecutionError
from tests._large_tree import MANY, large_tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large directory whose files changed long ago."""
    folder = large_tree(tmp_path, monkeypatch)
    now = local_manifest.time.time_ns()
    monkeypatch.setattr(local_manifest.time, "time_ns", lambda: now + 10**10)
    return folder


def manifest(tree: Path) -> LocalManifest:
    return LocalManifest(str(tree), LocalFiles("dir", str(tree), "/data").found())


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], str]], bool]:
    """Tell whether something comes to its end without the content of a file, or what is kept of one."""

    def tell(look: Callable[[], str]) -> bool:
        asked: list[object] = []
        real = local_manifest.hashes_of
        with monkeypatch.context() as patch:
            patch.setattr(local_manifest, "hashes_of", lambda *args: asked.append(args) or real(*args))
            look()
        return not asked

    return tell


def test_a_directory_that_did_not_change_is_not_read(
    tree: Path, unread: Callable[[Callable[[], str]], bool]
) -> None:
    first = manifest(tree)
    assert unread(lambda: manifest(tree).sha)
    again = manifest(tree)
    assert again.sha == first.sha and again.files() == first.files()
    assert again.contents() == first.contents() and sorted(again.paths) == sorted(map(str, tree.iterdir()))
    listed = json.loads(bytes(again.contents()[again.sha]))  # type: ignore[arg-type]
    assert [x[0] for x in listed] == sorted(f"/data/{number}.txt" for number in range(MANY))


def _other_content(tree: Path) -> None:
    # Of the same size, with the time of the one before: as some tools leave it.
    before = (tree / "7.txt").stat()
    (tree / "7.txt").write_text("other")
    os.utime(tree / "7.txt", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        _other_content,
        lambda tree: (tree / "7.txt").chmod(0o755),
        lambda tree: (tree / "7.txt").unlink(),
        lambda tree: (tree / "7.txt").rename(tree / "seven.txt"),
        lambda tree: (tree / "more.txt").write_text(""),
    ],
)
def test_whatever_changes_is_seen(tree: Path, change: Callable[[Path], object]) -> None:
    before = manifest(tree).sha
    assert manifest(tree).sha == before
    change(tree)
    changed = manifest(tree).sha
    assert changed != before and manifest(tree).sha == changed


def test_what_has_just_changed_is_read_each_time(
    tree: Path, unread: Callable[[Callable[[], str]], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = max((tree / f"{number}.txt").stat().st_ctime_ns for number in range(MANY))
    monkeypatch.setattr(local_manifest.time, "time_ns", lambda: now + 1)
    assert [unread(lambda: manifest(tree).sha) for _ in range(2)] == [False, False]


def test_the_same_directory_at_two_places(tree: Path, unread: Callable[[Callable[[], str]], bool]) -> None:
    def look() -> str:
        found = [LocalFiles("dir", str(tree), place).found() for place in ("/one", "/two")]
        return "".join(LocalManifest(str(tree), files).sha for files in found)

    look()
    assert unread(look)


def test_a_file_that_changes_before_it_is_sent_is_said(tree: Path) -> None:
    manifest(tree)
    looked = manifest(tree)
    # Whoever changes a file in between has it read anew, and it is not what it was.
    (tree / "7.txt").write_text("longer than it was")
    kept = file_hashes.Kept(str(tree))
    kept.write({})
    with pytest.raises(ExecutionError, match="changed while they were looked at"):
        looked.contents()


def test_what_is_kept_may_be_damaged(tree: Path) -> None:
    before = manifest(tree).sha
    for kept in Path(os.environ["MODAL_NOMAD_HOME"], "file-hashes").iterdir():
        kept.write_bytes(b'{"no": ')
    assert manifest(tree).sha == before


def test_one_large_file_is_read_once(
    tmp_path: Path, tree: Path, unread: Callable[[Callable[[], str]], bool]
) -> None:
    model = tmp_path / "model"
    with model.open("wb") as file:
        file.truncate(file_hashes._LARGE)
    image = Image.debian_slim().run_commands("true").add_local_file(model, "/model", copy=True)
    first = image._resolve()[0]
    assert unread(lambda: str(image._resolve())) and image._resolve()[0] == first
