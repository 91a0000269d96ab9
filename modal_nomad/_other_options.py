"""Parameters of ``app.function`` and ``app.cls`` that have no effect here, or none yet.

They are taken as long as they ask for nothing, so that a program that spells out defaults runs; one that
asks for what is not there is told so, and never runs without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .exception import InvalidError

# Hints for Modal's own scheduler and network: what they ask for is not a matter of correctness.
NO_EFFECT = frozenset(
    {
        "_experimental_proxy_ip",
        "_experimental_restrict_output",
        "allow_cross_region_volumes",
        "experimental_options",
        "routing_region",
    }
)
NOT_YET: Mapping[str, str] = {
    "block_network": "start such code on a node without a route out",
    "i6pn": "containers reach each other by their nodes' addresses",
}


def other_options(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are neither here nor known as ones for later.

    Args:
        where: what was called, for the messages, as ``@app.function``.
        given: parameters by their names.

    Raises:
        InvalidError: when one asks for what is not there yet, or is out of its bounds.
    """
    rest: dict[str, Any] = {}
    for name, value in given.items():
        if name == "_experimental_custom_scaling_factor":
            _check_scaling_factor(name, value)
        elif name in NOT_YET:
            if _asks(value):
                raise InvalidError(f"{where} cannot honour {name}= yet; leave it out: {NOT_YET[name]}")
        elif name not in NO_EFFECT:
            rest[name] = value
    return rest


def _asks(value: Any) -> bool:
    return value is not None and value is not False and value not in ((), [], {}, frozenset())


def _check_scaling_factor(name: str, value: Any) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 <= value <= 1.0:
        raise InvalidError(f"{name} is {value!r}; give a number from 0.0 to 1.0")
