"""``modal-nomad volume``, as its user has it."""

from __future__ import annotations

import io
import json
from pathlib import Path

from conftest import Live

import modal_nomad as modal
from modal_nomad._bridge import run_blocking
from modal_nomad.wire.volumes.entries import SYMLINK, Entry

ON_BOTH_STORES = True


def test_files(live: Live, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "b.txt").write_text("b")
    (tree / "a.txt").write_text("a")
    (tree / "link").symlink_to("a.txt")

    def volume(*words: str, code: int = 0) -> str:
        done = live.cli("volume", *words)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    assert "Created volume 'cli-files'" in volume("create", "cli-files", "--version", "2")
    assert "exists" in volume("create", "cli-files", code=1)
    assert "cli-files" in [x["Name"] for x in json.loads(volume("list", "--json"))]
    volume("put", "cli-files", str(tree), "/tree")
    volume("put", "cli-files", str(tree / "a.txt"))
    assert "exists" in volume("put", "cli-files", str(tree / "a.txt"), "a.txt", code=1)
    volume("put", "cli-files", str(tree / "a.txt"), "a.txt", "--force")
    found = {x["Filename"]: x for x in json.loads(volume("ls", "cli-files", "tree", "--json"))}
    assert {k: v["Type"] for k, v in found.items()} == {
        "tree/a.txt": "file",
        "tree/link": "symlink",
        "tree/sub": "directory",
    }
    assert "a.txt" in volume("ls", "cli-files")
    assert volume("get", "cli-files", "tree/sub/b.txt", "-") == "b"
    volume("get", "cli-files", "tree", str(tmp_path / "got"))
    assert (tmp_path / "got" / "tree" / "sub" / "b.txt").read_text() == "b"
    assert (tmp_path / "got" / "tree" / "link").readlink() == Path("a.txt")
    assert "--force" in volume("get", "cli-files", "a.txt", str(tmp_path / "got" / "tree" / "a.txt"), code=1)
    volume("get", "cli-files", "a.txt", str(tmp_path / "got" / "tree" / "a.txt"), "--force")
    assert "is a directory" in volume("get", "cli-files", "tree", "-", code=1)
    volume("cp", "cli-files", "a.txt", "tree/a.txt", "tree/sub")
    assert "is a directory" in volume("rm", "cli-files", "tree", code=1)
    volume("cp", "cli-files", "-r", "tree", "copy")
    volume("rm", "cli-files", "-r", "tree")
    assert volume("get", "cli-files", "copy/sub/a.txt", "-") == "a"
    volume("rename", "cli-files", "cli-renamed", "--yes")
    assert "not found" in volume("ls", "cli-files", code=1)
    volume("delete", "cli-renamed", "--yes")
    assert "not found" in volume("ls", "cli-renamed", code=1)


def test_a_download_follows_no_link_out(live: Live, tmp_path: Path) -> None:
    volume = modal.Volume.from_name("with-links", create_if_missing=True)
    # What only a container can put there.
    entries = [Entry("away", SYMLINK, 4, data=b"/etc"), Entry("d/up", SYMLINK, 8, data=b"../../..")]
    # By way of another link: "x/../.." is the Volume's top only by its text.
    entries += [Entry("e/x", SYMLINK, 4, data=b"../d"), Entry("e/by", SYMLINK, 9, data=b"x/../../d")]
    run_blocking(volume._ask(lambda client, volume_id: client.commit(volume_id, entries)))
    done = live.cli("volume", "get", "with-links", "/", str(tmp_path))
    assert done.returncode == 0 and done.stderr.count("out of the Volume") == 3
    assert sorted(x.name for x in tmp_path.rglob("*")) == ["d", "e", "x"]
    modal.Volume.delete("with-links")


def test_a_sparse_file_stays_one(live: Live, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    with there.open("wb") as file:
        file.write(b"begin")
        file.seek(1 << 30)
        file.write(b"middle")
        file.truncate(3 << 30)
    modal.Volume.from_name("sparse", create_if_missing=True).hydrate()
    assert live.cli("volume", "put", "sparse", str(there), "file").returncode == 0
    assert live.cli("volume", "get", "sparse", "file", str(back)).returncode == 0
    assert back.stat().st_size == 3 << 30 and back.stat().st_blocks * 512 < 1 << 25
    with back.open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(1 << 30)
        assert file.read(7) == b"middle\0"
    modal.Volume.delete("sparse")


def test_a_download_goes_through_no_link(live: Live, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / "folder").symlink_to(elsewhere)
    (here / "file.part").symlink_to(elsewhere / "part")
    volume = modal.Volume.from_name("through", create_if_missing=True)
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"in"), "folder/file")
        batch.put_file(io.BytesIO(b"file"), "file")
        batch.put_file(io.BytesIO(b"long"), "n" * 255)
    assert "--force" in live.cli("volume", "get", "through", "/", str(here)).stderr
    assert live.cli("volume", "get", "through", "/", str(here), "--force").returncode == 0
    assert list(elsewhere.iterdir()) == []
    assert (here / "folder" / "file").read_bytes() == b"in"
    assert (here / ("n" * 255)).read_bytes() == b"long"
    (here / "file").unlink()
    (here / "file").mkdir()
    assert "is a directory" in live.cli("volume", "get", "through", "/", str(here), "--force").stderr
    modal.Volume.delete("through")
