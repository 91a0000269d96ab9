"""Placement on a Nomad cluster, in Nomad's own words: what ``nomad=`` of a Function takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .exception import InvalidError
from .wire.placement import PlacementSpec

__all__ = ["Affinity", "Constraint", "Placement", "Spread"]

T = TypeVar("T")
_COMPARISONS = ("=", "!=", ">", ">=", "<", "<=")
_SETS = ("set_contains", "set_contains_all", "set_contains_any")
_PRESENCE = ("is_set", "is_not_set")
_AFFINITY_OPERATORS = (*_COMPARISONS, "regexp", *_SETS, "version", "semver")
_CONSTRAINT_OPERATORS = (*_AFFINITY_OPERATORS, *_PRESENCE, "distinct_hosts", "distinct_property")
_WITHOUT_VALUE = (*_PRESENCE, "distinct_hosts")
_SEMVER = r"\s*v?\d+(\.\d+)*(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"
_VERSIONS = {
    "version": re.compile(r"(=|!=|>|<|>=|<=|~>)?\s*v?\d+(\.\d+)*(-?[0-9A-Za-z~-][0-9A-Za-z.~+-]*)?"),
    "semver": re.compile(r"(=|!=|>|<|>=|<=)?" + _SEMVER),
}
_NOT_RE2 = re.compile(r"\(\?(<?[=!]|P=|\()|\\[1-9]")
_COUNT = re.compile(r"[1-9][0-9]*")
_TRUTHS = ("", "true", "false")
_POOL = re.compile(r"[A-Za-z0-9_-]{1,128}")
_RESERVED = "modal_"


@dataclass(frozen=True)
class Constraint:
    """What a node must be.

    Attributes:
        attribute: what is looked at, such as ``"${attr.cpu.arch}"`` or ``"${meta.rack}"``.
        operator: one of Nomad's: ``= != > >= < <= regexp set_contains set_contains_any version semver
            is_set is_not_set distinct_hosts distinct_property``.
        value: what it is compared with.

    Raises:
        InvalidError: for an operator that Nomad does not have, or a value that is missing or too many.

    Example:
        >>> modal.nomad.Constraint("${attr.kernel.name}", "=", "linux")
        Constraint(attribute='${attr.kernel.name}', operator='=', value='linux')
    """

    attribute: str
    operator: str = "="
    value: str = ""

    def __post_init__(self) -> None:
        _check_rule("Constraint", self, _CONSTRAINT_OPERATORS)


@dataclass(frozen=True)
class Affinity:
    """What a node had better be; or had better not, with a weight below 0.

    Attributes:
        attribute: what is looked at.
        operator: one of those of ``Constraint`` up to ``semver``.
        value: what it is compared with.
        weight: how much it counts, from -100 to 100, not 0.

    Raises:
        InvalidError: naming what it cannot be.

    Example:
        >>> modal.nomad.Affinity("${meta.disk}", "=", "nvme", weight=80).weight
        80
    """

    attribute: str
    operator: str = "="
    value: str = ""
    weight: int = 50

    def __post_init__(self) -> None:
        _check_rule("Affinity", self, _AFFINITY_OPERATORS)
        _check_number("weight of an Affinity", self.weight, -100, 100)
        if not self.weight:
            raise InvalidError("weight of an Affinity is 0, which would say nothing; give -100 to 100")


@dataclass(frozen=True)
class Spread:
    """Containers are spread over the values of an attribute.

    Attributes:
        attribute: such as ``"${node.datacenter}"``.
        targets: percents by value, at most 100 together; empty spreads evenly.
        weight: how much it counts beside other spreads, from 1 to 100.

    Raises:
        InvalidError: naming what it cannot be.

    Example:
        >>> modal.nomad.Spread("${node.datacenter}", targets={"dc1": 70, "dc2": 30}).weight
        50
    """

    attribute: str
    targets: Mapping[str, int] = field(default_factory=dict)
    weight: int = 50

    def __post_init__(self) -> None:
        _check_text("attribute of a Spread", self.attribute)
        _check_number("weight of a Spread", self.weight, 1, 100)
        object.__setattr__(self, "targets", _check_table("targets of a Spread", self.targets, int))
        for value, percent in self.targets.items():
            _check_number(f"the target {value!r} of a Spread", percent, 0, 100)
        if sum(self.targets.values()) > 100:
            raise InvalidError(
                f"the targets of a Spread add up to {sum(self.targets.values())}; 100 is the most"
            )


@dataclass(frozen=True)
class Placement:
    """Where Nomad places the containers of a Function: its own words, for what no other parameter says.

    They have no effect where containers are processes of this machine.

    Attributes:
        node_pool: the node pool, instead of the cluster's.
        datacenters: patterns of datacenters; the same as ``region=``, so only one of them.
        node_class: nodes of this class only.
        node_meta: nodes whose meta says all this only.
        constraints: what nodes must be, besides.
        affinities: what they had better be.
        spreads: over which values of an attribute containers are spread.
        priority: of the job, from 1 to 100, instead of the cluster's.
        meta: of the job, for whoever looks at it; no name may begin with ``modal_``.

    Raises:
        InvalidError: naming what it cannot be.

    Example:
        >>> where = modal.nomad.Placement(
        ...     node_pool="gpu",
        ...     node_meta={"rack": "r1"},
        ...     affinities=[modal.nomad.Affinity("${node.class}", "=", "fast")],
        ... )
        >>> @app.function(nomad=where)
        ... def placed():
        ...     return 1
    """

    node_pool: str = ""
    datacenters: Sequence[str] = ()
    node_class: str = ""
    node_meta: Mapping[str, str] = field(default_factory=dict)
    constraints: Sequence[Constraint] = ()
    affinities: Sequence[Affinity] = ()
    spreads: Sequence[Spread] = ()
    priority: int | None = None
    meta: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.node_pool != "" and (
            not isinstance(self.node_pool, str) or not _POOL.fullmatch(self.node_pool)
        ):
            raise InvalidError(
                f"node_pool of a Placement is {self.node_pool!r}; give the name of a node pool: letters,"
                " digits, '_' and '-'"
            )
        if not isinstance(self.node_class, str):
            raise InvalidError(f"node_class of a Placement is {self.node_class!r}; give a string")
        if self.priority is not None:
            _check_number("priority of a Placement", self.priority, 1, 100)
        meta = _check_table("meta of a Placement", self.meta, str)
        for name in meta:
            if name.startswith(_RESERVED):
                raise InvalidError(
                    f"meta of a Placement has {name!r}: names beginning with {_RESERVED!r} are taken;"
                    " choose another"
                )
        checked: Mapping[str, Any] = {
            "datacenters": _several("datacenters", self.datacenters, str),
            "node_meta": _check_table("node_meta of a Placement", self.node_meta, str),
            "constraints": _several("constraints", self.constraints, Constraint),
            "affinities": _several("affinities", self.affinities, Affinity),
            "spreads": _several("spreads", self.spreads, Spread),
            "meta": meta,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def _spec(self) -> PlacementSpec:
        needed = [("${node.class}", "=", self.node_class)] if self.node_class else []
        needed += [(f"${{meta.{name}}}", "=", value) for name, value in self.node_meta.items()]
        needed += [(x.attribute, x.operator, x.value) for x in self.constraints]
        return PlacementSpec(
            node_pool=self.node_pool,
            datacenters=tuple(self.datacenters),
            constraints=tuple(needed),
            affinities=tuple((x.attribute, x.operator, x.value, x.weight) for x in self.affinities),
            spreads=tuple((x.attribute, x.weight, tuple(x.targets.items())) for x in self.spreads),
            priority=self.priority,
            meta=self.meta,
        )


def _check_rule(kind: str, rule: Constraint | Affinity, operators: Sequence[str]) -> None:
    if rule.operator not in operators:
        raise InvalidError(f"operator of {_a(kind)} is {rule.operator!r}; Nomad's are {', '.join(operators)}")
    if rule.operator != "distinct_hosts":
        _check_text(f"attribute of {_a(kind)}", rule.attribute)
    if not isinstance(rule.value, str):
        raise InvalidError(f"value of {_a(kind)} is {rule.value!r}; give a string, as str({rule.value!r})")
    without = rule.operator in _WITHOUT_VALUE or rule.operator == "distinct_property"
    if without and rule.operator in _PRESENCE and rule.value:
        raise InvalidError(f"{_a(kind)} with {rule.operator!r} takes no value; leave {rule.value!r} out")
    if not without and not rule.value:
        raise InvalidError(
            f"{_a(kind)} with {rule.operator!r} needs a value to compare {rule.attribute} with"
        )
    if "$" not in rule.attribute + rule.value and rule.operator != "distinct_hosts":
        raise InvalidError(
            f"attribute of {_a(kind)} is {rule.attribute!r}, the same on every node: say what is looked up,"
            f" as '${{{rule.attribute}}}'"
        )
    if rule.operator == "distinct_hosts" and rule.value not in _TRUTHS:
        raise InvalidError(f"value of {_a(kind)} with 'distinct_hosts' is {rule.value!r}; leave it out")
    if rule.operator == "distinct_property" and rule.value and not _COUNT.fullmatch(rule.value):
        raise InvalidError(
            f"value of {_a(kind)} with 'distinct_property' is {rule.value!r}; give how many may share"
            " one, as '2'"
        )
    if (versions := _VERSIONS.get(rule.operator)) and "$" not in rule.value:
        for part in rule.value.split(","):
            if not versions.fullmatch(part.strip()):
                raise InvalidError(
                    f"value of {_a(kind)} with {rule.operator!r} is {rule.value!r}; give versions, as"
                    " '>= 1.2, < 2'"
                )
    if rule.operator == "regexp":
        if _NOT_RE2.search(rule.value):
            raise InvalidError(
                f"value of {_a(kind)} is {rule.value!r}; Nomad's regular expressions (RE2) look neither"
                " ahead nor back: say it without"
            )
        try:
            re.compile(rule.value)
        except re.error as error:
            raise InvalidError(
                f"value of {_a(kind)} is {rule.value!r}, which is no regular expression: {error}"
            ) from None


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "Affinity" else f"a {kind}"


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidError(f"{what} is {value!r}; give one such as '${{meta.rack}}'")


def _check_number(what: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidError(f"{what} is {value!r}; give a whole number from {least} to {most}")


def _check_table(what: str, value: Any, kind: type) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(
        isinstance(k, str) and k and isinstance(v, kind) for k, v in value.items()
    ):
        raise InvalidError(f"{what} is {value!r}; give a dict of names to {kind.__name__}")
    return dict(value)


def _several(name: str, value: Iterable[Any], kind: type[T]) -> tuple[T, ...]:
    alone = isinstance(value, (str, kind))
    found = (value,) if alone else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(x, kind) and x for x in found):
        raise InvalidError(f"{name} of a Placement is {value!r}; give a list of {kind.__name__}")
    return found


def placement_spec(value: Any) -> PlacementSpec | None:
    """Return what ``nomad=`` asks for. Raises InvalidError."""
    if value is None:
        return None
    if not isinstance(value, Placement):
        raise InvalidError(f"nomad is {value!r}; give a modal.nomad.Placement(...)")
    return value._spec
