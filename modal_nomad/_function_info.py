"""What is known of a user's function: where it stands and what kind it is."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .exception import InvalidError
from .wire.main_module import import_name, module_file


@dataclass(frozen=True)
class FunctionInfo:
    """Where a function stands and how it is called.

    Attributes:
        raw_f: the user's own function.
        name: its name in the App (its tag).
        module: the name to import it by in a container; empty when serialized.
        qualname: where it stands in that module.
        file: the source file on this machine, or None.
        serialized: the function itself travels, as a pickle.
        is_generator: it yields.
        is_async: it is a coroutine function or an async generator function.
    """

    raw_f: Callable[..., Any]
    name: str
    module: str
    qualname: str
    file: str | None
    serialized: bool
    is_generator: bool
    is_async: bool


def function_info(
    raw_f: Any, *, name: str | None = None, serialized: bool = False, is_generator: bool | None = None
) -> FunctionInfo:
    """Look at a function that ``@app.function()`` decorates.

    Raises:
        TypeError: for something else than a function.
        InvalidError: for a function that is neither in global scope nor serialized.
    """
    if inspect.isclass(raw_f):
        raise TypeError(f"@app.function() got the class {raw_f.__qualname__}; it decorates plain functions")
    if isinstance(raw_f, (staticmethod, classmethod)) or not callable(raw_f):
        raise TypeError(f"@app.function() got {raw_f!r}; it decorates plain functions")
    inner = inspect.unwrap(raw_f)
    while isinstance(inner, functools.partial):
        inner = inner.func
    qualname = getattr(raw_f, "__qualname__", "") or getattr(inner, "__qualname__", "")
    module, file = import_name(getattr(raw_f, "__module__", None) or "__main__")
    local = _is_local(qualname)
    if not serialized and file is not None and not local and "." in qualname:
        raise InvalidError(
            f"{qualname} is a method; @app.function() takes functions, use @app.cls() for classes"
        )
    serialized = _travels_itself(raw_f, qualname, module, file, serialized, "function")
    yields = inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)
    tag = str(name or getattr(raw_f, "__name__", "") or getattr(inner, "__name__", "function"))
    return FunctionInfo(
        raw_f=raw_f,
        name="lambda" if tag == "<lambda>" else tag,
        module="" if serialized else module,
        qualname=qualname,
        file=file,
        serialized=serialized,
        is_generator=yields if is_generator is None else is_generator,
        is_async=inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner),
    )


def class_place(user_cls: type, *, serialized: bool, suffix: str) -> FunctionInfo:
    """Look where a class stands that ``@app.cls()`` decorates; ``suffix`` makes the name of its Function.

    Raises:
        InvalidError: for a class that is neither in global scope nor serialized.
    """
    qualname = user_cls.__qualname__
    module, file = import_name(user_cls.__module__)
    serialized = _travels_itself(user_cls, qualname, module, file, serialized, "cls")
    return FunctionInfo(
        raw_f=user_cls,
        name=user_cls.__name__ + suffix,
        module="" if serialized else module,
        qualname=qualname,
        file=file,
        serialized=serialized,
        is_generator=False,
        is_async=False,
    )


def _is_local(qualname: str) -> bool:
    return "<locals>" in qualname or "<lambda>" in qualname or not qualname


def _travels_itself(
    target: Any, qualname: str, module: str, file: str | None, serialized: bool, decorator: str
) -> bool:
    # A notebook or a REPL has no file to import from: what it defines can only travel as itself.
    serialized = serialized or (module == "__main__" and file is None)
    if _is_local(qualname) and not serialized:
        raise InvalidError(
            f"{qualname or target!r} is not in global scope; move it there or use "
            f"{decorator}(serialized=True)"
        )
    main = sys.modules.get("__main__")
    if not serialized and main is not None and module_file(main) == file:
        # What the container sends back names the script's classes by this name: they must be the ones
        # that this process has, not those of a second import that would run the script again.
        sys.modules.setdefault(module, main)
    return serialized


def check_scheduled(info: FunctionInfo) -> None:
    """Check that a function can be called by itself. Raises InvalidError."""
    try:
        parameters = inspect.signature(info.raw_f).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise InvalidError(
            f"{info.name} has a schedule, and nobody to give it {', '.join(needed)}: give each a default"
        )
    if info.is_generator:
        raise InvalidError(f"{info.name} has a schedule and yields, and nobody reads that: return a value")
