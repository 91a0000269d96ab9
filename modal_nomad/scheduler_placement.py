"""Where containers may run, as ``_experimental_scheduler_placement`` of a Function says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .exception import InvalidError
from .wire.placement import SchedulerSpec

__all__ = ["SchedulerPlacement"]


@dataclass(frozen=True, init=False)
class SchedulerPlacement:
    """Which nodes a Function's containers may run on.

    All but the region is looked up in the nodes' meta: ``zone``, ``instance_type`` and ``preemptible``.

    Args:
        region: datacenters, one or several.
        zone: the ``zone`` of a node's meta.
        spot: True for nodes whose meta says ``preemptible = "true"``, False for others; None for either.
        instance_type: one or several ``instance_type`` of a node's meta.

    Raises:
        InvalidError: naming what it cannot be.

    Example:
        >>> where = modal.scheduler_placement.SchedulerPlacement(region="eu", spot=False)
        >>> @app.function(_experimental_scheduler_placement=where)
        ... def placed():
        ...     return 1
    """

    region: tuple[str, ...]
    zone: str
    spot: bool | None
    instance_type: tuple[str, ...]

    def __init__(
        self,
        region: str | Sequence[str] | None = None,
        zone: str | None = None,
        spot: bool | None = None,
        instance_type: str | Sequence[str] | None = None,
    ) -> None:
        if zone is not None and (not isinstance(zone, str) or not zone):
            raise InvalidError(f"zone is {zone!r}; give the name that nodes have as meta.zone")
        if spot is not None and not isinstance(spot, bool):
            raise InvalidError(f"spot is {spot!r}; give True, False or None")
        object.__setattr__(self, "region", _names("region", region))
        object.__setattr__(self, "zone", zone or "")
        object.__setattr__(self, "spot", spot)
        object.__setattr__(self, "instance_type", _names("instance_type", instance_type))


def _names(what: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else (None,)
    if not all(isinstance(x, str) and x and "," not in x for x in found):
        raise InvalidError(f"{what} is {value!r}; give a name or a list of names")
    return found


def scheduler_spec(value: Any, region: Any) -> tuple[tuple[str, ...], SchedulerSpec | None]:
    """Return the region that a placement names, and the rest of it.

    Args:
        value: the parameter.
        region: the ``region=`` beside it.

    Raises:
        InvalidError: for something else, or two regions.
    """
    if value is None:
        return (), None
    if not isinstance(value, SchedulerPlacement):
        raise InvalidError(
            f"_experimental_scheduler_placement is {value!r}; give a"
            " modal.scheduler_placement.SchedulerPlacement(...)"
        )
    if region is not None:
        raise InvalidError(
            "region= and _experimental_scheduler_placement= cannot be given together: name the region in the"
            " SchedulerPlacement"
        )
    rest = SchedulerSpec(value.zone, value.spot, value.instance_type)
    return value.region, None if rest == SchedulerSpec() else rest
