"""Control groups of containers, over files that play the kernel's part; and what is counted without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modal_nomad.engines._local_files import family
from modal_nomad.engines._local_groups import ControlGroups, Group
from modal_nomad.wire.over_use import disk_use
from tests._control_groups import Kernel

MIB = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_the_first_version(kernel: Kernel, tmp_path: Path) -> None:
    kernel.has(
        "3:cpu,cpuacct:/me\n2:memory:/me\n0::/\n",
        "cpuacct,cpu rw - cgroup none rw,cpuacct,cpu",
        "memory rw - cgroup none rw,memory",
        "unified rw - cgroup2 none rw",
    )
    for name in ("cpuacct,cpu", "memory"):
        (tmp_path / name / "me").mkdir(parents=True)
    groups = ControlGroups("ours", tmp_path / "marker")
    assert groups.make("ta-0", None, 0) is None and not (tmp_path / "marker").exists()
    group = groups.make("ta-1", 300 * MIB, 0.5)
    assert group == Group(f"{tmp_path}/memory/me/ours/ta-1", f"{tmp_path}/cpuacct,cpu/me/ours/ta-1")
    assert [Path(door).name for door in group.doors] == ["cgroup.procs"] * 2
    assert kernel.text("memory/me/ours/ta-1/memory.limit_in_bytes") == str(300 * MIB)
    assert kernel.text("cpuacct,cpu/me/ours/ta-1/cpu.cfs_quota_us") == "50000"
    assert kernel.text("cpuacct,cpu/me/ours/ta-1/cpu.cfs_period_us") == "100000"
    assert group.killed == 0
    Path(group.memory, "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert group.killed == 2
    only = groups.make("ta-2", None, 1.5)
    assert only is not None and len(only.doors) == 1 and not only.memory
    assert kernel.text("marker").split() == [f"{tmp_path}/memory/me/ours", f"{tmp_path}/cpuacct,cpu/me/ours"]


def test_the_second_version_below_the_nearest_that_gives_controllers(kernel: Kernel, tmp_path: Path) -> None:
    kernel.has("0::/user/app/own.scope\n", "all rw - cgroup2 none rw")
    kernel.group("all/user/app/own.scope", "-")
    kernel.group("all/user/app", "memory pids")
    kernel.group("all/user/app/ours", "")
    (tmp_path / "all/user/app/ours/ta-1").mkdir()
    for name in ("memory.max", "cpu.max"):
        (tmp_path / "all/user/app/ours/ta-1" / name).touch()
    group = ControlGroups("ours", tmp_path / "marker").make("ta-1", 300 * MIB, 0.25)
    assert group == Group(*[f"{tmp_path}/all/user/app/ours/ta-1"] * 2)
    assert len(group.doors) == 1
    assert kernel.text("all/user/app/cgroup.subtree_control") == "+cpu"
    assert kernel.text("all/user/app/ours/cgroup.subtree_control") == "+cpu +memory"
    assert kernel.text("all/user/app/ours/ta-1/memory.max") == str(300 * MIB)
    assert kernel.text("all/user/app/ours/ta-1/cpu.max") == "25000 100000"
    Path(group.memory, "memory.events").write_text("oom 1\noom_kill 1\noom_group_kill 1\n")
    assert group.killed == 1


def test_where_none_can_be_made_the_reason_is_said(kernel: Kernel, tmp_path: Path) -> None:
    kernel.has("0::/own.scope\n", "all rw - cgroup2 none rw")
    kernel.group("all/own.scope", "-")
    kernel.group("all", "-")
    groups = ControlGroups("ours", tmp_path / "marker")
    assert groups.make("ta-1", 300 * MIB, 0.25) is None
    assert groups.why_not == f"this process may make none that holds memory and processors in {tmp_path}/all"
    assert not list(tmp_path.rglob("ours"))
    kernel.has("")
    groups = ControlGroups("ours", tmp_path / "marker")
    assert groups.make("ta-1", 300 * MIB, 0.25) is None
    assert groups.why_not == "this system limits nothing by them"


def test_what_is_left_is_ended_and_taken_away_by_the_next_one(kernel: Kernel, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    base = tmp_path / "all/ours"
    (base / "ta-1").mkdir(parents=True)
    (base / "ta-1/cgroup.procs").write_text(f"{process.pid}\n")
    (tmp_path / "marker").write_text(f"{base}\n")
    # A file is in the way of rmdir here, as processes are in the kernel's: it is taken away when they end.
    watcher = subprocess.Popen(
        ["sh", "-c", f"while kill -0 {process.pid}; do sleep 0.05; done; rm {base}/ta-1/cgroup.procs"],
        stderr=subprocess.DEVNULL,
    )
    reaper = subprocess.Popen.wait
    import threading

    thread = threading.Thread(target=reaper, args=(process,))
    thread.start()
    ControlGroups("ours", tmp_path / "marker").clear()
    thread.join(100)
    assert process.returncode == -9
    assert watcher.wait(100) == 0
    assert not (tmp_path / "marker").exists()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this Python or kernel has no pidfd")
def test_a_fork_belongs_to_the_process_that_stands_for_it() -> None:
    fork = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    code = f"import os; os.pidfd_open({fork.pid}); print('up', flush=True); input()"
    stands = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert stands.stdout is not None and stands.stdout.readline() == b"up\n"
        assert sorted(family(stands.pid)) == sorted([stands.pid, fork.pid])
    finally:
        for process in (fork, stands):
            process.kill()
            process.communicate()


def test_files_are_counted_once_and_links_lead_nowhere(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    (mine / "deep").mkdir(parents=True)
    other.mkdir()
    (other / "large").write_bytes(os.urandom(8 * MIB))
    (mine / "to").symlink_to(other)
    (mine / "deep/file").write_bytes(os.urandom(2 * MIB))
    os.link(mine / "deep/file", mine / "again")
    (mine / "hole").touch()
    os.truncate(mine / "hole", 1 << 40)
    assert 2 * MIB <= disk_use([str(mine)]) < 3 * MIB
    assert disk_use([str(tmp_path / "gone")]) == 0
