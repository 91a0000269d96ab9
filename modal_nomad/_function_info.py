"""What is known of a user's function: where it stands and what kind it is."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .exception import InvalidError


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


def module_file(module: Any) -> str | None:
    """Return the real source file of a loaded module, or None where it has none (a REPL, a notebook)."""
    path = getattr(module, "__file__", None)
    return os.path.realpath(path) if path and os.path.isfile(path) else None


def import_name(module_name: str) -> tuple[str, str | None]:
    """Return the name that imports a loaded module in a container, and its file here.

    ``__main__`` of ``python -m pkg.mod`` is ``pkg.mod``; of ``python script.py`` it is ``script``; of a
    REPL it is ``__main__`` without a file.
    """
    module = sys.modules.get(module_name)
    file = module_file(module)
    if module_name != "__main__" or file is None:
        return module_name, file
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.name and spec.name != "__main__":
        return str(spec.name), file
    return os.path.splitext(os.path.basename(file))[0], file


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
    local = "<locals>" in qualname or "<lambda>" in qualname or not qualname
    if not serialized and file is not None and not local and "." in qualname:
        raise InvalidError(
            f"{qualname} is a method; @app.function() takes functions, use @app.cls() for classes"
        )
    # A notebook or a REPL has no file to import from: its functions can only travel as themselves.
    serialized = serialized or (module == "__main__" and file is None)
    if local and not serialized:
        raise InvalidError(
            f"{qualname or raw_f!r} is not in global scope; move it there or use function(serialized=True)"
        )
    yields = inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)
    main = sys.modules.get("__main__")
    if not serialized and main is not None and module_file(main) == file:
        # What the container sends back names the script's classes by this name: they must be the ones
        # that this process has, not those of a second import that would run the script again.
        sys.modules.setdefault(module, main)
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
