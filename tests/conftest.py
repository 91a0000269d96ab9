"""A real Nomad for every folder of tests; one line at the end says how many tests went without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary

# What Hypothesis takes for slow tests is mostly a machine that has other work.
settings.register_profile(
    "tests", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

NO_NOMAD = "no `nomad` binary on PATH"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", ()) if NO_NOMAD in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"SKIPPED: {len(skipped)} tests on a real Nomad: {NO_NOMAD}")


@pytest.fixture(scope="session")
def nomad_address() -> Iterator[str]:
    """The address of an agent that runs for this session; skips where there is no ``nomad``."""
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    with nomad_agent(binary) as address:
        yield address
