"""A method of a class on the command line: its flags are the method's and those of the class's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from modal_nomad.cli._entrypoint_args import parameters_of
from modal_nomad.cli._errors import CommandError


class ClassMethod:
    """What ``run FILE.py::Class.method`` runs.

    Args:
        of: the class.
        name: the method's name.
    """

    def __init__(self, of: Any, name: str) -> None:
        self._of = of
        self._name = name
        self._partial = of._info.methods[name]

    @property
    def is_generator(self) -> bool:
        """Whether the method yields."""
        return bool(self._of._info.method_specs()[self._name].is_generator)

    def get_raw_f(self) -> Callable[..., Any]:
        """Return a function with the flags of both, for reading a command line.

        Raises:
            CommandError: method and class have a parameter of one name.
        """
        own = parameters_of(self._partial.raw_f)[1:]
        constructor = self._constructor()
        twice = {p.name for p in own} & {p.name for p in constructor}
        label = f"{self._of._name}.{self._name}"
        if twice:
            raise CommandError(f"{label}: '{min(twice)}' is a parameter of the method and of its class.")

        def flags(**values: Any) -> None:
            raise AssertionError("read, never called")

        flags.__qualname__ = label
        flags.__doc__ = self._partial.raw_f.__doc__
        keyword = inspect.Parameter.KEYWORD_ONLY
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        both = [p if p.kind in variadic else p.replace(kind=keyword) for p in (*constructor, *own)]
        flags.__signature__ = inspect.Signature(sorted(both, key=lambda p: p.kind))  # type: ignore[attr-defined]
        return flags

    def remote(self, *args: Any, **values: Any) -> Any:
        """Make the instance and call the method, with what the command line said."""
        names = {p.name for p in self._constructor()}
        instance = self._of(**{k: v for k, v in values.items() if k in names})
        rest = {k: v for k, v in values.items() if k not in names}
        return getattr(instance, self._name).remote(*args, **rest)

    def _constructor(self) -> list[inspect.Parameter]:
        info = self._of._info
        if info.own_init:
            return parameters_of(info.user_cls.__init__)[1:]
        types: Mapping[str, type] = {"str": str, "int": int, "bool": bool, "bytes": bytes}
        return [
            inspect.Parameter(
                spec.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if spec.default is None else spec.default,
                annotation=types[spec.type],
            )
            for spec in info.parameters
            # Bytes have no form on a command line: such a parameter keeps its default.
            if spec.type != "bytes" or spec.default is None
        ]


def methods_of(app: Any) -> dict[str, ClassMethod]:
    """Return the methods of an App's classes, as ``Class.method``."""
    return {
        f"{name}.{method}": ClassMethod(of, method)
        for name, of in app.registered_classes.items()
        for method in of._info.methods
    }


def method_named(namespace: Mapping[str, Any], text: str) -> tuple[Any, ClassMethod] | None:
    """Find ``variable.method`` of a class with other options, which no App lists; with its App."""
    from modal_nomad.cls import Cls

    variable, _, method = text.rpartition(".")
    of = namespace.get(variable)
    if isinstance(of, Cls) and of._info is not None and method in of._info.methods:
        return of._service.app, ClassMethod(of, method)
    return None
