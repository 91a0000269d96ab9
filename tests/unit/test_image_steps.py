"""Steps of an Image that are functions: what Function each becomes, what it changes, and who gets that."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modal_nomad import CloudBucketMount, Image, NetworkFileSystem, Secret, Volume
from modal_nomad.dispatcher.images.steps import is_step, step_spec
from modal_nomad.nomad import Placement
from modal_nomad.render import RenderSettings, render_function
from modal_nomad.render.image import render_image
from modal_nomad.render.image_settings import ImageSettings
from modal_nomad.wire.serialization import dumps, exception_text, loads_plain, pack_exception
from modal_nomad.wire.spec import ImageSpec
from modal_nomad.worker._layer_tree import Difference, Tree, left_out
from modal_nomad.worker.image_builder.apply_layer import apply
from modal_nomad.worker.image_step import CHUNK_BYTES, _Sender

SETTINGS = ImageSettings()
debian = Image.debian_slim("3.11")
LIMIT = 3


def step() -> int:
    return LIMIT


def layers(image: Image) -> tuple[ImageSpec, Any]:
    spec, _ = image._resolve()
    return spec, render_image(spec, SETTINGS)


def test_a_step_is_a_function_with_all_that_functions_have() -> None:
    volume, nfs = Volume.from_id("vo-1"), NetworkFileSystem.from_id("sn-1")
    bucket = CloudBucketMount("weights", secret=Secret.from_name("keys"))
    image = debian.apt_install("git").run_function(
        step,
        secrets=[Secret.from_name("hf")],
        gpu="A100:2",
        volumes={"/data": volume, "/bucket": bucket},
        network_file_systems={"/shared": nfs},
        cpu=(0.5, 2),
        memory=(64, 128),
        timeout=100,
        cloud="aws",
        region="eu",
        env={"A": "1"},
        nomad=Placement(node_pool="builders"),
    )
    spec, (before, layer) = layers(image)
    so_far = dataclasses.replace(spec, layers=spec.layers[: layer.function["before"]])
    # Its containers are started from the very image that the layer comes upon.
    assert render_image(so_far, SETTINGS) == (before,)
    found = step_spec(layer, so_far, "tag")
    assert is_step(found) and found.container_image == "tag" and found.image == so_far
    assert (found.cpu, found.memory, found.region, found.cloud) == ((0.5, 2.0), (64, 128), ("eu",), "aws")
    assert (found.gpu[0].model, found.gpu[0].count, found.env) == ("A100", 2, {"A": "1"})
    assert [x.name for x in found.secret_refs] == ["hf", "keys"]
    assert [x.path for x in (*found.volumes, *found.buckets, *found.network_file_systems)] == [
        "/data",
        "/bucket",
        "/shared",
    ]
    assert found.timeout > 100 and layer.function["function"]["timeout"] == 100
    settings = RenderSettings("http://d", "0" * 64, nfs_directory="/nfs")
    job = render_function(found, settings)
    assert job["NodePool"] == "builders" and job["TaskGroups"][0]["Tasks"][0]["Driver"] == "docker"
    # What builds it sees neither its Secrets nor a GPU.
    assert not layer.secrets and not layer.gpu


@pytest.mark.parametrize(
    "before",
    [
        debian,
        debian.env({"A": "1"}),
        debian.apt_install("git").workdir("/w"),
        Image.from_registry("ubuntu").entrypoint(["/e"]),
    ],
)
def test_a_step_is_run_in_all_that_comes_before_it(before: Image) -> None:
    spec, rendered = layers(before.run_function(step).run_commands("later").env({"B": "2"}))
    place = next(x for x, layer in enumerate(rendered) if layer.function)
    so_far = dataclasses.replace(spec, layers=spec.layers[: rendered[place].function["before"]], env={})
    assert render_image(so_far, SETTINGS) == rendered[:place]
    assert rendered[place].dockerfile == f"FROM {SETTINGS.tag(rendered[place - 1].key)}\n"


def test_what_builds_a_step_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(image: Image) -> str:
        return str(layers(image)[1][-1].key)

    first = key(debian.run_function(step))
    assert first == key(debian.run_function(step, cpu=2, memory=100, region="eu", timeout=5))
    others = [
        key(debian.run_function(step, args=[1])),
        key(debian.run_function(step, kwargs={"a": 1})),
        key(debian.run_function(step, gpu="T4")),
        key(debian.run_function(step, volumes={"/v": Volume.from_id("vo-1")})),
        key(debian.run_function(step, volumes={"/v": CloudBucketMount("b")})),
        key(debian.env({"A": "1"}).run_function(step)),
        key(debian.run_function(step, force_build=True)),
        key(debian.run_function(layers)),
    ]
    monkeypatch.setattr(f"{__name__}.LIMIT", 4)
    others.append(key(debian.run_function(step)))
    assert len({first, *others}) == len(others) + 1


def _written(path: Path) -> None:
    (path / "kept").write_text("other")


def _with_times_set_back(path: Path) -> None:
    before = os.stat(path / "kept")
    (path / "kept").write_text("same")
    os.utime(path / "kept", ns=(before.st_atime_ns, before.st_mtime_ns))


def _removed(path: Path) -> None:
    shutil.rmtree(path / "folder")
    (path / "folder.txt").unlink()


def _a_folder_for_a_file(path: Path) -> None:
    (path / "kept").unlink()
    (path / "kept").mkdir()
    (path / "kept/inside").write_text("x")


def _a_file_for_a_folder(path: Path) -> None:
    shutil.rmtree(path / "folder")
    (path / "folder").write_text("x")


def _a_link_for_a_folder(path: Path) -> None:
    shutil.rmtree(path / "folder")
    (path / "folder").symlink_to("kept")


def _special(path: Path) -> None:
    os.mkfifo(path / "pipe")
    (path / "soft").symlink_to("/nowhere")
    (path / "kept").chmod(0o711)
    (path / os.fsdecode(b"b\xe9d")).write_text("no UTF-8")
    (path / ("long" * 40)).write_text("x")


def _linked(path: Path) -> None:
    os.link(path / "kept", path / "zz")


def _shown(path: Path) -> None:
    (path / "volume/there").unlink()
    (path / "volume/new").write_text("of a Volume")


def _look(path: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            place = Path(folder, name)
            state = place.lstat()
            special = place.is_fifo() or (place.is_dir() and not place.is_symlink())
            content = os.readlink(place) if place.is_symlink() else "" if special else place.read_text()
            found[str(place.relative_to(path))] = (state.st_mode, state.st_nlink, content)
    return found


@pytest.mark.parametrize(
    "change",
    [
        _written,
        _with_times_set_back,
        _removed,
        _a_folder_for_a_file,
        _a_file_for_a_folder,
        _a_link_for_a_folder,
        _special,
        _linked,
        _shown,
        lambda path: None,
    ],
)
def test_a_change_put_in_place_elsewhere(tmp_path: Path, change: Callable[[Path], None]) -> None:
    here, there, parts = tmp_path / "here", tmp_path / "there", tmp_path / "parts"
    (here / "folder/deep").mkdir(parents=True)
    (here / "folder/deep/x").write_text("x")
    (here / "folder.txt").write_text("x")
    (here / "kept").write_text("kept")
    (here / "volume").mkdir()
    (here / "volume/there").write_text("of a Volume")
    shutil.copytree(here, there, symlinks=True)
    before = Tree(str(here), [str(here / "volume")])
    change(here)
    difference = Difference(before, Tree(str(here), [str(here / "volume")]))
    assert bool(difference.changed or difference.removed) == (change not in (_shown,) and _changes(change))
    archive = io.BytesIO()
    difference.write(archive)
    data = archive.getvalue()
    parts.mkdir()
    # Cut anywhere.
    for number in range(3):
        (parts / str(number)).write_bytes(data[number * 1000 : (number + 1) * 1000 if number < 2 else None])
    (parts / "removed.json").write_text(json.dumps(difference.names()))
    apply(str(parts), str(there))
    shutil.rmtree(here / "volume")
    assert (there / "volume/there").read_text() == "of a Volume"
    shutil.rmtree(there / "volume")
    assert _look(here) == _look(there)


def _changes(change: Callable[[Path], None]) -> bool:
    return change.__name__ != "<lambda>"


def test_what_is_mounted_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMAD_ALLOC_DIR", "/alloc")
    found = left_out(["/data"])
    assert {"/proc", "/sys", "/dev", "/alloc", "/data"} <= set(found) and "/" not in found


class _Blobs:
    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.put_sizes: list[int] = []

    def put(self, data: bytes) -> str:
        if self.fault is not None:
            raise self.fault
        self.put_sizes.append(len(data))
        return ""


def test_what_is_sent_is_cut_and_equal_parts_are_sent_once() -> None:
    blobs: Any = _Blobs()
    with _Sender(blobs) as sender:
        for _ in range(3):
            sender.write(bytes(CHUNK_BYTES))
        sender.write(b"end")
    assert len(sender.chunks) == 4 and len(set(sender.chunks)) == 2
    assert sorted(blobs.put_sizes) == [3, CHUNK_BYTES]


def test_a_full_disk_where_it_is_sent_to() -> None:
    blobs: Any = _Blobs(OSError(errno.ENOSPC, "the dispatcher's disk is full"))
    with pytest.raises(OSError, match="the dispatcher's disk is full"), _Sender(blobs) as sender:
        sender.write(b"x")


def test_nothing_of_a_value_is_run_to_read_it() -> None:
    assert loads_plain(dumps({"a": [1, "b", None, b"c"]})) == {"a": [1, "b", None, b"c"]}
    with pytest.raises(ValueError, match="is no plain value"):
        loads_plain(dumps(Path("/")))
    try:
        raise KeyError("which")
    except KeyError as error:
        text = exception_text(pack_exception(error))
    assert text.startswith("Traceback") and text.rstrip().endswith("KeyError: 'which'")
    with pytest.raises(ValueError, match="malformed"):
        exception_text(dumps([]))
