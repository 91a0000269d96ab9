"""The programs of users that engines must run alike: a dispatcher of an engine, and a program beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.stack._dispatcher import dispatcher


@contextmanager
def server_of(
    request: pytest.FixtureRequest, factory: pytest.TempPathFactory, **settings: Any
) -> Iterator[str]:
    """Give the address of a dispatcher on the engine that the fixture's parameter names."""
    nomad = {"address": ""}
    if request.param == "nomad":
        nomad = {"address": request.getfixturevalue("nomad_address")}
    # Short: the embedded engine's sockets have short paths.
    with dispatcher(factory.mktemp("c"), nomad, engine=request.param, auth="none", **settings) as url:
        yield url


def environment(server: str) -> dict[str, str]:
    """Return the variables of a program that knows of nothing but a server."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_"))}
    return {**clean, "MODAL_SERVER_URL": server, "MODAL_CONFIG_PATH": "/nonexistent"}


def run(server: str, file: Path, *words: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """Run a program that knows of nothing but a server."""
    command = [sys.executable, "-W", "ignore", str(file), *words]
    return subprocess.run(command, env=environment(server), capture_output=True, text=True, timeout=timeout)
