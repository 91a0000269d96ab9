"""The difference of two jobs in the shape of Nomad's plan: what would be added, deleted, edited. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMED = ("TaskGroups", "Tasks")


def diff_jobs(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """Return Nomad's job diff of two jobs in JSON format; ``old`` None means the job is new."""
    result = _diff("", old, new)
    result.pop("Name", None)
    return {**result, "ID": new.get("ID", "")}


def _diff(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> dict[str, Any]:
    before, after = old or {}, new or {}
    result: dict[str, Any] = {"Type": _kind(old, new), "Name": name, "Fields": [], "Objects": []}
    for key in sorted({*before, *after}):
        a, b = before.get(key), after.get(key)
        if a == b:
            continue
        if key in _NAMED:
            result[key] = _diff_named(a, b)
        elif key in ("Env", "Meta"):
            result["Fields"] += _fields(key, a or {}, b or {})
        elif isinstance(a, Mapping) or isinstance(b, Mapping):
            result["Objects"].append(_diff(key, _mapping(a), _mapping(b)))
        elif _is_objects(a) or _is_objects(b):
            result["Objects"] += _diff_objects(key, a or [], b or [])
        elif isinstance(a, list) or isinstance(b, list):
            result["Fields"] += _fields(key, dict(enumerate(a or [])), dict(enumerate(b or [])))
        else:
            result["Fields"].append(_field(key, a, b))
    return result


def _kind(old: Any, new: Any) -> str:
    if old == new:
        return "None"
    if old is None:
        return "Added"
    return "Deleted" if new is None else "Edited"


def _mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _field(name: str, old: Any, new: Any) -> dict[str, Any]:
    return {"Type": _kind(old, new), "Name": name, "Old": _text(old), "New": _text(new)}


def _fields(name: str, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> list[dict[str, Any]]:
    return [
        _field(f"{name}[{key}]", old.get(key), new.get(key))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _diff_named(old: Any, new: Any) -> list[dict[str, Any]]:
    before = {x.get("Name", ""): x for x in old or []}
    after = {x.get("Name", ""): x for x in new or []}
    return [
        _diff(name, before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _diff_objects(name: str, old: list[Any], new: list[Any]) -> list[dict[str, Any]]:
    length = max(len(old), len(new))
    pairs = zip(old + [None] * (length - len(old)), new + [None] * (length - len(new)), strict=True)
    return [_diff(name, a, b) for a, b in pairs if a != b]
