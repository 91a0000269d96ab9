"""What a container imports, on the oldest Python that a container may have."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from modal_nomad.dispatcher import runtime

OLDEST = "3.9"
# A user's module that touches all of the public API, then what a worker needs on top.
PROGRAM = """
import importlib, pkgutil, sys
sys.path.append(sys.argv[1])
import modal_nomad, modal_nomad.wire, modal_nomad.worker
from modal_nomad._alias import install
install()
import modal
for name in [*modal.__all__, *modal._SUBMODULES]:
    getattr(modal, name)
for package in (modal_nomad.wire, modal_nomad.worker):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
image = modal.Image.debian_slim().pip_install("x").env({"A": "1"}).workdir("/w")
app = modal.App("user", image=image.add_local_file(__file__, "/f", copy=True))
with image.imports():
    import never_there
print("loaded")
"""


WEB_PROGRAM = """
import sys
sys.path += sys.argv[1:]
import a2wsgi, uvicorn
from modal_nomad.worker import _web
from modal_nomad.worker._web_apps import Served, _config

class Pool:
    loop = None

config, _ = _config(Served(None, "f"), Pool())
print(config.http_protocol_class.__name__, config.ws_protocol_class.__name__)
"""


def _oldest() -> str | None:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(f"python{OLDEST}"), *pyenv.glob(f"versions/{OLDEST}.*/bin/python{OLDEST}")]
    for python in filter(None, found):
        # A version manager puts commands on PATH that only say where the real one is.
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(python)
    return None


def test_the_runtime_loads_on_the_oldest_python(tmp_path: Path) -> None:
    python = _oldest()
    if python is None:
        pytest.skip(f"there is no Python {OLDEST} on this machine")
    directory = runtime.unpack(runtime.build()[1], tmp_path / "runtime")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [python, "-I", "-S", str(program), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "loaded\n", done.stderr


def test_what_serves_web_functions_loads_on_the_oldest_python(tmp_path: Path) -> None:
    python = _oldest()
    if python is None:
        pytest.skip(f"there is no Python {OLDEST} on this machine")
    folders = [
        str(runtime.unpack(runtime.build()[1], tmp_path / "runtime")),
        str(runtime.unpack(runtime.web()[1], tmp_path / "web")),
    ]
    program = tmp_path / "program.py"
    program.write_text(WEB_PROGRAM)
    done = subprocess.run(
        [python, "-I", "-S", str(program), *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["H11Protocol", "WSProtocol"]
