"""Containers that an edge of one's own leads to: they end when it has had time to hear of that."""

from __future__ import annotations

import httpx
import pytest
from conftest import Live, until
from test_web import listening_ports
from test_web_gateway import LIMIT, address, gate_app

from modal_nomad.exception import ServerWarning


def pid_of(url: str) -> int:
    return int(httpx.get(url, timeout=LIMIT).text.split()[1])


def test_an_edge_has_time_to_hear_of_containers_and_of_their_end(own: Live, serve: object) -> None:
    # Longer than the test: what is told to end does not do so.
    serve(**{"web.listen": "http://127.0.0.1:0", "web.edge": True, "web.edge_seconds": 600.0})  # type: ignore[operator]

    url = address(gate_app("edged", "first", min_containers=1).deploy())
    first = pid_of(url)
    direct, health = past_gateways(first)
    assert pid_of(direct) == first
    # A gateway goes over to the new version at once, and whoever comes by Consul still finds the old one.
    gate_app("edged", "second", min_containers=1).deploy()
    assert pid_of(url) != first and httpx.get(url, timeout=LIMIT).text.startswith("second")
    assert httpx.get(health, timeout=LIMIT).status_code == 200 and pid_of(direct) == first
    # One that is not needed any more says so to those who ask, and takes what comes.
    with pytest.warns(ServerWarning, match="min_containers=1"):
        idle = gate_app("idle", scaledown_window=2).deploy()
    pid = pid_of(address(idle))
    direct, health = past_gateways(pid)
    until(lambda: httpx.get(health, timeout=LIMIT).status_code == 503, LIMIT)
    assert pid_of(direct) == pid


def past_gateways(pid: int) -> tuple[str, str]:
    """Return where a container is asked itself, and where after its health."""
    (port,) = listening_ports(pid)
    return f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{port}/.well-known/modal-nomad/health"
