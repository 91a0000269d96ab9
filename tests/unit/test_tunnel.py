"""What a Tunnel says of itself, and where there can be none."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.exception import InvalidError


def test_a_tunnel() -> None:
    tunnel = modal.Tunnel("t.example.com", 443, "", 0)
    assert [x.name for x in dataclasses.fields(tunnel)] == [
        "host",
        "port",
        "unencrypted_host",
        "unencrypted_port",
    ]
    assert tunnel.url == "https://t.example.com"
    assert tunnel.tls_socket == ("t.example.com", 443)
    with pytest.raises(InvalidError, match=r"use forward\(port, unencrypted=True\)"):
        assert tunnel.tcp_socket
    other = modal.Tunnel("::1", 8443, "t.example.com", 2222)
    assert other.url == "https://[::1]:8443"
    assert other.tcp_socket == ("t.example.com", 2222)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tunnel.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("port", [0, -1, 65536, "8000", True, 80.0, None])
def test_impossible_ports(port: Any) -> None:
    with pytest.raises(InvalidError, match="give a number from 1 to 65535"), modal.forward(port):
        pass


async def test_outside_of_a_container() -> None:
    with pytest.raises(InvalidError, match="inside a container alone"), modal.forward(8000):
        pass
    with pytest.raises(InvalidError, match="inside a container alone"):
        async with modal.forward(8000, unencrypted=True):
            pass


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"hosts": "a"}, "has no setting 'hosts'"),
        ({"max_tunnels": "9"}, "must be of type int"),
        ({"ports": "9"}, "give a range"),
        ({"ports": "9-8"}, "give a range"),
        ({"ports": "1-65536"}, "give a range"),
        ({"domain": "A b"}, "give a host name"),
        ({"tls_port": 0}, "give a port"),
        ({"gateways": True, "host": "t"}, "needs ports"),
        ({"gateways": True, "ports": "1-2"}, "needs a host"),
    ],
)
def test_settings_that_cannot_be(table: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings(tunnels=table)


def test_settings() -> None:
    assert Settings().tunnel_settings().host == ""
    given = Settings(tunnels={"host": "t", "ports": "30000-30010"}).tunnel_settings()
    assert (given.host, given.listen, given.port_range) == ("t", "0.0.0.0", (30000, 30010))
    embedded = Settings(embedded=True, engine="local").tunnel_settings()
    assert (embedded.host, embedded.listen, embedded.port_range) == ("localhost", "127.0.0.1", (0, 0))
