"""Real services for the tests of this folder; each says in one line when it is not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if nomad_binary() is None:
        terminalreporter.write_line("SKIPPED: the stack tests on Nomad: no `nomad` on PATH")


@pytest.fixture(scope="session")
def nomad_address() -> Iterator[str]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip("no `nomad` binary on PATH")
    with nomad_agent(binary) as address:
        yield address
