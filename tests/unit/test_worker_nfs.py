"""NetworkFileSystems of a container: where they come from, and links where there can be no mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modal_nomad.exception import ExecutionError
from modal_nomad.wire import nfs as wire
from modal_nomad.wire.mounts import NfsMount
from modal_nomad.worker import _nfs
from modal_nomad.worker._nfs import NetworkFileSystems

REASON = ExecutionError("no mounts here")


def linked(folder: Path, *mounts: tuple[str, Path]) -> None:
    NetworkFileSystems([NfsMount(str(path), name) for name, path in mounts], str(folder)).link(REASON)


def test_their_directories_are_made_where_the_dispatcher_could_not(tmp_path: Path) -> None:
    shown = NetworkFileSystems([NfsMount("/a", "sv-1"), NfsMount("/b", "sv-1")], str(tmp_path))
    assert [bind[:3] for bind in shown.binds()] == [
        (f"{tmp_path}/sv-1", "/a", False),
        (f"{tmp_path}/sv-1", "/b", False),
    ]
    assert (tmp_path / "sv-1").stat().st_mode & 0o777 == 0o777


def test_of_a_volume_the_rest_is_out_of_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nfs, "MOUNTED_AT", str(tmp_path))
    binds = NetworkFileSystems([NfsMount("/a", "sv-1")], str(tmp_path)).binds()
    assert binds[0].source == f"{tmp_path}/sv-1"
    assert (binds[-1].path, binds[-1].read_only) == (str(tmp_path), True)
    assert os.listdir(binds[-1].source) == []
    assert wire.MOUNTED_AT == "/modal-nfs"


def test_links_are_shared_and_replaced_when_dead(tmp_path: Path) -> None:
    folder, place = tmp_path / "nfs", tmp_path / "shown" / "here"
    folder.mkdir()
    linked(folder, ("sv-1", place))
    linked(folder, ("sv-1", place))
    assert os.readlink(place) == str(folder / "sv-1")
    with pytest.raises(ExecutionError, match="another NetworkFileSystem is shown"):
        linked(folder, ("sv-2", place))
    (folder / "sv-1").rmdir()
    linked(folder, ("sv-2", place))
    assert os.readlink(place) == str(folder / "sv-2")
    # An empty directory may go, one with something in it stays.
    (tmp_path / "empty").mkdir()
    linked(folder, ("sv-2", tmp_path / "empty"))
    assert os.path.islink(tmp_path / "empty")
    with pytest.raises(ExecutionError, match=r"choose a path .*no mounts here"):
        linked(folder, ("sv-2", tmp_path / "shown"))


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="under \\[nfs\\]"):
        NetworkFileSystems([NfsMount("/a", "sv-1")], "")
    with pytest.raises(ExecutionError, match="no id of a NetworkFileSystem"):
        NetworkFileSystems([NfsMount("/a", "../sv-1")], str(tmp_path))
    with pytest.raises(ExecutionError, match="is mounted on this node"):
        NetworkFileSystems([NfsMount("/a", "sv-1")], str(tmp_path / "absent"))
