"""The device plugin under a real Nomad, with fake cards: from ``gpu=`` to what a container sees.

On a machine with a card of NVIDIA's the driver's own are offered too, in an agent of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad.gpu import gpu_options
from modal_nomad.render.devices import gpu_devices
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import (
    agent_config,
    agent_process,
    free_ports,
    nomad_agent,
    nomad_binary,
)
from tests.plugin._plugin_client import A100, L4, write_cards
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put

LIMIT = 150
PARTED = {
    "uuid": "GPU-m",
    "name": "NVIDIA H100 PCIe",
    "memory": 81559,
    "mig": [{"uuid": "MIG-1", "profile": "1g.10gb", "memory": 9984}],
}
USED = {**A100, "usage": {"memory_used": 1000, "power": 80, "power_limit": 400, "temperature": 50}}
SHARE = [{"gpu": "L4", "slices": 2}]
FILE = """
import json
import os
import modal

app = modal.App("gpus")
NAMES = ("VISIBLE_DEVICES", "PINNED_DEVICE_MEM_LIMIT", "PIPE_DIRECTORY")

def see():
    return {name: value for name, value in os.environ.items() if name.endswith(NAMES)}

wanted = {
    "whole": "A100-80GB",
    "any": "any",
    "half": "L4:0.5",
    "memory": modal.gpu.Shared("any", memory=11_000),
    "preferred": ["H200", "A100"],
    "sliced_card": "L4",
    "parted_card": "H100",
    "two": "any:2",
    "large_slice": "L4:0.6",
}
functions = {name: app.function(gpu=gpu, name=name, serialized=True)(see) for name, gpu in wanted.items()}

@app.local_entrypoint()
def main(names: str):
    for name in names.split(","):
        print(json.dumps(functions[name].remote()), flush=True)
"""


@dataclass
class Stack:
    nomad: str
    url: str
    cards: Path
    folder: Path
    plugins: Path

    def devices(self) -> dict[str, dict[str, Any]]:
        (node,) = get(self.nomad, "/v1/nodes")
        found = get(self.nomad, f"/v1/node/{node['ID']}")["NodeResources"]["Devices"] or []
        return {f"{device['Type']}/{device['Name']}": device for device in found}

    def until(self, true_of: Callable[[dict[str, dict[str, Any]]], Any]) -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + LIMIT
        while not true_of(devices := self.devices()):
            assert time.monotonic() < deadline, devices
            time.sleep(0.05)
        return devices

    def run(self, *names: str) -> list[dict[str, str]]:
        done = modal_nomad(self.folder, self.url, "run", "app.py", "--names", ",".join(names), file=FILE)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[str]]:
        (self.folder / "app.py").write_text(FILE)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_"))}
        process = subprocess.Popen(
            [sys.executable, "-m", "modal_nomad", "run", "app.py", "--names", name],
            cwd=self.folder,
            env={**clean, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": self.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT)


def first_line(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    seen = []
    # Who never says it is ended, and what it said instead is the failure.
    guard = threading.Timer(LIMIT, process.kill)
    guard.start()
    try:
        for line in process.stdout:
            seen.append(line)
            if words in line:
                return line.strip()
    finally:
        guard.cancel()
    raise AssertionError("".join(seen))


def plugin_dir(folder: Path) -> Path:
    program = shutil.which("modal-nomad-gpu", path=str(Path(sys.executable).parent))
    assert program is not None, "the plugin's package is not installed: make test does it"
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "modal-nomad-gpu").symlink_to(program)
    return plugins


def plugin_blocks(**config: Any) -> list[dict[str, Any]]:
    return [{"raw_exec": {"config": {"enabled": True}}}, {"modal-nomad-gpu": {"config": config}}]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    folder = tmp_path_factory.mktemp("gpus")
    cards, plugins = folder / "cards.json", plugin_dir(folder)
    pipes = folder / "mps"
    pipes.mkdir()
    write_cards(cards, USED, L4, PARTED, mps=True)
    blocks = plugin_blocks(fake=str(cards), share=SHARE, mps_pipe_directory=str(pipes), require_mps=True)
    telemetry = {"collection_interval": "1s"}
    with (
        nomad_agent(binary, plugin_dir=str(plugins), plugin=blocks, telemetry=telemetry) as nomad,
        dispatcher(folder, {"address": nomad}, auth="none") as url,
    ):
        yield Stack(nomad, url, cards, folder, plugins)


@pytest.fixture
def restored(stack: Stack) -> Iterator[Stack]:
    """The same, whose cards are as before when the test is over."""
    yield stack
    write_cards(stack.cards, USED, L4, PARTED, mps=True)
    stack.until(lambda devices: all(i["Healthy"] for d in devices.values() for i in d["Instances"]))


def test_nomad_has_the_devices(stack: Stack) -> None:
    devices = stack.until(len)
    assert {name: [i["ID"] for i in device["Instances"]] for name, device in devices.items()} == {
        "gpu/NVIDIA A100-SXM4-80GB": ["GPU-a"],
        "gpu/NVIDIA H100 PCIe MIG 1g.10gb": ["MIG-1"],
        "gpu-slice/NVIDIA L4 slice 11517MiB": ["GPU-l-slice-1", "GPU-l-slice-2"],
    }
    attributes = devices["gpu/NVIDIA A100-SXM4-80GB"]["Attributes"]
    assert (attributes["memory"]["Int"], attributes["memory"]["Unit"]) == (81920, "MiB")
    assert attributes["driver_version"]["String"] == "550.54"


def test_a_container_sees_the_device_that_its_function_asks_for(stack: Stack) -> None:
    whole = {"CUDA_VISIBLE_DEVICES": "GPU-a", "NVIDIA_VISIBLE_DEVICES": "GPU-a"}
    limits = {"PINNED_DEVICE_MEM_LIMIT": "0=11517M", "PIPE_DIRECTORY": str(stack.folder / "mps")}
    part = dict.fromkeys(whole, "GPU-l") | {f"CUDA_MPS_{name}": value for name, value in limits.items()}
    # The slice by memory runs beside the half: a card is no container's alone.
    assert stack.run("whole", "half", "memory") == [whole, part, part]
    assert stack.run("preferred") == [whole]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sliced_card", "1 × L4 free: 1 lack the model"),
        ("parted_card", "1 × H100 free: 1 lack the model"),
        ("two", "2 × any GPU free: 1 lack the model"),
        ("large_slice", "0.6 of L4 free: 1 lack the model"),
    ],
)
def test_parts_are_no_cards_and_who_waits_is_told_why(stack: Stack, name: str, words: str) -> None:
    with stack.running(name) as process:
        assert f"{name}: waiting for a container: 0 of 1 nodes have {words}" in first_line(process, "waiting")


def test_a_job_for_hashicorps_plugin_is_placed(stack: Stack) -> None:
    """Attributes, units and model as such jobs have them."""
    hcl = """
    job "before" {
      type = "batch"
      group "g" {
        task "t" {
          driver = "raw_exec"
          config { command = "/bin/true" }
          resources {
            memory = 32
            device "nvidia/gpu" {
              constraint {
                attribute = "${device.attr.memory}"
                operator  = ">="
                value     = "70 GiB"
              }
              constraint {
                attribute = "${device.attr.cores_clock}"
                operator  = ">"
                value     = "1 GHz"
              }
            }
          }
        }
      }
    }
    """
    (stack.folder / "before.nomad.hcl").write_text(hcl)
    done = subprocess.run(
        [nomad_binary() or "nomad", "job", "run", f"-address={stack.nomad}", "before.nomad.hcl"],
        cwd=stack.folder,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (allocation,) = get(stack.nomad, "/v1/job/before/allocations")
    whole = get(stack.nomad, f"/v1/allocation/{allocation['ID']}")
    (device,) = whole["AllocatedResources"]["Tasks"]["t"]["Devices"]
    assert (device["Name"], device["DeviceIDs"]) == ("NVIDIA A100-SXM4-80GB", ["GPU-a"])


def test_a_card_that_turns_unhealthy_takes_no_work_until_it_is_well(restored: Stack) -> None:
    write_cards(restored.cards, {**USED, "fault": "7 uncorrectable memory errors"}, L4, PARTED, mps=True)
    name = "gpu/NVIDIA A100-SXM4-80GB"
    devices = restored.until(lambda found: not found[name]["Instances"][0]["Healthy"])
    assert devices[name]["Instances"][0]["HealthDescription"] == "7 uncorrectable memory errors"
    with restored.running("whole") as process:
        line = first_line(process, "waiting")
        assert line.endswith("0 of 1 nodes have 1 × A100-80GB free: 1 lack the model.")
        write_cards(restored.cards, USED, L4, PARTED, mps=True)
        assert json.loads(first_line(process, "{"))["CUDA_VISIBLE_DEVICES"] == "GPU-a"


def test_slices_that_nobody_holds_to_their_share_are_not_given(restored: Stack) -> None:
    write_cards(restored.cards, USED, L4, PARTED, mps=False)
    name = "gpu-slice/NVIDIA L4 slice 11517MiB"
    found = restored.until(lambda found: not any(i["Healthy"] for i in found[name]["Instances"]))
    assert {
        "no MPS control daemon listens in" in i["HealthDescription"] for i in found[name]["Instances"]
    } == {True}


def test_nomad_shows_what_the_cards_do(stack: Stack) -> None:
    (node,) = get(stack.nomad, "/v1/nodes")
    deadline = time.monotonic() + LIMIT
    while not (groups := get(stack.nomad, f"/v1/client/stats?node_id={node['ID']}").get("DeviceStats")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (stats,) = [g["InstanceStats"]["GPU-a"] for g in groups if "GPU-a" in g["InstanceStats"]]
    assert (stats["Summary"]["IntNumeratorVal"], stats["Summary"]["IntDenominatorVal"]) == (1000, 81920)
    assert stats["Stats"]["Attributes"]["Temperature"]["IntNumeratorVal"] == 50
    (parts,) = [g["InstanceStats"] for g in groups if g["Type"] == "gpu-slice"]
    assert len(parts) == 2


def test_nomad_starts_a_plugin_anew_that_died(stack: Stack) -> None:
    stack.until(len)
    (pid,) = _processes(stack.plugins)
    os.kill(pid, 9)
    deadline = time.monotonic() + LIMIT
    while not (after := _processes(stack.plugins)) or pid in after:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert stack.run("half")[0]["CUDA_VISIBLE_DEVICES"] == "GPU-l"


def test_a_bad_configuration_is_one_clear_line_in_nomads_log(tmp_path: Path) -> None:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    ports = free_ports(3)
    blocks = plugin_blocks(share=[{"gpu": "L4", "slices": 1}])
    config = agent_config(str(tmp_path), *ports, plugin_dir=str(plugin_dir(tmp_path)), plugin=blocks)
    with agent_process(binary, str(tmp_path), config, "-dev") as (process, log):
        assert process.wait(LIMIT) != 0
    assert "modal-nomad-gpu: share.slices = 1: a card has 2 to 48 slices" in log.read_text()


PRODUCTS = {
    "T4": "Tesla T4",
    "L4": "NVIDIA L4",
    "A10": "NVIDIA A10",
    "A10G": "NVIDIA A10G",
    "A100-40GB": "NVIDIA A100-SXM4-40GB",
    "A100-80GB": "NVIDIA A100 80GB PCIe",
    "L40S": "NVIDIA L40S",
    "H100": "NVIDIA H100 80GB HBM3",
    "H200": "NVIDIA H200",
    "B200": "NVIDIA B200",
}


def test_every_name_finds_its_own_card(tmp_path: Path) -> None:
    """Nomad's regular expressions are not Python's."""
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    # Two of each: one stays free for whoever asks for either size, or for one of several.
    gpus = [{"uuid": f"{n}-{x}", "name": x, "memory": 1000} for x in PRODUCTS.values() for n in (1, 2)]
    # And of each one that is parted, which nobody gets.
    parted = [
        {
            "uuid": f"3-{x}",
            "name": x,
            "memory": 1000,
            "mig": [{"uuid": f"MIG-{x}", "profile": "1g.10gb", "memory": 500}],
        }
        for x in PRODUCTS.values()
    ]
    write_cards(tmp_path / "cards.json", *gpus, *parted)
    asked: dict[str, Any] = {name: name for name in PRODUCTS}
    asked |= {"A100": "A100", "list": ["L40S", "T4"], "class": modal.gpu.A100(size="80GB", count=1)}
    also = {"A100": "A100-40GB", "list": "L40S", "class": "A100-80GB"}
    expected = PRODUCTS | {name: PRODUCTS[model] for name, model in also.items()}
    blocks = plugin_blocks(fake=str(tmp_path / "cards.json"))
    with nomad_agent(binary, plugin_dir=str(plugin_dir(tmp_path)), plugin=blocks) as nomad:
        for name, value in asked.items():
            resources = {"CPU": 1, "MemoryMB": 10, "Devices": gpu_devices(gpu_options(value))}
            task = {
                "Name": "t",
                "Driver": "raw_exec",
                "Config": {"command": "/bin/true"},
                "Resources": resources,
                "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 5},
            }
            group = {"Name": "g", "Tasks": [task], "EphemeralDisk": {"SizeMB": 50}}
            job = {"ID": name, "Name": name, "Type": "batch", "Datacenters": ["*"], "TaskGroups": [group]}
            put(nomad, "/v1/jobs", {"Job": job})
        found: dict[str, str] = {}
        deadline = time.monotonic() + LIMIT
        while set(found) != set(asked):
            assert time.monotonic() < deadline, set(asked) - set(found)
            for allocation in get(nomad, "/v1/allocations?resources=true"):
                (device,) = allocation["AllocatedResources"]["Tasks"]["t"]["Devices"]
                found[allocation["JobID"]] = device["Name"]
    assert found == expected


def test_the_drivers_own_cards(tmp_path: Path) -> None:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"]).returncode != 0:
        pytest.skip("no card of NVIDIA's here")
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    with (
        nomad_agent(binary, plugin_dir=str(plugin_dir(tmp_path)), plugin=plugin_blocks()) as nomad,
        dispatcher(tmp_path, {"address": nomad}, auth="none") as url,
    ):
        stack = Stack(nomad, url, tmp_path / "none", tmp_path, tmp_path / "plugins")
        devices = stack.until(len)
        assert all(i["ID"] in listed for device in devices.values() for i in device["Instances"])
        (seen,) = stack.run("any")
        assert seen["CUDA_VISIBLE_DEVICES"] in listed


def _processes(plugins: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(plugins).encode() in command and b"nomad\0agent" not in command:
                found.append(int(entry.name))
    return found
