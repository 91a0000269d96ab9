"""What a worker sees of its container's use, over files that play the kernel's part."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from modal_nomad.wire.over_use import disk_use, killed, memory_limit
from modal_nomad.worker import _limits, _over_use
from modal_nomad.worker._cgroups import is_hidden, own_group
from modal_nomad.worker._over_use import OverUse
from tests._control_groups import Kernel

MIB = 1 << 20
ENVIRON = {"NOMAD_ALLOC_ID": "1234-alloc", "MODAL_TASK_ID": "ta-1"}
MEMORY = "memory rw - cgroup none rw,memory"
UNIFIED = "unified rw - cgroup2 none rw"
FIRST = ("2:memory:/nomad/1234-alloc.container\n0::/\n", MEMORY, UNIFIED)
SECOND = ("0::/nomad.slice/share.slice/1234-alloc.container.scope\n", UNIFIED)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def give(kernel: Kernel, directory: str, **files: str) -> Path:
    found = kernel.folder / directory
    found.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (found / name.replace("_", ".", 1)).write_text(text)
    return found


@pytest.mark.parametrize("version", [1, 2])
def test_a_process_that_the_kernel_ended_is_told_once_it_is_this_containers(
    version: int, kernel: Kernel
) -> None:
    kernel.has(*(FIRST if version == 1 else SECOND))
    if version == 1:
        limit, events = {"memory_limit_in_bytes": str(200 * MIB)}, "memory_oom_control"
        directory = "memory/nomad/1234-alloc.container"
    else:
        limit, events = {"memory_max": str(200 * MIB)}, "memory_events"
        directory = "unified/nomad.slice/share.slice/1234-alloc.container.scope"
    # One of before, as of another container of the same allocation.
    give(kernel, directory, **limit, **{events: "under_oom 0\noom_kill 1\n"})
    told: list[tuple[str, str]] = []
    watch = OverUse(ENVIRON, lambda kind, text: told.append((kind, text)))
    watch.look()
    assert told == []
    give(kernel, directory, **{events: "under_oom 0\noom_kill 2\n"})
    watch.look()
    ((kind, text),) = told
    assert kind == "memory" and "above its limit of 200 MiB: ask for more with memory=" in text


def test_a_group_that_others_are_in_says_nothing(kernel: Kernel) -> None:
    kernel.has("2:memory:/user\n0::/user\n", MEMORY, UNIFIED)
    give(kernel, "memory/user", memory_limit_in_bytes=str(MIB), memory_oom_control="oom_kill 3\n")
    assert own_group("memory", ENVIRON) == "" and not is_hidden("memory", ENVIRON)
    # That of a container runtime is a container's own, whatever it is called.
    assert own_group("memory", {**ENVIRON, "MODAL_CONTAINER_RUNTIME": "docker"}).endswith("memory/user")


def test_a_group_without_a_limit_ends_nobody(kernel: Kernel) -> None:
    kernel.has(*SECOND)
    directory = give(kernel, SECOND[0][3:-1].lstrip("/"), memory_max="max\n")
    assert memory_limit(str(directory)) == 0 and killed(str(directory)) == 0


def test_a_group_that_is_not_seen_is_asked_by_another_process_and_only_when_something_happened(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.has("2:memory:/nomad/1234-alloc.container\n0::/nomad/1234-alloc.container\n")
    assert is_hidden("memory", ENVIRON)
    on_node, asked = [5], [0]

    def ask() -> tuple[int, int]:
        asked[0] += 1
        return (0, 0) if on_node[0] == 6 else (1, 200 * MIB)

    monkeypatch.setattr(_over_use, "_killed_on_node", lambda: on_node[0])
    monkeypatch.setattr(_over_use, "_ask_hidden_group", ask)
    told: list[str] = []
    watch = OverUse(ENVIRON, lambda kind, text: told.append(text))
    watch.look()
    assert asked == [0]
    # Of another container of the node.
    on_node[0] = 6
    watch.look()
    watch.look()
    assert asked == [1] and told == []
    on_node[0] = 7
    watch.look()
    assert len(told) == 1


def test_a_part_of_a_processor_is_held_in_a_group_of_nomads(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.has("1:cpu:/nomad/1234-alloc.container\n", "cpu rw - cgroup none rw,cpu")
    directory = give(kernel, "cpu/nomad/1234-alloc.container", cpu_shares="100")
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None, raising=False)
    _limits.apply({**ENVIRON, "MODAL_CPU_LIMIT": "0.25"})
    assert (directory / "cpu.cfs_quota_us").read_text() == "25000"
    assert (directory / "cpu.cfs_period_us").read_text() == "100000"


def test_what_was_there_before_and_what_is_a_volumes_does_not_count(tmp_path: Path) -> None:
    task, alloc = tmp_path / "task", tmp_path / "alloc"
    for folder in (task / "local", alloc / "volumes/vo-1"):
        folder.mkdir(parents=True)
    (task / "before").write_bytes(os.urandom(8 * MIB))
    (task / "image").write_bytes(os.urandom(8 * MIB))
    os.utime(task / "image", (1, 1))
    since = time.time() + 0.05
    while time.time() < since + 0.05:
        time.sleep(0.01)
    # Another container of the node is given the same file of the node's, as the driver exec gives it.
    os.link(task / "image", tmp_path / "another")
    (alloc / "volumes/vo-1/large").write_bytes(os.urandom(8 * MIB))
    (task / "local/own").write_bytes(os.urandom(2 * MIB))
    (alloc / "shared").write_bytes(os.urandom(1 * MIB))
    tops = [str(task), str(task / "local"), str(alloc)]
    assert 3 * MIB <= disk_use(tops, [str(alloc / "volumes")], since) < 4 * MIB


def test_the_directories_of_a_task_are_its_own() -> None:
    environ = {"NOMAD_TASK_DIR": "/local", "NOMAD_ALLOC_DIR": "/alloc"}
    assert _over_use._own_files(environ) == (["/", "/local", "/alloc"], ["/alloc/volumes"])
    assert _over_use._own_files({}) == ([], [])
