"""The directory of a NetworkFileSystem: nothing leads out of it, whatever containers put into it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from modal_nomad.dispatcher._nfs_tree import Shelf, parts
from modal_nomad.exception import InvalidError
from modal_nomad.wire.nfs import DIRECTORY, FIFO, FILE, SOCKET, SYMLINK

ID = "sv-1"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path / "nfs", shared=False)
    made.prepare()
    made.create(ID)
    return made


@pytest.fixture
def top(tmp_path: Path, shelf: Shelf) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return tmp_path / "nfs" / ID


def write(shelf: Shelf, path: str, data: bytes = b"x") -> None:
    descriptor, upload = shelf.upload()
    try:
        os.write(descriptor, data)
        os.close(descriptor)
        shelf.place(upload, ID, path)
    finally:
        shelf.abandon(upload)


def read(shelf: Shelf, path: str) -> bytes:
    with open(shelf.open(ID, path), "rb") as file:
        return file.read()


def names(shelf: Shelf, path: str) -> list[str]:
    return [found.path for found in shelf.list(ID, path)]


def test_files_are_written_as_a_whole_with_the_directories_above(shelf: Shelf, top: Path) -> None:
    write(shelf, "/a/b/c.txt", b"one")
    write(shelf, "a/b/c.txt", b"two")
    assert read(shelf, "a//b/./c.txt") == b"two" == (top / "a/b/c.txt").read_bytes()
    assert names(shelf, "/a/b") == ["c.txt"] == names(shelf, "a/b/c.txt")
    assert os.listdir(top.parent / ".uploads") == []


def test_what_a_listing_says(shelf: Shelf, top: Path) -> None:
    (top / "dir").mkdir()
    (top / "file").write_bytes(b"12345")
    (top / "link").symlink_to("file")
    os.mkfifo(top / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(top / "s"))
    os.utime(top / "file", (7, 7))
    found = {x.path: x for x in shelf.list(ID, "/")}
    kinds = {"dir": DIRECTORY, "file": FILE, "link": SYMLINK, "pipe": FIFO, "s": SOCKET}
    assert {path: x.kind for path, x in found.items()} == kinds
    assert (found["file"].size, found["file"].mtime) == (5, 7)


def test_a_name_that_is_no_utf8(shelf: Shelf, top: Path) -> None:
    name = os.fsdecode(b"\xff\n odd")
    write(shelf, name)
    assert os.listdir(os.fsencode(top)) == [b"\xff\n odd"]
    assert names(shelf, "/") == [name] and read(shelf, name) == b"x"


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*", ["/a.txt", "/d", "/e.py"]),
        ("/*.txt", ["/a.txt"]),
        ("**", ["/a.txt", "/d", "/d/a.txt", "/d/e", "/d/e/f.txt", "/e.py"]),
        ("**/*.txt", ["/a.txt", "/d/a.txt", "/d/e/f.txt"]),
        ("d/**", ["/d/a.txt", "/d/e", "/d/e/f.txt"]),
        ("d/**/f.txt", ["/d/e/f.txt"]),
        ("**/e/**/*", ["/d/e/f.txt"]),
        ("*/*", ["/d/a.txt", "/d/e"]),
        ("?.[pt]*", ["/a.txt", "/e.py"]),
        ("nothing*", []),
        ("*/../**", None),
    ],
)
def test_globs(shelf: Shelf, top: Path, glob: str, found: list[str] | None) -> None:
    for path in ("a.txt", "d/a.txt", "d/e/f.txt", "e.py"):
        write(shelf, path)
    if found is None:
        with pytest.raises(InvalidError, match=r"'\.\.'"):
            names(shelf, glob)
    else:
        assert names(shelf, glob) == found


def test_globs_go_through_no_links(shelf: Shelf, top: Path) -> None:
    (top / "out").symlink_to("../../outside")
    (top / "round").symlink_to(".")
    assert names(shelf, "**") == ["/out", "/round"] == names(shelf, "*")
    assert names(shelf, "out/*") == []


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/..", "a\0b", "a/..", "a/" + "ä" * 128, "\ud800"])
def test_what_is_no_path(shelf: Shelf, path: str) -> None:
    for attempt in (shelf.list, shelf.open, lambda i, p: shelf.remove(i, p, True)):
        with pytest.raises(InvalidError, match="no path in a NetworkFileSystem"):
            attempt(ID, path)
    with pytest.raises(InvalidError, match="no path in a NetworkFileSystem"):
        write(shelf, path)
    assert os.listdir(shelf._root / ".uploads") == []


def test_no_link_leads_out(shelf: Shelf, top: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (top / "folder").symlink_to(outside)
    (top / "file").symlink_to(outside / "secret")
    for path in ("folder/secret", "file"):
        with pytest.raises(InvalidError, match="link"):
            shelf.open(ID, path)
    with pytest.raises(InvalidError, match="link"):
        write(shelf, "folder/new")
    with pytest.raises(InvalidError, match="link"):
        shelf.remove(ID, "folder/secret", True)
    with pytest.raises(InvalidError, match="link"):
        names(shelf, "folder/secret")
    assert [x.kind for x in shelf.list(ID, "folder")] == [SYMLINK]
    # In place of a link, and not where it leads.
    write(shelf, "file", b"new")
    assert (outside / "secret").read_text() == "secret" and (top / "file").read_bytes() == b"new"
    shelf.remove(ID, "folder", True)
    assert sorted(os.listdir(outside)) == ["secret"] and names(shelf, "/") == ["file"]


def test_a_directory_that_is_replaced_by_a_link_meanwhile_is_left(
    shelf: Shelf, top: Path, tmp_path: Path
) -> None:
    write(shelf, "d/secret")
    (top / "d").rename(top / "e")
    (top / "d").symlink_to(tmp_path / "outside")
    shelf.remove(ID, "d", True)
    shelf.drop(ID)
    assert (tmp_path / "outside" / "secret").read_text() == "secret"


def test_removing(shelf: Shelf, top: Path) -> None:
    write(shelf, "d/e/f")
    with pytest.raises(IsADirectoryError):
        shelf.remove(ID, "d", False)
    shelf.remove(ID, "d/e/f", False)
    shelf.remove(ID, "d", True)
    assert os.listdir(top) == [] == os.listdir(top.parent / ".trash")
    with pytest.raises(FileNotFoundError):
        shelf.remove(ID, "d", True)
    with pytest.raises(InvalidError, match="the top"):
        shelf.remove(ID, "/", True)


def test_what_is_no_file(shelf: Shelf, top: Path) -> None:
    write(shelf, "d/f")
    os.mkfifo(top / "pipe")
    with pytest.raises(InvalidError, match="no file"):
        shelf.open(ID, "pipe")
    for attempt in (lambda: shelf.open(ID, "d"), lambda: shelf.open(ID, "/"), lambda: write(shelf, "d")):
        with pytest.raises(IsADirectoryError):
            attempt()
    with pytest.raises(InvalidError, match="as if it were a directory"):
        write(shelf, "d/f/g")
    with pytest.raises(FileNotFoundError):
        shelf.open(ID, "d/absent")
    with pytest.raises(FileNotFoundError):
        names(shelf, "absent")


def test_what_a_killed_dispatcher_left_is_cleared(shelf: Shelf, top: Path) -> None:
    descriptor, upload = shelf.upload()
    os.close(descriptor)
    (top.parent / ".trash" / "x" / "y").mkdir(parents=True)
    shelf.prepare()
    # Young: another dispatcher may be at it.
    assert os.listdir(top.parent / ".uploads") == [upload]
    os.utime(top.parent / ".uploads" / upload, (1, 1))
    shelf.prepare()
    assert os.listdir(top.parent / ".uploads") == [] == os.listdir(top.parent / ".trash")


@pytest.mark.parametrize(("shared", "modes"), [(True, (0o777, 0o666)), (False, (0o700, 0o644))])
def test_who_else_may_write(tmp_path: Path, shared: bool, modes: tuple[int, int]) -> None:
    shelf = Shelf(tmp_path / "nfs", shared)
    shelf.prepare()
    shelf.create(ID)
    shelf.create(ID)
    write(shelf, "d/f")
    top = tmp_path / "nfs" / ID
    assert top.stat().st_mode & 0o777 == modes[0] == (top / "d").stat().st_mode & 0o777
    assert (top / "d" / "f").stat().st_mode & 0o777 == modes[1]


def test_the_parts_of_a_path() -> None:
    assert parts("/a//b/./c/") == ["a", "b", "c"] and parts("/") == [] == parts("")
