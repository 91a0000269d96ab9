"""What a Tunnel says of itself, and where there can be none."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad._class_info import class_info
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.exception import InvalidError
from modal_nomad.worker._lifecycle import Lifecycle


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


class Opens:
    """A class whose snapshot hook opens a tunnel."""

    @modal.enter(snap=True)
    def load(self) -> None:
        with modal.forward(8000):
            """Never reached."""


@pytest.mark.parametrize("snapshots", [True, False])
def test_in_a_hook_whose_memory_is_kept(snapshots: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    reached: list[int] = []

    async def opened(client: Any, port: int, *rest: Any) -> Any:
        reached.append(port)
        raise InvalidError("it would be opened")

    monkeypatch.setattr("modal_nomad.tunnel._open", opened)
    spec = SimpleNamespace(enable_memory_snapshot=snapshots)
    hooks: Any = Lifecycle(class_info(Opens), spec)  # type: ignore[arg-type]
    words = "opens no tunnel in an enter" if snapshots else "it would be opened"
    with pytest.raises(InvalidError, match=words):
        hooks.begin(None, None)
    assert reached == ([] if snapshots else [8000])
    # Later hooks may.
    with pytest.raises(InvalidError, match="it would be opened"), modal.forward(8000):
        pass
