"""Volumes on the embedded engine: the committed tree from outside, and mounted in containers."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad.exception import AlreadyExistsError, InvalidError, NotFoundError

ON_BOTH_STORES = True

pytestmark = pytest.mark.usefixtures("live")

LARGE = os.urandom(9 << 20)


@pytest.fixture
def volume(live: Live) -> Iterator[modal.Volume]:
    with modal.Volume.ephemeral() as made:
        yield made


def upload(volume: modal.Volume, files: dict[str, bytes], force: bool = False) -> None:
    with volume.batch_upload(force=force) as batch:
        for name, data in files.items():
            batch.put_file(io.BytesIO(data), name)


def content(volume: modal.Volume, path: str) -> bytes:
    return b"".join(volume.read_file(path))


def paths(volume: modal.Volume, path: str = "/") -> list[str]:
    return sorted(entry.path for entry in volume.iterdir(path))


def test_by_name(live: Live) -> None:
    with pytest.raises(NotFoundError, match="Volume 'none-yet'"):
        modal.Volume.from_name("none-yet").hydrate()
    modal.Volume.from_name("none-yet", create_if_missing=True, version=2).hydrate()
    upload(modal.Volume.from_name("none-yet"), {"a.txt": b"1"})
    with pytest.warns(modal.exception.DeprecationError):
        assert modal.Volume.lookup("none-yet").listdir("/")[0].path == "a.txt"
    modal.Volume.from_name("other", create_if_missing=True).hydrate()
    with pytest.raises(AlreadyExistsError):
        modal.Volume.rename("none-yet", "other")
    modal.Volume.rename("none-yet", "another")
    assert content(modal.Volume.from_name("another"), "a.txt") == b"1"
    assert {v.name for v in modal.Volume.objects.list()} >= {"another", "other"}
    modal.Volume.delete("another")
    modal.Volume.delete("other")
    with pytest.raises(NotFoundError):
        modal.Volume.from_name("another").listdir("/")
    with pytest.raises(InvalidError, match="version"):
        modal.Volume.from_name("x", version=3)


def test_upload_and_read(volume: modal.Volume, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "small").write_bytes(b"small")
    (tmp_path / "sub" / "large").write_bytes(LARGE)
    (tmp_path / "sub" / "empty").touch()
    (tmp_path / "sub" / "large").chmod(0o755)
    with volume.batch_upload() as batch:
        batch.put_directory(tmp_path, "/data")
        batch.put_file(tmp_path / "sub" / "small", "copy/of/small")
    assert paths(volume) == sorted(
        ["copy", "copy/of", "copy/of/small", "data", "data/sub"]
        + [f"data/sub/{x}" for x in ("empty", "large", "small")]
    )
    assert content(volume, "data/sub/large") == LARGE
    assert content(volume, "/copy/of/small") == b"small"
    assert content(volume, "data/sub/empty") == b""
    into = io.BytesIO()
    assert volume.read_file_into_fileobj("data/sub/large", into) == len(LARGE) == len(into.getvalue())
    sizes = {entry.path: (entry.type.name, entry.size) for entry in volume.iterdir("data")}
    assert sizes["data/sub"] == ("DIRECTORY", 0) and sizes["data/sub/large"] == ("FILE", len(LARGE))


def test_listings(volume: modal.Volume) -> None:
    upload(volume, {"a/b/c": b"1", "a0": b"2", "a/x": b"3"})
    assert [x.path for x in volume.listdir("/")] == ["a", "a0"]
    assert [x.path for x in volume.listdir("/a")] == ["a/b", "a/x"]
    assert [x.path for x in volume.listdir("/", recursive=True)] == ["a", "a/b", "a/b/c", "a/x", "a0"]
    assert [x.path for x in volume.iterdir("a")] == ["a/b", "a/b/c", "a/x"]
    assert [x.path for x in volume.iterdir("a", recursive=False)] == ["a/b", "a/x"]
    assert [x.path for x in volume.listdir("a/x")] == ["a/x"]
    with pytest.raises(FileNotFoundError):
        volume.listdir("b")


def test_what_an_upload_may_replace(volume: modal.Volume, tmp_path: Path) -> None:
    upload(volume, {"a": b"1", "d/f": b"2"})
    with pytest.raises(FileExistsError, match="a exists"):
        upload(volume, {"new": b"x", "a": b"2"})
    assert paths(volume) == ["a", "d", "d/f"] and content(volume, "a") == b"1"
    upload(volume, {"a": b"2"}, force=True)
    assert content(volume, "a") == b"2"
    with pytest.raises(FileExistsError, match="directory"):
        upload(volume, {"d": b"2"}, force=True)
    with pytest.raises(FileExistsError):
        upload(volume, {"a/below": b"2"}, force=True)
    for remote in ("x/", "../x", "a/../../b", ""):
        with pytest.raises(ValueError), volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b""), remote)
    with pytest.raises(FileNotFoundError), volume.batch_upload() as batch:
        batch.put_file(tmp_path / "none", "none")
    with pytest.raises(RuntimeError, match="on purpose"), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b""), "never")
        raise RuntimeError("on purpose")
    assert paths(volume) == ["a", "d", "d/f"]


def test_remove_and_copy(volume: modal.Volume) -> None:
    upload(volume, {"a": b"1", "d/f": b"2", "d/e/g": b"3"})
    with pytest.raises(FileNotFoundError):
        volume.remove_file("b")
    with pytest.raises(FileNotFoundError):
        content(volume, "b")
    with pytest.raises(IsADirectoryError):
        content(volume, "d")
    with pytest.raises(InvalidError, match="recursive"):
        volume.remove_file("d")
    volume.copy_files(["a"], "b")
    volume.copy_files(["a", "b"], "d")
    with pytest.raises(FileNotFoundError):
        volume.copy_files(["a", "b"], "none")
    with pytest.raises(InvalidError, match="recursive"):
        volume.copy_files(["d"], "c")
    volume.copy_files(["d"], "c", recursive=True)
    assert paths(volume, "c") == ["c/a", "c/b", "c/e", "c/e/g", "c/f"]
    assert content(volume, "c/e/g") == b"3"
    volume.remove_file("d", recursive=True)
    assert paths(volume) == ["a", "b", "c", "c/a", "c/b", "c/e", "c/e/g", "c/f"]


def test_odd_names_and_links(volume: modal.Volume, tmp_path: Path) -> None:
    names = [b"new\nline", "ünïcode ☃".encode(), b"not-utf8-\xff", b"-", b"a'b\"c\\d", b" "]
    (tmp_path / "tree").mkdir()
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "tree") + b"/" + name)).write_bytes(name)
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "tree" / "inner").symlink_to("-")
    (tmp_path / "tree" / "outer").symlink_to(tmp_path / "secret")
    with volume.batch_upload() as batch:
        batch.put_directory(tmp_path / "tree", "/")
    assert {os.fsencode(p) for p in paths(volume)} == {*names, b"inner", b"outer"}
    for name in names:
        assert content(volume, os.fsdecode(name)) == name
    kinds = {x.path: x.type.name for x in volume.listdir("/")}
    assert (kinds["inner"], kinds["outer"]) == ("SYMLINK", "FILE")
    assert content(volume, "outer") == b"outside"
    (tmp_path / "tree" / "away").symlink_to(tmp_path)
    with pytest.raises(InvalidError, match="link"), volume.batch_upload() as batch:
        batch.put_directory(tmp_path / "tree", "/again")


def test_a_sparse_file_costs_nothing(volume: modal.Volume, tmp_path: Path, live: Live) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10 << 30)
        file.seek(5 << 30)
        file.write(b"in the middle")
    with volume.batch_upload() as batch:
        batch.put_file(path, "sparse")
    assert volume.listdir("sparse")[0].size == 10 << 30


async def test_async(volume: modal.Volume) -> None:
    async with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(LARGE), "large")
    assert [x.path for x in await volume.listdir.aio("/")] == ["large"]
    assert b"".join([part async for part in volume.read_file.aio("large")]) == LARGE
    await volume.remove_file.aio("large")
    assert [x async for x in volume.iterdir.aio("/")] == []


@pytest.mark.parametrize("others", [0, 2100])
def test_an_upload_does_not_contradict_itself(volume: modal.Volume, others: int) -> None:
    """Large uploads, which go to the store in slices, are as strict as small ones."""
    names = [f"d/{number}" for number in range(others)]
    for first, last in (("same", "same"), ("file", "file/below"), ("below/file", "below")):
        with pytest.raises(FileExistsError, match=r"same|file|below"), volume.batch_upload() as batch:
            for name in (first, *names, last):
                batch.put_file(io.BytesIO(b"x"), name)
    assert volume.listdir("/") == []
    with volume.batch_upload(force=True) as batch:
        for data, name in ((b"1", "same"), *((b"x", name) for name in names), (b"2", "same")):
            batch.put_file(io.BytesIO(data), name)
    assert b"".join(volume.read_file("same")) == b"2"


def test_directories_with_very_much_in_them_are_copied_and_removed(volume: modal.Volume) -> None:
    upload(volume, {f"d/{number}": b"x" for number in range(2100)})
    volume.copy_files(["d"], "e", recursive=True)
    assert len(volume.listdir("/e")) == len(volume.listdir("/d")) == 2100
    volume.remove_file("d", recursive=True)
    assert [x.path for x in volume.listdir("/")] == ["e"]
    with pytest.raises(FileNotFoundError):
        volume.remove_file("d", recursive=True)
