"""A dispatcher that builds container images with the session's Docker daemon, and what such tests share."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, new_home

import modal_nomad as modal
from modal_nomad._bridge import io, run_blocking
from modal_nomad._image_publish import built
from modal_nomad.client import Client
from modal_nomad.runner import hydrate_storage, secret_references
from tests._docker import Docker

PYTHON = "modal-nomad-tests/python:1"
_BASE = """
FROM {image}
RUN ln -sf python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
"""


_TINY = """
FROM {image} AS debian
RUN mkdir /tiny && cp -L --parents $(ldd /bin/sh /bin/cat | grep -o '/[^ :]*' | sort -u) /tiny
FROM scratch
COPY --from=debian /tiny /
"""


def tiny_image(docker: Docker) -> str:
    """Make an image that is sent to a registry in no time: it has a shell and ``cat``."""
    tag = "modal-nomad-tests/tiny:1"
    docker("build", "--network=none", "--tag", tag, "-", data=_TINY.format(image=docker.image).encode())
    return tag


@dataclass
class Builds:
    """A dispatcher, the daemon that it builds with, and the record of what it asked of that.

    Attributes:
        live: the dispatcher.
        docker: the daemon.
        record: has a line for each run of the docker program.
    """

    live: Live
    docker: Docker
    record: Path

    def asked(self) -> list[str]:
        """Return the docker commands that the dispatcher ran since the last time."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        self.record.write_text("")
        return lines

    def cat(self, reference: str, path: str) -> str:
        """Return a file of an image."""
        return self.run(reference, "cat", path)

    def run(self, reference: str, *command: str) -> str:
        first, *rest = command
        return self.docker("run", "--rm", "--network=none", "--entrypoint", first, reference, *rest)


def build(image: modal.Image) -> str:
    """Have an Image built as a deployment does, and return what its containers are started from."""
    return build_all(image)[0]


def build_all(*images: modal.Image) -> list[str]:
    """Have Images built by one App."""
    app = modal.App("builds")
    for number, image in enumerate(images):
        app.function(serialized=True, name=f"f{number}", image=image)(lambda: 1)

    async def body() -> Any:
        client = await Client.from_env.aio()
        await hydrate_storage(app, client, None)
        secrets = await io(secret_references(client, app, None, None))
        return await built(app, client, None, secrets)

    found = run_blocking(body())
    return [found[image].reference for image in images]


@contextlib.contextmanager
def building(
    docker: Docker, folder: Path, render: Mapping[str, str] = {}, client: str = "", **images: Any
) -> Iterator[Builds]:
    """Give a dispatcher with settings of images, and of rendering, and with a docker program of one's own."""
    docker("build", "--network=none", "--tag", PYTHON, "-", data=_BASE.format(image=docker.image).encode())
    record, programs = folder / "record", folder / "programs"
    programs.mkdir()
    program = programs / "docker"
    program.write_text(f'#!/bin/sh\necho "$*" >> {record}\nexec {client or shutil.which("docker")} "$@"\n')
    program.chmod(0o755)
    settings = {"builder": "docker", "debian_slim": PYTHON, "network": "none", **images}
    with pytest.MonkeyPatch.context() as patch, new_home() as home:
        patch.setenv("DOCKER_HOST", docker.host)
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        lines = [f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in settings.items()]
        more = [f"{k} = {v!r}" for k, v in render.items()]
        (home / "local.toml").write_text("\n".join(["[images]", *lines, "[render]", *more, ""]))
        yield Builds(Live(home, folder), docker, record)


def wheel(folder: Path, name: str, module: str, scripts: str = "") -> None:
    """Write a wheel by hand: a package of one module that no index has."""
    stem, info = f"{name}-1.0", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", module)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        if scripts:
            archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{scripts}\n")
        names = (f"{name}.py", *(f"{info}/{x}" for x in ("METADATA", "WHEEL", "RECORD")))
        archive.writestr(f"{info}/RECORD", "".join(f"{x},,\n" for x in names))


@contextlib.contextmanager
def user_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Iterator[Any]:
    """Write a module of the user's, import it, and forget it afterwards."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module(name)
    del sys.modules[name]
