"""Containers of every CPython that this machine has: the SDK's own version decides nothing there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad.wire.spec import ImageSpec
from modal_nomad.worker import environment

PACKAGE = Path(modal.__file__).parent


def interpreter(version: str) -> str:
    """Return this machine's interpreter of a version, or skip the test."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    found = environment._pyenv_python(ImageSpec(python=version)) or shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no Python {version} on this machine")
    return found


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13"])
def test_a_script_runs_in_a_container_of_another_python(live: Live, version: str) -> None:
    interpreter(version)
    script = live.write(
        "versions.py",
        f"""
        import sys

        import modal

        app = modal.App("versions", image=modal.Image.debian_slim(python_version="{version}"))

        @app.function()
        def which(x):
            print("in the container")
            if x == 3:
                raise ValueError("three")
            return x, "%d.%d" % sys.version_info[:2]

        @app.local_entrypoint()
        def main():
            assert list(which.map(range(3))) == [(x, "{version}") for x in range(3)]
            try:
                which.remote(3)
            except ValueError as error:
                print("caught", error)
        """,
    )
    done = live.cli("run", str(script))
    assert done.returncode == 0 and "caught three" in done.stdout, done.stderr
    assert done.stdout.count("which | in the container") == 4


def test_all_that_a_container_may_import_imports_on_python_3_9() -> None:
    python = interpreter("3.9")
    import cloudpickle

    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for folder in (PACKAGE, PACKAGE / "wire", PACKAGE / "worker")
        for path in sorted(folder.glob("*.py"))
        # The display for terminals needs rich, and a program's start is no module.
        if path.stem not in ("__init__", "__main__") and not path.stem.startswith(("_output_", "_start_"))
    ]
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    paths = os.pathsep.join([str(PACKAGE.parent), str(Path(cloudpickle.__file__).parent.parent)])
    done = subprocess.run(
        [python, "-S", "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
