"""The runtime bundle, and unpacking what others packed."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import marshal
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from modal_nomad.dispatcher import runtime


def _zip(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        entry.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(entry, data)
    return buffer.getvalue()


def test_the_bundle_is_deterministic_and_holds_what_a_container_needs() -> None:
    sha, data = runtime.build()
    assert (sha, data) == runtime.build() and hashlib.sha256(data).hexdigest() == sha
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert {"_start_worker.py", "modal/__init__.py", "cloudpickle/cloudpickle.py"} <= set(names)
    assert {"modal_nomad/exception.py", "modal_nomad/wire/spec.py", "modal_nomad/worker/files.py"} <= set(
        names
    )
    refused = tuple(f"modal_nomad/{room}/" for room in ("cli", "dispatcher", "engines", "hashicorp"))
    assert not [n for n in names if n.startswith(refused) or n.startswith("tblib")]
    compiled = [n for n in names if n.endswith(".pyc")]
    assert len(compiled) == len([n for n in names if n.endswith(".py") and "/" in n]) - 1


def _loaded(directory: Path, program: str, *flags: str) -> set[str]:
    """Return the modules that a bare interpreter has after a program, with the runtime last on its path."""
    program = f"import sys; sys.path.append({str(directory)!r})\n{program}\nprint(*sys.modules)"
    command = [sys.executable, "-I", "-S", *flags, "-c", program]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_its_bytecode_is_used_whatever_times_unpacking_sets(tmp_path: Path) -> None:
    directory = runtime.unpack(runtime.build()[1], tmp_path / "runtime")
    source = directory / "modal_nomad" / "retries.py"
    # Were the source looked at, the import would fail.
    source.write_text("syntax error")
    os.utime(source, (1, 1))
    assert "modal_nomad.retries" in _loaded(directory, "import modal_nomad.retries")


def test_bytecode_is_that_of_the_source_also_where_no_cache_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "m.py"
    source.write_text("x = 1")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (fresh,) = [data for name, data in runtime._module(source, tmp_path) if name.endswith(".pyc")]
    cached = Path(importlib.util.cache_from_source(str(source)))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source.write_text("x = 22222")
    (changed,) = [data for name, data in runtime._module(source, tmp_path) if name.endswith(".pyc")]
    assert cached.read_bytes()[16:] == fresh[16:]
    space: dict[str, int] = {}
    exec(marshal.loads(changed[16:]), space)
    assert space["x"] == 22222


def test_a_containers_start_imports_little(tmp_path: Path) -> None:
    directory = runtime.unpack(runtime.build()[1], tmp_path / "runtime")
    (tmp_path / "user.py").write_text(
        "import modal\napp = modal.App('x')\n@app.function()\ndef f(x): return x"
    )
    program = (
        "import modal_nomad.worker._runner, modal_nomad.worker._pool\n"
        "from modal_nomad._alias import install; install()\n"
        f"sys.path.insert(0, {str(tmp_path)!r}); import user"
    )
    loaded = _loaded(directory, program)
    assert "modal_nomad.functions" in loaded
    assert not loaded & {"asyncio", "concurrent.futures", "http.client", "ssl", "subprocess", "importlib.abc"}


def test_the_bundle_imports_alone(tmp_path: Path) -> None:
    directory = runtime.unpack(runtime.build()[1], tmp_path / "runtime")
    program = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import modal, modal.exception, modal_nomad, cloudpickle\n"
        "assert modal is modal_nomad and modal.exception is sys.modules['modal_nomad.exception']\n"
        "print(modal_nomad.__path__[0])"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(directory / "modal_nomad")


def test_the_start_script_enters_the_bare_interpreter(tmp_path: Path) -> None:
    directory = runtime.unpack(runtime.build()[1], tmp_path / "runtime")
    (tmp_path / "code").mkdir()
    # A stand-in for the worker shows how it is called: by which interpreter, with which path.
    (directory / "modal_nomad" / "worker" / "__init__.py").write_text(
        "def main():\n"
        "    import json, os, sys\n"
        "    flags = [sys.flags.isolated, sys.flags.no_site]\n"
        "    print(json.dumps([flags, sys.path, sorted(k for k in os.environ if k.startswith('_MODAL'))]))\n"
        "    return 7\n"
    )
    shutil.rmtree(directory / "modal_nomad" / "worker" / "__pycache__")
    env = {**os.environ, "MODAL_CODE_DIR": str(tmp_path / "code"), "MODAL_RUNTIME_DIR": str(directory)}
    command = [sys.executable, str(directory / "_start_worker.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 7, done.stderr
    flags, path, leaked = json.loads(done.stdout)
    assert flags == [1, 1] and leaked == []
    assert path[0] == str(tmp_path / "code") and path[-1] == str(directory)
    assert path.count(str(directory)) == 1 and not [p for p in path if p.endswith("-packages")]


def test_the_start_script_stays_where_it_is_already_bare(tmp_path: Path) -> None:
    directory = runtime.unpack(runtime.build()[1], tmp_path / "runtime")
    (tmp_path / "code").mkdir()
    (directory / "modal_nomad" / "worker" / "__init__.py").write_text(
        "def main():\n    import sys\n    print(*sys.path, *sys.modules)\n    return 0\n"
    )
    # Its bytecode would be taken without a look at the stand-in.
    shutil.rmtree(directory / "modal_nomad" / "worker" / "__pycache__")
    env = {"MODAL_CODE_DIR": str(tmp_path / "code"), "MODAL_RUNTIME_DIR": str(directory)}
    command = [sys.executable, "-I", "-S", str(directory / "_start_worker.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[0] == str(tmp_path / "code")
    assert "modal_nomad.worker.environment" not in words


def test_the_start_script_says_one_line_when_it_cannot(tmp_path: Path) -> None:
    directory = runtime.unpack(runtime.build()[1], tmp_path / "runtime")
    image = json.dumps({"python": None, "layers": [{"kind": "apt", "args": ["git"]}]})
    env = {**os.environ, "MODAL_IMAGE": image, "MODAL_ENVIRONMENTS_DIR": str(tmp_path / "environments")}
    command = [sys.executable, str(directory / "_start_worker.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1 and "'apt' needs a container runtime" in done.stderr
    assert "Traceback" not in done.stderr


def test_unpacking_again_or_over_leftovers(tmp_path: Path) -> None:
    data = runtime.pack({"a/b.py": b"1"})
    target = runtime.unpack(data, tmp_path / "code" / "sha")
    (target / "mark").touch()
    assert runtime.unpack(data, target) == target and (target / "mark").exists()
    assert (target / "a" / "b.py").read_bytes() == b"1"
    assert [p.name for p in target.parent.iterdir()] == ["sha"]


def test_executable_bits_survive(tmp_path: Path) -> None:
    target = runtime.unpack(_zip("run", mode=stat.S_IFREG | 0o4755), tmp_path / "x")
    assert stat.S_IMODE((target / "run").stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", ""])
def test_paths_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(runtime.BundleError, match="outside its directory"):
        runtime.unpack(_zip(name), tmp_path / "in" / "x")
    assert list((tmp_path / "in").iterdir()) == [] and not (tmp_path / "evil").exists()


def test_links_bombs_and_rubbish_are_refused(tmp_path: Path) -> None:
    with pytest.raises(runtime.BundleError, match="no plain file"):
        runtime.unpack(_zip("link", b"/etc/passwd", stat.S_IFLNK | 0o777), tmp_path / "x")
    with pytest.raises(runtime.BundleError, match="more than 100 bytes"):
        runtime.unpack(_zip("zeros", bytes(1000)), tmp_path / "x", max_size=100)
    damaged = bytearray(_zip("file", os.urandom(500)))
    damaged[100] ^= 255
    for data in (b"", b"rubbish", bytes(damaged)):
        with pytest.raises(runtime.BundleError, match="no readable zip"):
            runtime.unpack(data, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
