"""Parameters of ``app.function`` and ``app.cls`` that have no effect here.

They are hints for Modal's own scheduler and network: what they ask for is not a matter of correctness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .exception import InvalidError

NO_EFFECT = frozenset(
    {
        "_experimental_proxy_ip",
        "_experimental_restrict_output",
        "allow_cross_region_volumes",
        "experimental_options",
        "routing_region",
    }
)


def other_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are not known as ones without an effect.

    Args:
        given: parameters by their names.

    Raises:
        InvalidError: when one is out of its bounds.
    """
    rest: dict[str, Any] = {}
    for name, value in given.items():
        if name == "_experimental_custom_scaling_factor":
            _check_scaling_factor(name, value)
        elif name not in NO_EFFECT:
            rest[name] = value
    return rest


def _check_scaling_factor(name: str, value: Any) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 <= value <= 1.0:
        raise InvalidError(f"{name} is {value!r}; give a number from 0.0 to 1.0")
