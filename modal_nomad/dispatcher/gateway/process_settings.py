"""The configuration of a gateway that is a process of its own: one commented file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modal_nomad.dispatcher.gateway.certificates import TlsSettings
from modal_nomad.dispatcher.gateway.settings import GatewaySettings
from modal_nomad.dispatcher.gateway.tunnels import GatewayTunnelSettings
from modal_nomad.dispatcher.settings_example import CERTIFICATES_EXAMPLE
from modal_nomad.dispatcher.settings_files import SettingsError, read_settings, read_token
from modal_nomad.hashicorp.consul import ConsulSettings
from modal_nomad.wire.address import Address, parse_address

EXAMPLE = (
    """\
# A web gateway's configuration. Every value shown is the default.

# Where endpoints are served: "http://0.0.0.0:8080", or "https://0.0.0.0:8443" with [tls] below.
listen = "http://127.0.0.1:8080"

# Processes that share this port; about one a core that may be used up.
processes = 1

# The dispatchers: the one at work, and those that stand by. "unix:///path.sock" is possible too.
dispatchers = ["http://127.0.0.1:8520"]

# What this gateway proves itself with: that of the dispatcher's [web] settings, here or in a file.
gateway_token = ""
gateway_token_file = ""

# Where other gateways fetch pending results from, a host and any free port; and how they reach it, where that
# is another host. It must not be reachable from outside.
peer_listen = "http://127.0.0.1:0"
peer_host = ""

# Seconds that requests may take to end when this is told to stop.
drain_seconds = 30.0

# What the host names of endpoints end in; as in the dispatcher's [web] settings.
domain = "localhost"
# Addresses of what stands in front, whose X-Forwarded fields are believed.
trusted_proxies = []
# Requests to one Function that wait for a container, at most; and open connections.
max_waiting = 1000
max_clients = 10000
# Seconds until a request without an answer is redirected to its pending result.
answer_seconds = 150.0

[consul]
# Consul's agent, "http://127.0.0.1:8500"; empty: containers are known from the dispatcher alone, and a
# gateway that starts while there is none knows nothing.
address = ""
# Empty means the CONSUL_HTTP_TOKEN of the environment.
token = ""
ca_file = ""
datacenter = ""
# What this gateway registers itself as, where Nomad does not; empty: it does not.
register = ""

[tunnels]
# The address that tunnels (modal.forward) are listened for at, "0.0.0.0"; empty: this gateway carries none.
# They need a certificate of [tls] or [pki], and gateways = true in the dispatcher's [tunnels], which says the
# ports.
listen = ""
# The port of all that are told apart by host name, where the dispatcher's [tunnels] has a domain.
tls_port = 0
# Where containers come for connections, an address that they reach and any free port; and how they reach it,
# where that is another host.
inside_listen = "http://127.0.0.1:0"
inside_host = ""
# TLS handshakes under way at a time.
max_handshakes = 1000

"""
    + CERTIFICATES_EXAMPLE
)


@dataclass(frozen=True)
class GatewayProcessSettings:
    """What ``EXAMPLE`` explains, read and checked."""

    listen: str = "http://127.0.0.1:8080"
    processes: int = 1
    dispatchers: list[str] = field(default_factory=lambda: ["http://127.0.0.1:8520"])
    gateway_token: str = field(default="", repr=False)
    gateway_token_file: str = ""
    peer_listen: str = "http://127.0.0.1:0"
    peer_host: str = ""
    drain_seconds: float = 30.0
    domain: str = "localhost"
    trusted_proxies: list[str] = field(default_factory=list)
    max_waiting: int = 1000
    max_clients: int = 10_000
    answer_seconds: float = 150.0
    consul: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tunnels: Mapping[str, Any] = field(default_factory=dict)
    tls: Mapping[str, Any] = field(default_factory=dict)
    pki: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("listen", "peer_listen"):
            if _address(name, getattr(self, name)).path:
                raise SettingsError(f'{name} must be an address such as "http://0.0.0.0:8080"')
        for address in self.dispatchers:
            _address("dispatchers", address)
        if not self.dispatchers:
            raise SettingsError("dispatchers is empty: give the address of at least one")
        if self.processes < 1:
            raise SettingsError(f"processes is {self.processes}: it must be 1 or more")
        names = {f.name for f in dataclasses.fields(ConsulSettings)} - {"timeout", "wait"} | {"register"}
        for name, value in self.consul.items():
            if name not in names:
                raise SettingsError(f"[consul] has no setting {name!r}; known are {', '.join(sorted(names))}")
            if not isinstance(value, str):
                raise SettingsError(f"[consul]: {name} must be a string")
        secure = self.listen.startswith("https:")
        given = TlsSettings.read(self.tls, self.pki).given
        tunnels = bool(self.tunnel_settings().listen)
        if tunnels and not given:
            raise SettingsError("[tunnels]: listen needs a certificate of [tls] or [pki]")
        if secure != given and not tunnels:
            raise SettingsError(
                'listen = "https://…" and a certificate of [tls] or [pki] belong together: give both or none'
            )

    def token(self) -> str:
        """Return the gateways' token. Raises SettingsError."""
        token = read_token(self.gateway_token, self.gateway_token_file)
        if not token:
            raise SettingsError("gateway_token is empty: give that of the dispatcher's [web] settings")
        return token

    def tunnel_settings(self) -> GatewayTunnelSettings:
        """Return where it has tunnels. Raises SettingsError."""
        return GatewayTunnelSettings.read(self.tunnels, processes=self.processes)

    def gateway_settings(self) -> GatewaySettings:
        """Return what the gateway itself is told."""
        return GatewaySettings(
            domain=self.domain,
            max_waiting=self.max_waiting,
            max_clients=self.max_clients,
            answer_seconds=self.answer_seconds,
            trusted_proxies=tuple(self.trusted_proxies),
        )

    def consul_settings(self) -> ConsulSettings | None:
        """Return how to reach Consul, or None where there is none."""
        if not self.consul.get("address"):
            return None
        given = {k: v for k, v in self.consul.items() if v and k != "register"}
        return dataclasses.replace(ConsulSettings.from_env(), **given)

    @classmethod
    def load(cls, *paths: Path) -> GatewayProcessSettings:
        """Read TOML files, of which the later count. Raises SettingsError, naming the file and the fault."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**read_settings(cls, paths, names, "modal-nomad gateway "))


def _address(name: str, value: str) -> Address:
    try:
        return parse_address(value)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None
