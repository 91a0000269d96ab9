"""Where tunnels may be, and how many."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PORTS = re.compile(r"(\d{1,5})-(\d{1,5})")
_DOMAIN = re.compile(r"[a-z0-9.-]{1,220}")


@dataclass(frozen=True)
class TunnelSettings:
    """Where tunnels may be, and how many.

    Attributes:
        host: the name or address that others reach tunnels at; empty means that there are none.
        listen: the address that they listen at.
        ports: the ports that they may have, as ``30000-30999``; empty means any free one.
        max_tunnels: tunnels at a time.
        max_connections: connections through one tunnel at a time.
        max_handshakes: TLS handshakes under way at a time, in all of them together.
        domain: what the host names of tunnels end in, where one port has all that speak TLS; empty means that
            each has a port of its own.
        tls_port: that port.
        gateways: gateways of other processes listen, not the dispatcher.
    """

    host: str = ""
    listen: str = "0.0.0.0"
    ports: str = ""
    max_tunnels: int = 1000
    max_connections: int = 1000
    max_handshakes: int = 1000
    domain: str = ""
    tls_port: int = 443
    gateways: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any], *, embedded: bool) -> TunnelSettings:
        """Return what a table of the configuration says.

        Args:
            given: the table.
            embedded: where nothing is said, they are for this machine.

        Raises:
            ValueError: the text says what is wrong with it.
        """
        fields = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        if unknown := sorted(set(given) - set(fields)):
            raise ValueError(
                f"[tunnels] has no setting {unknown[0]!r}; known are {', '.join(sorted(fields))}"
            )
        for name, value in given.items():
            if type(value) is not fields[name]:
                raise ValueError(
                    f"[tunnels]: {name} is {value!r}; it must be of type {fields[name].__name__}"
                )
        defaults = {"host": "localhost", "listen": "127.0.0.1"} if embedded else {}
        made = cls(**{**defaults, **given})
        low, high = made.port_range
        if made.ports and not 0 < low <= high < 65536:
            raise ValueError(f'[tunnels]: ports is {made.ports!r}; give a range such as "30000-30999"')
        if made.domain and not _DOMAIN.fullmatch(made.domain):
            raise ValueError(f"[tunnels]: domain is {made.domain!r}; give a host name in lower case")
        if not 0 < made.tls_port < 65536:
            raise ValueError(f"[tunnels]: tls_port is {made.tls_port}; give a port, such as 443")
        if made.gateways and not made.ports:
            raise ValueError(
                '[tunnels]: gateways = true needs ports, such as "30000-30999", at which all of them listen'
            )
        if made.gateways and not made.reached_at:
            raise ValueError("[tunnels]: gateways = true needs a host (or domain) that leads to all of them")
        return made

    @property
    def reached_at(self) -> str:
        """The host that ports are reached at; empty means that there are no tunnels."""
        return self.host or self.domain

    @property
    def port_range(self) -> tuple[int, int]:
        """The first and the last port that a tunnel may have; zeros mean any free one."""
        found = _PORTS.fullmatch(self.ports)
        if found is None:
            return (0, 0)
        return int(found.group(1)), int(found.group(2))
