"""Function → Nomad job: golden files and the rules behind them.

``RENDER_GOLDEN=write pytest tests/unit/test_render.py`` writes the files anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.render import RenderSettings, render_function
from modal_nomad.render.names import job_id
from modal_nomad.wire.mounts import NfsMount
from modal_nomad.wire.placement import PlacementSpec, SchedulerSpec
from modal_nomad.wire.spec import (
    FunctionSpec,
    GPUOption,
    ImageLayer,
    ImageSpec,
    MethodSpec,
    ParameterSpec,
    WebSpec,
)

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = RenderSettings(server_url="http://10.0.0.1:8520", runtime_sha="a" * 64, deployer="ann")
CASES: dict[str, tuple[FunctionSpec, RenderSettings]] = {
    "plain": (FunctionSpec(app="hello", name="square", module="hello", code_bundle="b" * 64), SETTINGS),
    "serialized": (FunctionSpec(app="nb", name="f", serialized=True, function_blob="c" * 64), SETTINGS),
    "class": (
        FunctionSpec(
            app="hello",
            name="Model.*",
            module="hello",
            qualname="Model",
            code_bundle="b" * 64,
            is_class=True,
            methods={"predict": MethodSpec(is_async=True)},
            parameters=(ParameterSpec("size", "int", 3),),
        ),
        SETTINGS,
    ),
    "served": (
        FunctionSpec(app="shop", name="web", module="shop", web=WebSpec("asgi", label="front")),
        RenderSettings(server_url="http://10.0.0.1:8520", runtime_sha="a" * 64, web_sha="e" * 64),
    ),
    "placed": (
        FunctionSpec(
            app="hello",
            name="placed",
            module="hello",
            scheduler=SchedulerSpec("eu-1a", False, ("m5.large", "m5.xlarge")),
            proxy="office",
            nomad=PlacementSpec(
                datacenters=("dc1", "eu-*"),
                constraints=(("${node.class}", "=", "fast"), ("${attr.cpu.arch}", "is_set", "")),
                affinities=(("${meta.disk}", "=", "nvme", -20),),
                spreads=(("${node.datacenter}", 60, (("dc1", 70), ("dc2", 30))), ("${meta.rack}", 50, ())),
                priority=70,
                meta={"team": "ml"},
            ),
        ),
        replace(SETTINGS, proxies={"office": {"node_pool": "egress", "node_meta": {"ip": "office"}}}),
    ),
    "everything": (
        FunctionSpec(
            app="My App",
            name="Model.predict",
            module="app.model",
            code_bundle="b" * 64,
            image=ImageSpec(
                python="3.12",
                layers=(ImageLayer("pip", ("numpy==2.1.0",), {"extra_index_url": None}),),
                env={"A": "image", "B": "image"},
                workdir="/srv",
            ),
            env={"A": "function", "MODAL_TASK_ID": "not yours"},
            cpu=(2.5, 4.0),
            memory=(1024, 4096),
            ephemeral_disk=2048,
            region=("dc1", "dc2"),
            cloud="aws",
            nonpreemptible=True,
            gpu=(GPUOption("H100", 2), GPUOption("A100-80GB", 2)),
        ),
        RenderSettings(
            server_url="https://modal.example:8520/",
            runtime_sha="a" * 64,
            driver="exec",
            namespace="prod",
            node_pool="gpu",
            python="/usr/bin/python3.12",
            app_suffix="x7Qa",
            deployer="ci",
            environment="prod",
            priority=70,
            core_mhz=2400,
            kill_timeout=12.5,
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    job = render_function(*CASES[name])
    path = GOLDEN / f"{name}.json"
    text = json.dumps(job, indent=2, sort_keys=True) + "\n"
    if os.environ.get("RENDER_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def _task(spec: FunctionSpec, settings: RenderSettings = SETTINGS) -> dict[str, Any]:
    task: dict[str, Any] = render_function(spec, settings)["TaskGroups"][0]["Tasks"][0]
    return task


def test_our_variables_win_and_the_functions_beat_the_images() -> None:
    env = _task(CASES["everything"][0])["Env"]
    assert (env["A"], env["B"]) == ("function", "image")
    assert env["MODAL_TASK_ID"] == "${NOMAD_META_modal_container}"


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (ImageSpec(), False),
        (ImageSpec(python="3.12"), True),
        (ImageSpec(layers=(ImageLayer("pip", ("attrs",)),)), True),
    ],
)
def test_a_container_is_told_what_its_interpreter_must_be(image: ImageSpec, named: bool) -> None:
    env = _task(FunctionSpec(app="a", name="f", image=image))["Env"]
    assert ("MODAL_IMAGE" in env) == named
    assert not named or json.loads(env["MODAL_IMAGE"])["python"] == image.python


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ((None, None), {"MemoryMB": 256}),
        ((512, None), {"MemoryMB": 512}),
        ((512, 1024), {"MemoryMB": 512, "MemoryMaxMB": 1024}),
        ((None, 1024), {"MemoryMB": 256, "MemoryMaxMB": 1024}),
        ((None, 128), {"MemoryMB": 128}),
        ((512, 512), {"MemoryMB": 512}),
    ],
)
def test_memory(memory: tuple[int | None, int | None], expected: dict[str, int]) -> None:
    resources = _task(FunctionSpec(app="a", name="f", memory=memory))["Resources"]
    assert resources == {"CPU": 100, **expected}


@pytest.mark.parametrize(("cores", "mhz"), [(None, 100), (0.125, 125), (1.0, 1000), (2.5, 2500)])
def test_cpu(cores: float | None, mhz: int) -> None:
    assert _task(FunctionSpec(app="a", name="f", cpu=(cores, None)))["Resources"]["CPU"] == mhz


@given(disk=st.one_of(st.none(), st.integers(0, 10**6)), size=st.integers(1, 100), files=st.integers(1, 50))
def test_logs_always_fit_the_disk(disk: int | None, size: int, files: int) -> None:
    settings = RenderSettings(server_url="http://x", runtime_sha="a", log_files=files, log_file_size=size)
    job = render_function(FunctionSpec(app="a", name="f", ephemeral_disk=disk), settings)
    group = job["TaskGroups"][0]
    logs = group["Tasks"][0]["LogConfig"]
    assert 1 <= logs["MaxFiles"] * logs["MaxFileSizeMB"] < group["EphemeralDisk"]["SizeMB"]


@pytest.mark.parametrize(
    ("app", "function", "suffix", "expected"),
    [
        ("hello", "square", "", "hello-square"),
        ("my-app", "Model.run", "", "my-app-Model.run"),
        ("hello", "square", "x7", "hello-square--x7"),
    ],
)
def test_readable_job_ids(app: str, function: str, suffix: str, expected: str) -> None:
    assert job_id(app, function, suffix=suffix) == expected


@given(
    st.lists(
        st.tuples(st.text("ab- /ä.", max_size=6), st.text("ab- /ä.", max_size=6)), max_size=8, unique=True
    )
)
def test_job_ids_are_unique_and_safe(pairs: list[tuple[str, str]]) -> None:
    ids = [job_id(app, function) for app, function in pairs]
    assert len(set(ids)) == len(ids)
    assert all(set(i) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for i in ids)


@pytest.mark.parametrize("kind", ["host", "csi"])
def test_the_directory_of_network_file_systems(kind: str) -> None:
    spec = FunctionSpec(app="a", name="f", network_file_systems=(NfsMount("/data", "sv-1"),))
    on_nodes = replace(SETTINGS, nfs_directory="/mnt/modal")
    group = render_function(spec, on_nodes)["TaskGroups"][0]
    assert group["Tasks"][0]["Env"]["MODAL_NFS_DIR"] == "/mnt/modal" and "Volumes" not in group
    in_a_volume = replace(on_nodes, driver="exec", nfs_volume="files", nfs_volume_type=kind)
    group = render_function(spec, in_a_volume)["TaskGroups"][0]
    (task,) = group["Tasks"]
    (volume,) = group["Volumes"].values()
    assert (volume["Type"], volume["Source"], volume["ReadOnly"]) == (kind, "files", False)
    assert volume.get("AccessMode") == ("multi-node-multi-writer" if kind == "csi" else None)
    assert task["Env"]["MODAL_NFS_DIR"] == task["VolumeMounts"][0]["Destination"] == "/modal-nfs"
    # A Function that uses none gets none.
    group = render_function(FunctionSpec(app="a", name="f"), in_a_volume)["TaskGroups"][0]
    assert "Volumes" not in group and "MODAL_NFS_DIR" not in group["Tasks"][0]["Env"]


def test_environments_that_share_a_namespace_do_not_share_jobs() -> None:
    ids = {job_id("a", "f", environment=e, namespace="default") for e in ("main", "dev", "stage")}
    assert len(ids) == 3
    assert job_id("a", "f", environment="dev", namespace="dev") == "a-f"


def test_settings_round_trip_and_refuse_unknown_drivers() -> None:
    settings = CASES["everything"][1]
    data = json.loads(json.dumps({**settings.to_dict(), "newer": 1}))
    assert RenderSettings.from_dict(data) == settings
    with pytest.raises(ValueError, match="raw_exec"):
        RenderSettings(server_url="", runtime_sha="", driver="qemu")
    with pytest.raises(ValueError, match="raw_exec mounts no volumes"):
        RenderSettings(server_url="", runtime_sha="", nfs_volume="files")
    with pytest.raises(ValueError, match="none of host, csi"):
        RenderSettings(server_url="", runtime_sha="", nfs_volume_type="block")
