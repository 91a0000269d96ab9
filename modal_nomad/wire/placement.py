"""Where containers may run, as pure data: what crosses processes of ``modal.nomad`` and its like."""

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Tuple

Rule = Tuple[str, str, str]
"""An attribute of nodes, an operator, and what is compared with."""


@dataclass(frozen=True)
class PlacementSpec:
    """A ``modal.nomad.Placement``, checked.

    Attributes:
        node_pool: instead of the cluster's; empty for that one.
        datacenters: instead of the cluster's; empty for those.
        constraints: what nodes must be.
        affinities: what they had better be, each with a weight from -100 to 100.
        spreads: attributes over whose values containers are spread: attribute, weight, and percents by value.
        priority: instead of the cluster's; None for that one.
        meta: of the job, besides ours.
    """

    node_pool: str = ""
    datacenters: Tuple[str, ...] = ()
    constraints: Tuple[Rule, ...] = ()
    affinities: Tuple[Tuple[str, str, str, int], ...] = ()
    spreads: Tuple[Tuple[str, int, Tuple[Tuple[str, int], ...]], ...] = ()
    priority: Optional[int] = None
    meta: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PlacementSpec":
        """Read the JSON object of a placement; unknown fields are ignored."""
        rules = {name: tuple(map(tuple, data.get(name) or ())) for name in ("constraints", "affinities")}
        return cls(
            node_pool=data.get("node_pool") or "",
            datacenters=tuple(data.get("datacenters") or ()),
            spreads=tuple((x[0], x[1], tuple(map(tuple, x[2]))) for x in data.get("spreads") or ()),
            priority=data.get("priority"),
            meta=dict(data.get("meta") or {}),
            **rules,
        )


@dataclass(frozen=True)
class SchedulerSpec:
    """What a ``SchedulerPlacement`` says besides its region: of the nodes' meta.

    Attributes:
        zone: their ``zone``; empty for any.
        spot: whether they may vanish (``preemptible``); None for either.
        instance_types: one of these is their ``instance_type``; empty for any.
    """

    zone: str = ""
    spot: Optional[bool] = None
    instance_types: Tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SchedulerSpec":
        """Read the JSON object; unknown fields are ignored."""
        return cls(data.get("zone") or "", data.get("spot"), tuple(data.get("instance_types") or ()))
