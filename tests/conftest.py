"""A real Nomad and PostgreSQL for every folder of tests; a line at the end says how many went without."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests._consul import NO_CONSUL, Consul, consul_binary, consul_server
from tests._docker import NO_DOCKER, Docker, Unusable, docker_daemon
from tests._postgresql import (
    NO_POSTGRESQL,
    PREPARED,
    Postgresql,
    postgresql_files,
    postgresql_programs,
    postgresql_server,
)
from tests._registry import NO_REGISTRY
from tests.engine_contract._nomad_agent import docker_client, nomad_agent, nomad_binary

# Tests start hundreds of interpreters: most of their time went into compiling the same modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What Hypothesis takes for slow tests is mostly a machine that has other work.
settings.register_profile(
    "tests", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

NO_NOMAD = "no `nomad` binary on PATH"
NO_EDGE = "no traefik, or no fabio, on PATH"
NO_TERRAFORM = "no terraform or tofu with its providers nomad, consul and vault on PATH"
NO_IMAGE_TOOLS = "no podman or no buildah on PATH"
NO_MICROMAMBA = "no `micromamba` on PATH"
NO_BUCKET_MOUNTS = "no rclone, s3fs, fusermount3 or usable /dev/fuse, or not root"


def pytest_configure(config: pytest.Config) -> None:
    # Before 3.12.4 Python warns of numbered parameters (`?1`) as if they were named ones.
    if sys.version_info[:2] == (3, 12):
        config.addinivalue_line("filterwarnings", "ignore:Binding .* is a named parameter:DeprecationWarning")


def pytest_xdist_auto_num_workers() -> int:
    # Tests of servers wait for them for nearly half of their time.
    return len(os.sched_getaffinity(0)) + 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, reason in (
        ("on a real Nomad", NO_NOMAD),
        ("on a real PostgreSQL", NO_POSTGRESQL),
        ("of mounted buckets", NO_BUCKET_MOUNTS),
        ("of container images", NO_DOCKER),
        ("of image registries", NO_REGISTRY),
        ("of builds without a daemon", NO_IMAGE_TOOLS),
        ("of Conda packages", NO_MICROMAMBA),
        ("on a real Consul", NO_CONSUL),
        ("of Terraform modules", NO_TERRAFORM),
        ("of edges of one's own", NO_EDGE),
    ):
        skipped = [r for r in terminalreporter.stats.get("skipped", ()) if reason in str(r.longrepr)]
        if skipped:
            terminalreporter.write_line(f"SKIPPED: {len(skipped)} tests {what}: {reason}")


@pytest.fixture(scope="session")
def nomad_address() -> Iterator[str]:
    """The address of an agent that runs for this session; skips where there is no ``nomad``."""
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    with nomad_agent(binary) as address:
        yield address


@pytest.fixture(scope="session")
def nomad_docker_address(docker: Docker) -> Iterator[str]:
    """The address of an agent of this session whose docker driver uses this session's daemon."""
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    with nomad_agent(binary, **docker_client(docker.host)) as address:
        yield address


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Docker:
    """A Docker daemon of this session, with a Debian that has Python; skips where there can be none."""
    try:
        return docker_daemon(_shared(tmp_path_factory))
    except Unusable as exc:
        pytest.skip(f"{NO_DOCKER}: {exc}")


def _shared(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all processes of this session."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def _postgresql_start(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], AbstractContextManager[Postgresql]]:
    programs = postgresql_programs()
    if programs is None:
        pytest.skip(NO_POSTGRESQL)
    files = postgresql_files(programs, _shared(tmp_path_factory))
    return lambda: postgresql_server(programs, files)


@pytest.fixture(scope="session")
def postgresql(_postgresql_start: Callable[[], AbstractContextManager[Postgresql]]) -> Iterator[Postgresql]:
    """A server that runs for this session, and that tests leave running; skips where there is none."""
    with _postgresql_start() as server:
        server.prepare()
        yield server


@pytest.fixture
def postgresql_database(postgresql: Postgresql) -> str:
    """The address of a database of this test's own, with the schema in it and nothing else."""
    return postgresql.database(PREPARED)


@pytest.fixture
def own_postgresql(
    _postgresql_start: Callable[[], AbstractContextManager[Postgresql]],
) -> Iterator[Postgresql]:
    """A server of this test's own, which it may kill."""
    with _postgresql_start() as server:
        yield server


@pytest.fixture
def consul() -> Iterator[Consul]:
    """A server of this test's own; skips where there is no ``consul``."""
    binary = consul_binary()
    if binary is None:
        pytest.skip(NO_CONSUL)
    with consul_server(binary) as server:
        yield server


@dataclass(frozen=True)
class NomadWithConsul:
    """This Nomad registers its jobs' services in that Consul; its node's egress is ``office``.

    Attributes:
        nomad: Nomad's address.
        consul: the server.
    """

    nomad: str
    consul: Consul


@pytest.fixture(scope="session")
def nomad_with_consul() -> Iterator[NomadWithConsul]:
    """One of each for this session, which tests leave running; skips where one of them is not to be had."""
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    program = consul_binary()
    if program is None:
        pytest.skip(NO_CONSUL)
    with (
        consul_server(program) as server,
        nomad_agent(binary, consul=server.nomad_settings(), client={"meta": {"egress": "office"}}) as address,
    ):
        yield NomadWithConsul(address, server)
