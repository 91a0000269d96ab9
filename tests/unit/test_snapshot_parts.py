"""What a fork of a memory snapshot takes over, who may have one, and which allocations stay for them."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher._containers import ContainerInfo, FunctionState
from modal_nomad.dispatcher._parked import Parked
from modal_nomad.dispatcher.store.base import FunctionRecord
from modal_nomad.render import RenderSettings, render_function
from modal_nomad.wire import cgroups
from modal_nomad.wire.spec import FunctionSpec
from modal_nomad.worker import _cgroups, _fork, _stand_in
from modal_nomad.worker._runner import Held


def _spec(**more: Any) -> FunctionSpec:
    return FunctionSpec(app="a", name="f", module="m", qualname="f", enable_memory_snapshot=True, **more)


def _job(driver: str = "raw_exec", seconds: float = 60.0, **more: Any) -> dict[str, Any]:
    settings = RenderSettings("http://x", "a" * 64, driver=driver, snapshot_seconds=seconds)
    return render_function(_spec(**more), settings)


def _state(job: dict[str, Any], function_id: str = "fu-1", **more: Any) -> FunctionState:
    spec = _spec(**more).to_dict()
    return FunctionState(FunctionRecord(function_id, "ap-1", "f", "main", 1, spec, job))


def test_a_job_takes_the_name_of_a_snapshot_where_processes_can_be_forked() -> None:
    job = _job()
    assert job["ParameterizedJob"]["MetaOptional"] == ["modal_snapshot"]
    env = job["TaskGroups"][0]["Tasks"][0]["Env"]
    assert env["MODAL_SNAPSHOT"] == "${NOMAD_META_modal_snapshot}" and env["MODAL_SNAPSHOT_SECONDS"] == "60"
    for other in (_job("exec"), _job(seconds=0.0)):
        assert "MetaOptional" not in other["ParameterizedJob"]
        assert "MODAL_SNAPSHOT" not in other["TaskGroups"][0]["Tasks"][0]["Env"]


def test_whatever_differs_has_another_snapshot() -> None:
    states = [
        _state(_job()),
        _state(_job(), function_id="fu-2"),
        _state(_job(), env={"A": "1"}),
        _state(_job(seconds=61.0)),
    ]
    names = [state.snapshot for state in states]
    assert len(set(names)) == 4 and all(names)
    assert _state(_job()).snapshot == names[0]
    # A job of an earlier release, or one that nothing can be forked for.
    assert _state(_job("exec")).snapshot == _state({"ID": "f", "ParameterizedJob": None}).snapshot == ""


def test_a_fork_is_of_the_function_version_and_parameters_that_it_is_welcomed_for() -> None:
    spec = _spec()
    held = Held(print, "fu-1", spec.version_key, b"params")
    welcome = {"function_id": "fu-1", "params": b"params"}
    assert held.fits(spec, welcome)
    assert not held.fits(spec, {**welcome, "function_id": "fu-2"})
    assert not held.fits(spec, {**welcome, "params": None})
    assert not held.fits(_spec(env={"A": "1"}), welcome)


def test_allocations_that_only_wait_end_with_what_they_wait_for() -> None:
    stopped: list[str] = []
    functions = {name: _state(_job(), name) for name in ("fu-1", "fu-2")}
    parked = Parked(functions, stopped.append)
    for number, name in enumerate(["fu-1", "fu-1", "fu-2"]):
        parked.add(ContainerInfo(f"ta-{number}", functions[name], functions[name].version))
    parked.ended("ta-0")
    assert not stopped
    functions["fu-1"] = _state(_job(), "fu-1", env={"A": "1"})
    parked.review()
    assert stopped == ["ta-1"]
    parked.unplaced("ta-8")
    assert stopped == ["ta-1", "ta-2"]
    # Others are not kept before that one has its place.
    for number, last in enumerate(["ta-3", "ta-4", "ta-5"], 3):
        parked.add(ContainerInfo(f"ta-{number}", functions["fu-2"], functions["fu-2"].version))
        assert stopped[-1] == (last if number < 5 else "ta-4")
        (parked.unplaced if number == 3 else parked.placed)("ta-8")
    # One that comes too late ends at once.
    del functions["fu-2"]
    parked.review()
    assert stopped[-1] == "ta-5"


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o702])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(_stand_in.Unsafe, match="is not this user's alone: remove it, or chmod it to 0700"):
        _stand_in.open_folder(str(folder))
    folder.chmod(0o700)
    os.close(_stand_in.open_folder(str(folder)))
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(OSError, match="link"):
        _stand_in.open_folder(str(tmp_path / "link"))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A /proc with this process and process 7, and their control groups: versions 1 and 2, both."""
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path / "proc"))
    for pid in ("self", "7"):
        (tmp_path / "proc" / pid).mkdir(parents=True)
    mounts = [
        ("/", "cpuacct,cpu", "cgroup", "rw,cpu,cpuacct"),
        ("/", "memory", "cgroup", "rw,memory"),
        ("/sub", "unified", "cgroup2", "rw"),
    ]
    lines = [
        f"{n} 1 0:{n} {root} {tmp_path}/{name} rw - {kind} none {options}"
        for n, (root, name, kind, options) in enumerate(mounts)
    ]
    (tmp_path / "proc/self/mountinfo").write_text("\n".join(["1 1 0:9 / / rw - ext4 /dev/x rw", *lines, ""]))
    theirs = "3:cpu,cpuacct:/nomad/b\n2:memory:/nomad/b\n0::/sub/nomad/b\n"
    (tmp_path / "proc/7/cgroup").write_text(theirs)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/nomad/a\n2:memory:/nomad/b\n0::/sub/nomad/a\n")
    for name in ("cpuacct,cpu", "memory", "unified"):
        (tmp_path / name / "nomad/b").mkdir(parents=True)
    yield tmp_path


def test_control_groups_of_both_versions_are_entered(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="kept it in other control groups"):
        # Nobody plays the kernel's part here.
        _cgroups.join(7)
    written = sorted(str(x.relative_to(kernel)) for x in kernel.rglob("cgroup.procs"))
    assert written == ["cpuacct,cpu/nomad/b/cgroup.procs", "unified/nomad/b/cgroup.procs"]
    assert {x.read_text() for x in kernel.rglob("cgroup.procs")} == {str(os.getpid())}
    (kernel / "proc/self/cgroup").write_text((kernel / "proc/7/cgroup").read_text())
    _cgroups.join(7)


def test_a_control_group_that_is_not_there_is_an_error(kernel: Path) -> None:
    (kernel / "unified/nomad/b").rmdir()
    with pytest.raises(FileNotFoundError):
        _cgroups.join(7)


def test_what_is_imported_later_comes_from_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        (tmp_path / name / "moved_package").mkdir(parents=True)
        (tmp_path / name / "moved_package/__init__.py").write_text("")
        (tmp_path / name / "moved_package/later.py").write_text(f"where = {name!r}")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "old"), *sys.path])
    import moved_package  # type: ignore[import-not-found]

    try:
        (tmp_path / "old/moved_package/later.py").unlink()
        _fork._relocate(str(tmp_path / "old"), str(tmp_path / "new"))
        from moved_package import later

        assert later.where == "new"
        assert isinstance(moved_package, types.ModuleType)
        assert str(moved_package.__file__).startswith(str(tmp_path / "new"))
        assert sys.path[0] == str(tmp_path / "new")
    finally:
        for name in ("moved_package", "moved_package.later"):
            sys.modules.pop(name, None)
