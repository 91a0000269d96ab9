"""Mounts, by the older way, in a container."""

from __future__ import annotations

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad.exception import DeprecationError


def test_containers_have_the_files_of_their_mounts(live: Live) -> None:
    (live.folder / "assets").mkdir()
    (live.folder / "assets" / "words.txt").write_text("some words")
    (live.folder / "assets" / "left.out").write_text("")
    source = live.write("copied.txt", "copied words")
    with pytest.warns(DeprecationError):
        assets = modal.Mount.from_local_dir(
            live.folder / "assets", remote_path="/mn-assets", condition=lambda path: path.endswith(".txt")
        )
        image = modal.Image.debian_slim().copy_local_file(source, "/mn-copied/")
        app = modal.App("mounts", image=image, mounts=[assets])

    @app.function(serialized=True)
    def f() -> list[str]:
        import os

        found = [os.path.join("/mn-assets", name) for name in os.listdir("/mn-assets")]
        return [open(path).read() for path in [*found, "/mn-copied/copied.txt"]]

    with app.run():
        assert app["f"].remote() == ["some words", "copied words"]


def test_a_mount_is_sent_and_has_the_id_of_its_content(live: Live) -> None:
    with pytest.warns(DeprecationError):
        one, two = (modal.Mount.from_local_file(live.write(x, "same"), "/at") for x in ("one", "two"))
    assert not one.is_hydrated
    assert one.hydrate().object_id == two.hydrate().object_id
    assert one.object_id.startswith("mo-")
    sha = one._wishes[0].found()[0][1]
    assert live.request("blob.missing", hashes=[_sha(sha)])["missing"] == []


def test_a_file_that_changes_while_it_is_sent_is_said(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    file = live.write("changing.txt", "once")
    app = modal.App("changing", image=modal.Image.debian_slim().add_local_file(file, "/changing"))
    app.function(serialized=True, name="f")(lambda: 1)
    monkeypatch.setattr("modal_nomad._uploads._read", lambda x: x if isinstance(x, bytes) else b"since")
    with pytest.raises(modal.exception.ExecutionError, match=r"changing\.txt changed while it was uploaded"):
        app.deploy()
    with pytest.raises(modal.exception.NotFoundError):
        modal.App.lookup("changing")


def _sha(path: object) -> str:
    from modal_nomad._file_hashes import file_sha256

    return file_sha256(path)  # type: ignore[arg-type]
