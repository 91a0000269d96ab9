"""What is known of a user's class: its methods, its lifecycle hooks, its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _parameters
from ._partial_function import (
    BUILD,
    ENTER,
    EXIT,
    METHOD,
    OBJECT_KEY,
    SNAP,
    WEB,
    PartialFunction,
    check_batched_function,
    positional_count,
)
from .exception import InvalidError
from .wire.spec import MethodSpec, ParameterSpec


@dataclass(frozen=True)
class ClassInfo:
    """A user's class as its decorators describe it.

    Attributes:
        user_cls: the class itself.
        methods: what can be called, in order of definition, that of base classes first.
        hooks: the names of lifecycle methods by role, in the same order.
        parameters: its ``modal.parameter()`` fields.
        own_init: it has a constructor of its own.
        needs_parameters: it cannot be constructed without any.
    """

    user_cls: type
    methods: Mapping[str, PartialFunction]
    hooks: Mapping[str, tuple[PartialFunction, ...]]
    parameters: tuple[ParameterSpec, ...]
    own_init: bool
    needs_parameters: bool

    def method_specs(self) -> dict[str, MethodSpec]:
        """Return the methods as containers and callers have to know them."""
        return {name: method_spec(partial) for name, partial in self.methods.items()}

    def construct(self, payload: bytes | None, of_app: Any = None) -> Any:
        """Return a new instance of the class; its hooks have not run.

        Args:
            payload: the serialized parameters, or None.
            of_app: the object that stands for the instance in its App, to be found by its methods.

        Raises:
            BaseException: what the class's own ``__init__`` raises.
        """
        args, kwargs = unpack_arguments(self.own_init, payload)
        return self.instance(args, kwargs, of_app)

    def instance(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], of_app: Any = None) -> Any:
        """As ``construct``, from the parameters themselves."""
        user_cls: Any = self.user_cls
        made = user_cls.__new__(user_cls)
        if of_app is not None and hasattr(made, "__dict__"):
            made.__dict__[OBJECT_KEY] = of_app
        if self.own_init:
            made.__init__(*args, **kwargs)
        else:
            values = _parameters.complete(self.user_cls.__name__, self.parameters, kwargs)
            for name, value in values.items():
                setattr(made, name, value)
        return made


def pack_arguments(own_init: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Serialize constructor parameters: values of ``modal.parameter()`` fields, or any for ``__init__``."""
    if not own_init:
        return _parameters.pack(kwargs)
    from .wire.serialization import dumps

    return dumps((args, dict(sorted(kwargs.items()))))


def unpack_arguments(own_init: bool, payload: bytes | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword parameters from their serialized form."""
    if payload is None:
        return (), {}
    if not own_init:
        return (), _parameters.unpack(payload)
    from .wire.serialization import loads

    args, kwargs = loads(payload)
    return args, kwargs


def method_spec(partial: PartialFunction) -> MethodSpec:
    """Return what is to be known of a method."""
    inner = inspect.unwrap(partial.raw_f)
    yields = inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)
    said = partial.settings.is_generator
    return MethodSpec(
        is_generator=yields if said is None else said,
        is_async=inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner),
        web=partial.settings.web,
    )


def class_info(user_cls: Any) -> ClassInfo:
    """Look at a class that ``@app.cls()`` decorates.

    Raises:
        TypeError: for something else than a class.
        InvalidError: the decorators inside it contradict each other.
    """
    if not inspect.isclass(user_cls):
        raise TypeError(
            f"@app.cls() got {user_cls!r}; it decorates classes, use @app.function() for functions"
        )
    name = user_cls.__name__
    partials = _partials(user_cls)
    methods = {
        key: partial
        for key, partial in partials.items()
        if partial.roles & {METHOD, WEB} or (not partial.roles and partial.settings.batch_max_size)
    }
    for key, partial in partials.items():
        if not partial.roles and key not in methods:
            raise InvalidError(f"{name}.{key} has @modal.concurrent alone; add @modal.method() above it")
    hooks = {
        role: tuple(p for p in partials.values() if role in p.roles) for role in (BUILD, SNAP, ENTER, EXIT)
    }
    batched = [key for key, partial in methods.items() if partial.settings.batch_max_size]
    if batched and len(methods) > 1:
        raise InvalidError(
            f"{name} has the batched method {batched[0]} and others: a batched method must be the only one "
            "of its class"
        )
    for key in batched:
        check_batched_function(methods[key].raw_f, f"{name}.{key}", is_method=True)
    parameters = _parameters.class_parameters(user_cls)
    own_init = user_cls.__init__ is not object.__init__
    if own_init and parameters:
        raise InvalidError(
            f"{name} has both __init__ and modal.parameter(); keep one: what __init__ does can stand in a "
            "@modal.enter() method"
        )
    needs = any(p.default is None for p in parameters)
    if own_init:
        needs = positional_count(user_cls.__init__) > 1
    served = [key for key, partial in methods.items() if WEB in partial.roles]
    if served and needs:
        raise InvalidError(
            f"{name}.{served[0]} is served on the web, where nobody gives {name} its parameters: give each a "
            "default"
        )
    return ClassInfo(user_cls, methods, hooks, parameters, own_init, needs)


def _partials(user_cls: type) -> dict[str, PartialFunction]:
    found: dict[str, PartialFunction] = {}
    for klass in reversed(user_cls.__mro__):
        for key, value in vars(klass).items():
            if isinstance(value, PartialFunction):
                found[key] = value
            elif key in found:
                # A plain override keeps the role that the base class gave to the name.
                if inspect.isfunction(value):
                    found[key] = found[key].with_raw(value)
                else:
                    del found[key]
    return found
