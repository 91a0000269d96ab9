"""``modal.parameter()``: typed fields of a class that its callers choose, and their wire form."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any

from .exception import InvalidError
from .wire.spec import ParameterSpec


class _NoDefault:
    def __repr__(self) -> str:
        return "<no default>"

    def __reduce__(self) -> str:
        # By name: a copy in the container would not be recognised.
        return "NO_DEFAULT"


NO_DEFAULT: Any = _NoDefault()
_TYPES: Mapping[str, type] = {"str": str, "int": int, "bool": bool, "bytes": bytes}


class Parameter:
    """A field that ``parameter()`` declares. On an instance it is a plain attribute."""

    def __init__(self, default: Any, init: bool) -> None:
        self.default = default
        self.init = init
        self.name = ""

    def __set_name__(self, owner: Any, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # Not a data descriptor: a value on the instance comes first.
        if instance is None:
            return self
        if self.default is NO_DEFAULT:
            raise AttributeError(f"{type(instance).__name__!r} object has no attribute {self.name!r}")
        return self.default

    def __repr__(self) -> str:
        return f"parameter(default={self.default!r}, init={self.init!r})"


def parameter(*, default: Any = NO_DEFAULT, init: bool = True) -> Any:
    """Declare a parameter of a class, as a field of a dataclass is declared.

    Each set of values has containers of its own. The field needs an annotation: ``str``, ``int``,
    ``bool`` or ``bytes``.

    Args:
        default: the value when none is given; without it one must be given.
        init: False for a field that is no parameter, only annotated here.

    Example:
        >>> class Model:
        ...     name: str = parameter()
        ...     size: int = parameter(default=100)
    """
    if not isinstance(init, bool):
        raise InvalidError(f"init is {init!r}; give True or False")
    return Parameter(default, init)


def class_parameters(user_cls: type) -> tuple[ParameterSpec, ...]:
    """Return the parameters of a class, those of its bases first.

    Raises:
        InvalidError: one has no annotation, a type that cannot be one's, or a default of another type.
    """
    found: dict[str, ParameterSpec] = {}
    for klass in reversed(user_cls.__mro__):
        annotations = _annotations(klass)
        for name, value in vars(klass).items():
            if not isinstance(value, Parameter):
                found.pop(name, None)
            elif value.init:
                found[name] = _spec(klass, name, value, annotations)
    return tuple(found.values())


def _annotations(klass: type) -> Mapping[str, Any]:
    get = getattr(inspect, "get_annotations", None)
    if get is None:
        # Python 3.9: of this class alone, not those of its bases.
        return dict(vars(klass).get("__annotations__", {}))
    found: Mapping[str, Any] = get(klass)
    return found


def _spec(klass: type, name: str, value: Parameter, annotations: Mapping[str, Any]) -> ParameterSpec:
    where = f"{klass.__name__}.{name}"
    if name not in annotations:
        raise InvalidError(f"parameter {where} must be annotated, as in `{name}: str = modal.parameter()`")
    annotation = _evaluated(klass, annotations[name])
    kind = next((word for word, known in _TYPES.items() if known is annotation), None)
    if kind is None:
        text = getattr(annotation, "__name__", annotation)
        raise InvalidError(f"parameter {where} is of type {text}; parameters are of type {', '.join(_TYPES)}")
    if value.default is NO_DEFAULT:
        return ParameterSpec(name, kind)
    if type(value.default) is not _TYPES[kind]:
        raise InvalidError(f"the default of parameter {where} is {value.default!r}; give a {kind}")
    return ParameterSpec(name, kind, _to_json(value.default))


def _evaluated(klass: type, annotation: Any) -> Any:
    # Quotes in a module with postponed annotations stand inside quotes.
    while isinstance(annotation, str):
        space = dict(vars(sys.modules.get(klass.__module__, sys)))
        try:
            annotation = _TYPES.get(annotation) or eval(annotation, space, dict(vars(klass)))
        except Exception:
            return annotation
    return annotation


def check_values(class_name: str, specs: tuple[ParameterSpec, ...], values: Mapping[str, Any]) -> None:
    """Check names and types of given values; what is missing is checked by ``complete``.

    Raises:
        TypeError: an unknown name, or a value of another type.
    """
    by_name = {spec.name: spec for spec in specs}
    for name, value in values.items():
        spec = by_name.get(name)
        if spec is None:
            known = ", ".join(by_name) or "none"
            raise TypeError(
                f"{class_name}() got an unexpected parameter {name!r}; its parameters are {known}"
            )
        if type(value) is not _TYPES[spec.type]:
            raise TypeError(
                f"Expected {spec.type}, got {type(value).__name__}: parameter {name!r} of {class_name}"
            )


def complete(class_name: str, specs: tuple[ParameterSpec, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for each parameter, defaults where none is given.

    Raises:
        InvalidError: a parameter without default is missing.
    """
    missing = [s.name for s in specs if s.default is None and s.name not in values]
    if missing:
        given = ", ".join(f"{name}=..." for name in missing)
        raise InvalidError(
            f"Missing required parameter of {class_name}: {', '.join(missing)}; say {class_name}({given})"
        )
    return {s.name: values[s.name] if s.name in values else _from_json(s.type, s.default) for s in specs}


def pack(values: Mapping[str, Any]) -> bytes:
    """Return the one serialized form of parameter values: equal values are equal bytes."""
    plain = {name: [type(value).__name__, _to_json(value)] for name, value in values.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def unpack(data: bytes) -> dict[str, Any]:
    """Return the values that ``pack`` made bytes of."""
    return {name: _from_json(kind, value) for name, (kind, value) in json.loads(data).items()}


def _to_json(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _from_json(kind: str, value: Any) -> Any:
    return bytes.fromhex(value) if kind == "bytes" else value
