"""Files at absolute paths: there for the container, never for the node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.exception import ExecutionError
from modal_nomad.wire.spec import MountedFile
from modal_nomad.worker import files

_CHILD = """
import json, os, sys
from modal_nomad.wire.spec import MountedFile
from modal_nomad.worker import _mounts, files
task = json.loads(sys.argv[1])
if task.get("uid"):
    os.setgroups([]); os.setgid(task["uid"]); os.setuid(task["uid"])
    # A process that changed its user may not read its own /proc files until it says so (PR_SET_DUMPABLE).
    import ctypes; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
if task.get("no_overlay"):
    real = _mounts.mount
    def mount(source, target, kind=None, flags=0, data=""):
        if kind == "overlay":
            raise OSError(19, "no overlay here")
        real(source, target, kind, flags, data)
    _mounts.mount = mount
try:
    placed = [MountedFile(p, c, m) for p, c, m in task["files"]]
    files.place(placed, lambda names: {x: x.encode() for x in names}, keep=task.get("keep", ()))
except Exception as exc:
    print(json.dumps({"error": str(exc)}))
else:
    print(json.dumps(eval(task["see"])))
"""


def _child(see: str, *placed: tuple[str, str, int], **more: Any) -> Any:
    task = json.dumps({"files": placed, "see": see, **more})
    done = subprocess.run([sys.executable, "-c", _CHILD, task], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    if isinstance(value, dict) and "namespaces" in value.get("error", ""):
        pytest.skip(value["error"])
    return value


def _read(*paths: object) -> str:
    return f"[open(p).read() for p in {[str(p) for p in paths]!r}]"


@pytest.mark.parametrize("no_overlay", [False, True])
def test_existing_directories_are_covered_not_written(tmp_path: Path, no_overlay: bool) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "replaced").write_text("node's")
    new, deep, replaced = tmp_path / "new", tmp_path / "a" / "b" / "deep", tmp_path / "sub" / "replaced"
    placed = [(str(new), "1", 0o755), (str(deep), "2", 0o644), (str(replaced), "3", 0o600)]
    seen = _child(_read(new, deep, replaced, tmp_path / "old"), *placed, no_overlay=no_overlay)
    assert seen == ["1", "2", "3", "old"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old", "sub"] and replaced.read_text() == "node's"
    mode = _child(f"os.stat({str(new)!r}).st_mode & 0o777", *placed, no_overlay=no_overlay)
    assert mode == 0o755


def test_a_new_top_level_directory() -> None:
    path = "/modal-nomad-test-data/x/file"
    see = f"{_read(path)} + [os.path.isdir('/usr'), os.path.exists('/proc/self/status'), os.getcwd()]"
    assert _child(see, (path, "1", 0o644)) == ["1", True, True, os.getcwd()]
    assert not os.path.exists("/modal-nomad-test-data")


def test_kept_directories_stay_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    shared = tmp_path / "home" / "written"
    see = f"open({str(shared)!r}, 'w').write('through')"
    assert _child(see, (str(tmp_path / "new"), "1", 0o644), keep=[str(tmp_path / "home")]) == 7
    assert shared.read_text() == "through" and not (tmp_path / "new").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_without_root_in_a_user_namespace(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = "/modal-nomad-test-data/file"
    see = f"{_read(path, '/etc/modal-nomad-test')} + [os.getuid()]"
    assert _child(see, (path, "1", 0o644), ("/etc/modal-nomad-test", "2", 0o644), uid=65534) == [
        "1",
        "2",
        65534,
    ]
    assert not os.path.exists("/etc/modal-nomad-test")


def test_python_under_root_is_importable() -> None:
    assert files.import_roots([MountedFile("/root/pkg/mod.py", "0")]) == ["/root"]
    assert files.import_roots([MountedFile("/root/data.txt", "0"), MountedFile("/srv/x.py", "0")]) == []


def test_no_files_change_nothing() -> None:
    before = os.readlink("/proc/self/ns/mnt")
    files.place([], lambda names: {})
    assert os.readlink("/proc/self/ns/mnt") == before


@pytest.mark.parametrize("path", ["relative", "/", "//x/y"])
def test_bad_paths(path: str) -> None:
    with pytest.raises(ExecutionError, match="absolute"):
        files.place([MountedFile(path, "0")], lambda names: dict.fromkeys(names, b""))


def test_a_directory_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    assert "give add_local_* another path" in _child("0", (str(tmp_path / "dir"), "1", 0o644))["error"]


def test_what_is_kept_by_default() -> None:
    environ = {
        "MODAL_CODE_DIR": "/a/code",
        "MODAL_SERVER_URL": "unix:///home/u/state/daemon.sock",
        "MODAL_WORKER_TOKEN_FILE": "/secrets/token",
    }
    assert files.default_keep(environ) == ["/a/code", "/home/u/state", "/secrets"]
