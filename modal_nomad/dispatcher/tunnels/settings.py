"""Where tunnels may be, and how many."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PORTS = re.compile(r"(\d{1,5})-(\d{1,5})")


@dataclass(frozen=True)
class TunnelSettings:
    """Where tunnels may be, and how many.

    Attributes:
        host: the name or address that others reach tunnels at; empty means that there are none.
        listen: the address that they listen at.
        ports: the ports that they may have, as ``30000-30999``; empty means any free one.
        max_tunnels: tunnels at a time.
        max_connections: connections through one tunnel at a time.
    """

    host: str = ""
    listen: str = "0.0.0.0"
    ports: str = ""
    max_tunnels: int = 1000
    max_connections: int = 1000

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
        return made

    @property
    def port_range(self) -> tuple[int, int]:
        """The first and the last port that a tunnel may have; zeros mean any free one."""
        found = _PORTS.fullmatch(self.ports)
        if found is None:
            return (0, 0)
        return int(found.group(1)), int(found.group(2))
