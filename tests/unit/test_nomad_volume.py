"""Volumes that Nomad mounts: what they are in a program, in a job, and where there is no Nomad."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad._volume_mounts import check_volumes
from modal_nomad.engines._local_job import faults_of, parse
from modal_nomad.exception import ExecutionError, InvalidError
from modal_nomad.render import RenderSettings, render_function
from modal_nomad.wire.mounts import VolumeMount
from modal_nomad.wire.spec import FunctionSpec
from modal_nomad.worker._host_volumes import HostVolumes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"backend": "nfs"}, "give 'csi' or 'host'"),
        ({"access_mode": "single-node-writer"}, "give 'csi' or 'host'"),
        ({"backend": "csi", "access_mode": "all"}, "'all'; give one of those that a csi volume has: single"),
        ({"backend": "csi", "access_mode": "single-node-multi-writer"}, "that a csi volume has"),
        ({"backend": "host", "access_mode": "multi-node-multi-writer"}, "that a host volume has"),
        ({"backend": "csi", "create_if_missing": True}, "make it with `nomad volume create`"),
        ({"backend": "host", "environment_name": "dev"}, "leave out"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        modal.Volume.from_name("data", **given)


def test_only_containers_see_into_it() -> None:
    volume = modal.Volume.from_name("data", backend="host")
    for use in (
        lambda: volume.listdir("/"),
        lambda: list(volume.iterdir("/")),
        lambda: list(volume.read_file("x")),
        lambda: volume.remove_file("x"),
        lambda: volume.copy_files(["x"], "y"),
        lambda: volume.info(),
    ):
        with pytest.raises(InvalidError, match="is Nomad's, and only containers see into it"):
            use()
    # What is written there is there, and seen.
    volume.commit()
    volume.reload()
    volume.hydrate()


def test_it_travels_and_is_itself() -> None:
    volume = modal.Volume.from_name("data", backend="csi", access_mode="single-node-writer").read_only()
    again = pickle.loads(pickle.dumps(volume))
    mount = VolumeMount("/x", "", True, "csi", "data", "single-node-writer")
    assert volume._mount("/x") == again._mount("/x") == mount
    kept = modal.Volume.from_name("data")
    assert len(check_volumes({"/a": volume, "/b": kept})) == 2
    with pytest.raises(InvalidError, match="is shown at /a and at /b"):
        check_volumes({"/a": volume, "/b": again})


def test_modes_and_reading_only_go_together() -> None:
    assert (
        modal.Volume.from_name("d", backend="csi", access_mode="multi-node-reader-only")
        ._mount("/d")
        .read_only
    )
    writer = modal.Volume.from_name("d", backend="host", access_mode="single-node-writer")
    with pytest.raises(InvalidError, match="mounts no host volume for reading only with access_mode="):
        writer.read_only()


def _job(*volumes: VolumeMount, **settings: Any) -> dict[str, Any]:
    spec = FunctionSpec("a", "f", volumes=(VolumeMount("/kept", "vo-1"), *volumes))
    assert FunctionSpec.from_dict(spec.to_dict()) == spec
    return render_function(spec, RenderSettings(server_url="http://d", runtime_sha="0" * 64, **settings))


def test_the_jobs_blocks() -> None:
    host = modal.Volume.from_name("files", backend="host")._mount("/files")
    csi = modal.Volume.from_name("disk", backend="csi").read_only()._mount("/disk")
    [group] = _job(host, csi, driver="exec")["TaskGroups"]
    assert group["Volumes"] == {
        "volume-0": {
            "Name": "volume-0",
            "Type": "host",
            "Source": "files",
            "ReadOnly": False,
            "AccessMode": "single-node-multi-writer",
            "AttachmentMode": "file-system",
        },
        "volume-1": {
            "Name": "volume-1",
            "Type": "csi",
            "Source": "disk",
            "ReadOnly": True,
            # Who reads only claims it as writers do: Nomad would keep either out while the other holds it.
            "AccessMode": "multi-node-multi-writer",
            "AttachmentMode": "file-system",
        },
    }
    assert group["Tasks"][0]["VolumeMounts"] == [
        {"Volume": "volume-0", "Destination": "/files", "ReadOnly": False},
        {"Volume": "volume-1", "Destination": "/disk", "ReadOnly": True},
    ]


def test_without_a_nomad_a_csi_volume_is_refused_and_a_host_volume_is_a_directory() -> None:
    host = modal.Volume.from_name("files", backend="host")._mount("/files")
    csi = modal.Volume.from_name("disk", backend="csi")._mount("/disk")
    [fault] = faults_of(_job(host, csi))
    assert fault.startswith("csi volume 'disk' needs Nomad: use backend=\"host\"")
    assert parse(_job(host)).host_volumes == ("files",) and parse(_job()).host_volumes == ()


def test_no_name_leads_out_of_the_directory(tmp_path: Any) -> None:
    for name in ("..", "../x", "/etc", ""):
        with pytest.raises(ExecutionError, match="no name of a host volume"):
            HostVolumes([VolumeMount("/x", "", False, "host", name)], str(tmp_path))
