"""NetworkFileSystems: shared by containers at once, read and written from outside."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live
from typer.testing import CliRunner

import modal_nomad as modal
from modal_nomad.cli._root import app as root
from modal_nomad.exception import ConnectionError, DeprecationError, InvalidError, NotFoundError
from modal_nomad.types import FileEntryType

ON_BOTH_STORES = True

LARGE = os.urandom(5 << 20)


@pytest.fixture
def nfs(live: Live) -> Iterator[modal.NetworkFileSystem]:
    with modal.NetworkFileSystem.ephemeral() as made:
        yield made


def content(nfs: modal.NetworkFileSystem, path: str) -> bytes:
    return b"".join(nfs.read_file(path))


def names(nfs: modal.NetworkFileSystem, path: str = "/") -> list[str]:
    return [entry.path for entry in nfs.listdir(path)]


def test_a_write_in_one_container_is_seen_by_the_others_at_once(nfs: modal.NetworkFileSystem) -> None:
    app = modal.App("shared")

    @app.function(serialized=True, network_file_systems={"/mn-shared/one": nfs}, timeout=60)
    def first(name: str) -> str:
        import time
        from pathlib import Path

        Path("/mn-shared/one", name).write_text("ping")
        answer = Path("/mn-shared/one", name + ".answer")
        # Both containers live all the while: nothing is committed, nothing reloaded.
        while not answer.exists():
            time.sleep(0.01)
        return answer.read_text()

    @app.function(serialized=True, network_file_systems={"/root/mn-other": nfs, "/mn-again": nfs}, timeout=60)
    def second(name: str) -> list[str]:
        import os
        import time
        from pathlib import Path

        while not Path("/root/mn-other", name).exists():
            time.sleep(0.01)
        part = Path("/mn-again", "part")
        part.write_text("pong")
        part.rename(Path("/mn-again", name + ".answer"))
        return sorted(os.listdir("/root/mn-other"))

    with app.run():
        waiting = first.spawn("a")
        assert second.remote("a") == ["a", "a.answer"]
        assert waiting.get() == "pong"
    assert names(nfs) == ["a", "a.answer"]
    assert not os.path.exists("/mn-shared") and not os.path.exists("/root/mn-other")


def test_classes_have_them_too(nfs: modal.NetworkFileSystem) -> None:
    app = modal.App("shared-class")

    @app.cls(serialized=True, network_file_systems={"/mn-shared": nfs}, enable_memory_snapshot=True)
    class Keeper:
        @modal.enter(snap=True)
        def begin(self) -> None:
            self.seen = Path("/mn-shared/seed").read_text()

        @modal.method()
        def both(self) -> list[str]:
            return [self.seen, Path("/mn-shared/seed").read_text()]

    nfs.write_file("seed", io.BytesIO(b"seed"))
    with app.run():
        assert Keeper().both.remote() == ["seed", "seed"]


def test_files_from_outside(nfs: modal.NetworkFileSystem, tmp_path: Path) -> None:
    assert nfs.write_file("/data/large", io.BytesIO(LARGE)) == len(LARGE)
    assert content(nfs, "data/large") == LARGE and len(list(nfs.read_file("data/large"))) > 1
    assert nfs.write_file("data/large", io.BytesIO(b"")) == 0 and content(nfs, "data/large") == b""
    local = tmp_path / "local.txt"
    local.write_text("local")
    parts: list[int] = []
    with local.open("rb") as file:
        file.seek(2)
        # What the file still has, under its own name.
        assert nfs.write_file("/data/", file, lambda advance: parts.append(advance)) == 3
    assert content(nfs, "data/local.txt") == b"cal" and parts == [3]
    assert names(nfs, "data") == ["large", "local.txt"] == [x.path for x in nfs.iterdir("/data/")]
    assert names(nfs, "data/local.txt") == ["local.txt"]
    assert names(nfs, "**/*.txt") == ["/data/local.txt"]
    (top,) = nfs.listdir("/")
    assert (top.path, top.type) == ("data", FileEntryType.DIRECTORY)
    nfs.remove_file("data/large")
    with pytest.raises(IsADirectoryError, match="data"):
        nfs.remove_file("data")
    nfs.remove_file("data", recursive=True)
    assert names(nfs) == []


async def test_the_async_face(live: Live) -> None:
    async with modal.NetworkFileSystem.ephemeral() as nfs:
        assert await nfs.write_file.aio("a", io.BytesIO(b"1")) == 1
        assert [part async for part in nfs.read_file.aio("a")] == [b"1"]
        assert [entry.path async for entry in nfs.iterdir.aio("/")] == ["a"]
        assert [entry.path for entry in await nfs.listdir.aio("/")] == ["a"]
        await nfs.remove_file.aio("a")


def test_what_cannot_be_read_again_is_sent_once(nfs: modal.NetworkFileSystem) -> None:
    reader, writer = os.pipe()
    with open(writer, "wb") as out:
        out.write(b"through a pipe")
    with open(reader, "rb") as file:
        assert nfs.write_file("piped", file) == 14
    assert content(nfs, "piped") == b"through a pipe"


def test_local_files_and_directories(nfs: modal.NetworkFileSystem, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt"):
        (tree / name).write_text(name)
    assert nfs.add_local_file(tree / "a.txt") == 5
    nfs.add_local_file(str(tree / "a.txt"), "/there/")
    parts: list[int] = []
    nfs.add_local_dir(tree, progress_cb=lambda advance: parts.append(advance))
    nfs.add_local_dir(tree, "/else/where")
    assert names(nfs, "**/*.txt") == [
        "/a.txt",
        "/else/where/a.txt",
        "/else/where/sub/b.txt",
        "/there/a.txt",
        "/tree/a.txt",
        "/tree/sub/b.txt",
    ]
    assert content(nfs, "tree/sub/b.txt") == b"sub/b.txt" and sum(parts) == 14
    with pytest.raises(NotADirectoryError, match="add_local_file"):
        nfs.add_local_dir(tree / "a.txt")
    with pytest.raises(FileNotFoundError, match="absent"):
        nfs.add_local_file(tmp_path / "absent")


def test_what_is_refused(nfs: modal.NetworkFileSystem) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise OSError("on purpose")

    for wrong, error, text in (
        (lambda: content(nfs, "absent"), FileNotFoundError, "'absent'"),
        (lambda: content(nfs, "../../store.db"), InvalidError, r"leave out '\.\.'"),
        (lambda: content(nfs, "/"), IsADirectoryError, "directory"),
        (lambda: nfs.listdir("absent"), FileNotFoundError, "'absent'"),
        (lambda: nfs.write_file("../x", io.BytesIO(LARGE)), InvalidError, r"leave out '\.\.'"),
        (lambda: nfs.write_file("x/", io.BytesIO(b"")), InvalidError, "no name of its own"),
        (lambda: nfs.write_file("x", io.StringIO("text")), InvalidError, "'rb'"),  # type: ignore[arg-type]
        (lambda: nfs.write_file("x", Broken()), OSError, "on purpose"),  # type: ignore[arg-type]
    ):
        with pytest.raises(error, match=text) as caught:
            wrong()
        assert not isinstance(caught.value, ConnectionError)
    assert names(nfs) == []


def test_a_link_that_a_container_made_leads_nowhere(live: Live, nfs: modal.NetworkFileSystem) -> None:
    app = modal.App("links")

    @app.function(serialized=True, network_file_systems={"/mn-shared": nfs})
    def link(target: str) -> None:
        import os

        os.symlink(target, "/mn-shared/out")

    with app.run():
        link.remote(str(live.folder))
    live.write("kept", "")
    for attempt in (
        lambda: content(nfs, "out/kept"),
        lambda: nfs.write_file("out/new", io.BytesIO(b"")),
        lambda: nfs.remove_file("out/kept"),
    ):
        with pytest.raises(InvalidError, match="link"):
            attempt()
    assert (live.folder / "kept").exists() and not (live.folder / "new").exists()


def test_by_name(live: Live) -> None:
    made = modal.NetworkFileSystem.from_name("mn-by-name", create_if_missing=True)
    assert made.write_file("a", io.BytesIO(b"1")) == 1
    assert made.object_id.startswith("sv-")
    assert content(modal.NetworkFileSystem.from_name("mn-by-name"), "a") == b"1"
    with pytest.warns(DeprecationError, match="from_name"):
        assert modal.NetworkFileSystem.lookup("mn-by-name").object_id == made.object_id
    with pytest.warns(DeprecationError, match="label"):
        assert modal.NetworkFileSystem.from_name(label="mn-by-name").hydrate()  # type: ignore[call-arg]
    assert [x.name for x in modal.NetworkFileSystem.objects.list()] == ["mn-by-name"]
    folder = live.home / "nfs" / made.object_id
    assert (folder / "a").read_bytes() == b"1"
    modal.NetworkFileSystem.delete("mn-by-name")
    assert not folder.exists()
    with pytest.raises(NotFoundError, match="mn-by-name"):
        modal.NetworkFileSystem.from_name("mn-by-name").listdir("/")
    with pytest.raises(NotFoundError):
        made.listdir("/")


def test_a_name_that_a_volume_has(live: Live) -> None:
    modal.Volume.objects.create("mn-is-a-volume")
    try:
        for create in (True, False):
            nfs = modal.NetworkFileSystem.from_name("mn-is-a-volume", create_if_missing=create)
            with pytest.raises(InvalidError, match="already exists as a Volume"):
                nfs.hydrate()
    finally:
        modal.Volume.delete("mn-is-a-volume")


def test_one_that_is_not_there_is_told_before_the_app_runs(live: Live) -> None:
    app = modal.App("absent")
    absent = modal.NetworkFileSystem.from_name("mn-absent")
    app.function(serialized=True, name="f", network_file_systems={"/mn-shared": absent})(lambda: 1)
    with pytest.raises(NotFoundError, match="mn-absent"), app.run():
        pass


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"/": None}, "cannot be shown at /"),
        ({"/root": None}, "cannot be shown at /root"),
        ({"/tmp": None}, "cannot be shown at /tmp"),
        ({"relative": None}, "canonical, absolute"),
        ({"/a/../b": None}, "canonical, absolute"),
        ({"/a": "x"}, "give a modal.NetworkFileSystem"),
        (["/a"], "give a dict"),
    ],
)
def test_where_they_may_be_shown(given: Any, text: str) -> None:
    nfs = modal.NetworkFileSystem.from_name("any")
    if isinstance(given, dict):
        given = {path: nfs if value is None else value for path, value in given.items()}
    with pytest.raises(InvalidError, match=text):
        modal.App("paths").function(serialized=True, network_file_systems=given)(lambda: 1)


def test_not_where_a_volume_is() -> None:
    nfs, volume = modal.NetworkFileSystem.from_name("any"), modal.Volume.from_name("any")
    for of_app, own in (({}, {"/a": volume}), ({"/a": volume}, {})):
        with pytest.raises(InvalidError, match="both to be shown at /a"):
            app = modal.App("paths", volumes=of_app)
            app.function(serialized=True, name="f", volumes=own, network_file_systems={"/a": nfs})(lambda: 1)


def test_the_commands(live: Live, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.txt").write_text("a")
    (tree / "sub" / "b.txt").write_text("b")

    def nfs(*words: str, code: int = 0) -> str:
        # In this process: each one of its own would take as long to start as all of this.
        done = CliRunner().invoke(root, ["nfs", *words])
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.stderr

    assert "Created nfs 'mn-cli'" in nfs("create", "mn-cli")
    assert "mn-cli" in [x["Name"] for x in json.loads(nfs("list", "--json"))]
    nfs("put", "mn-cli", str(tree), "/tree")
    nfs("put", "mn-cli", str(tree / "a.txt"))
    found = {x["Filename"]: x["Type"] for x in json.loads(nfs("ls", "mn-cli", "/", "--json"))}
    assert found == {"a.txt": "file", "tree": "directory"}
    assert "/tree/sub/b.txt" in nfs("ls", "mn-cli", "**/*.txt")
    assert nfs("get", "mn-cli", "tree/sub/b.txt", "-") == "b"
    nfs("get", "mn-cli", "tree", str(tmp_path / "got"))
    assert (tmp_path / "got" / "tree" / "sub" / "b.txt").read_text() == "b"
    nfs("get", "mn-cli", "**/b.txt", str(tmp_path / "globbed"))
    assert (tmp_path / "globbed" / "tree" / "sub" / "b.txt").read_text() == "b"
    assert "--force" in nfs("get", "mn-cli", "a.txt", str(tree / "a.txt"), code=1)
    nfs("get", "mn-cli", "a.txt", str(tree / "a.txt"), "--force")
    assert "there is no absent" in nfs("get", "mn-cli", "absent", code=1)
    assert "directory" in nfs("rm", "mn-cli", "tree", code=1)
    nfs("rm", "-r", "mn-cli", "tree")
    nfs("delete", "-y", "mn-cli")
    assert "mn-cli" in nfs("ls", "mn-cli", code=1)


def test_defaults_are_quiet(live: Live) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        modal.App("none").function(serialized=True, network_file_systems={})(lambda: 1)
