"""The decorators that stand inside a class, and those between ``@app.function()`` and a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ._options import warn_deprecated
from .exception import InvalidError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Concatenate, ParamSpec, Protocol, overload

    from ._options import FunctionOptions
    from .functions import Function
    from .wire.spec import WebSpec

    P = ParamSpec("P")

    class MethodDecorator(Protocol):
        @overload
        def __call__(
            self, raw_f: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]
        ) -> Function[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, raw_f: Callable[Concatenate[Any, P], R]) -> Function[P, R, R]: ...

else:
    P = TypeVar("P")
R = TypeVar("R")
F = TypeVar("F")

METHOD, ENTER, SNAP, EXIT, BUILD = "method", "enter", "enter(snap=True)", "exit", "build"
WEB = "web"
MAX_BATCH_SIZE = 1000
MAX_BATCH_WAIT_MS = 600_000
DEFAULT_BUILD_TIMEOUT = 86400


@dataclass(frozen=True)
class Settings:
    """What decorators said of a function, besides its roles in a class.

    Attributes:
        is_generator: it yields, where that cannot be seen.
        max_inputs: inputs that a container runs at a time, or None.
        target_inputs: how many the autoscaler aims at, or None.
        batch_max_size: the most inputs of one batch, or None.
        batch_wait_ms: milliseconds a batch waits to fill up.
        keep_warm: containers to keep, from the old parameter of ``@method``.
        build_force: the build hook runs again at each deployment.
        build_timeout: seconds that the build hook may take.
        web: how it is served on the web, or None.
    """

    is_generator: bool | None = None
    max_inputs: int | None = None
    target_inputs: int | None = None
    batch_max_size: int | None = None
    batch_wait_ms: int = 0
    keep_warm: int | None = None
    build_force: bool = False
    build_timeout: int = DEFAULT_BUILD_TIMEOUT
    web: WebSpec | None = None


class PartialFunction:
    """A function on its way to be a method, a hook or a Function: itself and what decorators said of it.

    Attributes:
        raw_f: the user's own function (or the class that ``@modal.concurrent`` decorates).
        roles: what it is in a class: any of the names above.
        settings: the rest.
        name: its name.
    """

    def __init__(
        self, raw_f: Any, roles: frozenset[str] = frozenset(), settings: Settings = Settings()
    ) -> None:
        self.raw_f = raw_f
        self.roles = roles
        self.settings = settings
        self.name: str = getattr(raw_f, "__name__", repr(raw_f))
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            if hasattr(raw_f, name):
                setattr(self, name, getattr(raw_f, name))
        # What help() and inspect.signature() look through.
        self.__wrapped__ = raw_f

    def __repr__(self) -> str:
        return f"PartialFunction({getattr(self.raw_f, '__qualname__', self.raw_f)!r})"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Give a method as a Function where the instance belongs to an App, else the plain method."""
        if instance is None:
            return self
        of_app = getattr(instance, "__dict__", {}).get(OBJECT_KEY)
        if of_app is not None and self.roles & {METHOD, WEB}:
            return of_app._method(self.name)
        return self.raw_f.__get__(instance, owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise InvalidError(
            f"{self!r} stands in no App: decorate its class with @app.cls() (a plain function with "
            "@app.function()), then use .remote(...) or .local(...)"
        )

    def with_raw(self, raw_f: Any) -> PartialFunction:
        """Return the same of another function: what a subclass overrides keeps its role."""
        return PartialFunction(raw_f, self.roles, self.settings)


def function_of(target: Any, options: FunctionOptions) -> tuple[Any, FunctionOptions]:
    """Return the function that ``@app.function()`` is to register, and its options with the decorators'.

    Raises:
        InvalidError: what stands below is a method or a hook of a class.
    """
    if not isinstance(target, PartialFunction):
        return target, options
    settings = target.settings
    if settings.web is not None:
        if options.retries is not None:
            raise InvalidError(f"{target.name} is served on the web and cannot have retries: leave them out")
        if options.is_generator:
            raise InvalidError(f"{target.name} is served on the web and cannot be a generator")
        options = replace(options, web=settings.web)
    elif target.roles:
        role = min(target.roles)
        raise InvalidError(
            f"{target.name} has @modal.{role}: it is part of a class, and @app.cls() decorates the class"
        )
    if inspect.isclass(target.raw_f):
        return target.raw_f, options
    if settings.max_inputs:
        options = replace(
            options,
            max_concurrent_inputs=settings.max_inputs,
            target_concurrent_inputs=settings.target_inputs,
        )
    if settings.batch_max_size:
        options = replace(
            options, batch_max_size=settings.batch_max_size, batch_wait_ms=settings.batch_wait_ms
        )
    return target.raw_f, options


OBJECT_KEY = "_modal_nomad_object"
"""Where an instance of a user's class keeps the object that stands for it in its App."""


def method(*args: Any, is_generator: bool | None = None, keep_warm: int | None = None) -> MethodDecorator:
    """Make a method of a class one that runs in containers.

    Args:
        args: none; there to notice forgotten parentheses.
        is_generator: True for a plain method that returns a generator object.
        keep_warm: deprecated: use ``@app.cls(min_containers=...)``.

    Raises:
        InvalidError: on a class, on a Function, or together with a lifecycle decorator.

    Example:
        >>> class Model:
        ...     @method()
        ...     def predict(self, x: int) -> int:
        ...         return x * 2
    """
    _no_positional("method", args)
    if is_generator is not None and not isinstance(is_generator, bool):
        raise InvalidError(f"is_generator is {is_generator!r}; give True or False")
    if keep_warm is not None:
        warn_deprecated("'keep_warm' of @modal.method is now 'min_containers' of @app.cls")
        _whole("keep_warm", keep_warm, 0)
    changes = {"is_generator": is_generator, "keep_warm": keep_warm}
    return cast("MethodDecorator", _decorator("method", METHOD, changes))


def enter(*args: Any, snap: bool = False) -> Callable[[F], F]:
    """Run a method once when a container starts, before its first input.

    Args:
        args: none; there to notice forgotten parentheses.
        snap: run it before the others, in what ``enable_memory_snapshot=True`` keeps for later containers.

    Raises:
        InvalidError: on something else than a method without parameters.

    Example:
        >>> class Model:
        ...     @enter()
        ...     def load(self) -> None:
        ...         self.weights = [1, 2, 3]
    """
    _no_positional("enter", args)
    if not isinstance(snap, bool):
        raise InvalidError(f"snap is {snap!r}; give True or False")
    return _decorator("enter", SNAP if snap else ENTER, {})


def exit(*args: Any) -> Callable[[F], F]:
    """Run a method when a container ends, after its last input.

    Raises:
        InvalidError: on something else than a method without parameters.

    Example:
        >>> class Model:
        ...     @exit()
        ...     def close(self) -> None:
        ...         print("closed")
    """
    _no_positional("exit", args)
    return _decorator("exit", EXIT, {})


def build(*args: Any, force: bool = False, timeout: int = DEFAULT_BUILD_TIMEOUT) -> Callable[[F], F]:
    """Run a method before the first container starts on a node. Deprecated.

    Use ``Image.run_function``, or a ``modal.Volume`` for large files.

    Args:
        args: none; there to notice forgotten parentheses.
        force: run it again for every deployment.
        timeout: seconds it may take.

    Raises:
        InvalidError: on something else than a method without parameters.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     download = build()(lambda self: print("once per node"))
    """
    _no_positional("build", args)
    warn_deprecated(
        "@modal.build is deprecated: use Image.run_function, or a modal.Volume for files such as weights"
    )
    if not isinstance(force, bool):
        raise InvalidError(f"force is {force!r}; give True or False")
    _whole("timeout", timeout, 1)
    return _decorator("build", BUILD, {"build_force": force, "build_timeout": timeout})


def batched(*args: Any, max_batch_size: int, wait_ms: int) -> Callable[[Any], Any]:
    """Let a function take many inputs at a time: lists of arguments in, a list of results out.

    Args:
        args: none; there to notice forgotten parentheses.
        max_batch_size: the most inputs of one batch, from 1 to 1000.
        wait_ms: milliseconds that a batch waits, from its first input on, to fill up; at most 600,000.

    Raises:
        InvalidError: for a generator function, one with default arguments, or values out of range.

    Example:
        >>> @batched(max_batch_size=4, wait_ms=100)
        ... def double(xs: list[int]) -> list[int]:
        ...     return [x * 2 for x in xs]
    """
    _no_positional("batched", args)
    _whole("max_batch_size", max_batch_size, 1, MAX_BATCH_SIZE)
    _whole("wait_ms", wait_ms, 0, MAX_BATCH_WAIT_MS)
    changes = {"batch_max_size": max_batch_size, "batch_wait_ms": wait_ms}
    return _decorator("batched", None, changes)


def concurrent(*args: Any, max_inputs: int, target_inputs: int | None = None) -> Callable[[F], F]:
    """Let one container run several inputs at a time: async functions on one loop, others in threads.

    Args:
        args: none; there to notice forgotten parentheses.
        max_inputs: the most inputs of a container at a time.
        target_inputs: how many the autoscaler aims at; beyond, a burst is taken up to ``max_inputs``.

    Raises:
        InvalidError: when ``target_inputs`` is above ``max_inputs``, or on a Function.

    Example:
        >>> @concurrent(max_inputs=100, target_inputs=80)
        ... async def fetch(url: str) -> int:
        ...     return len(url)
    """
    _no_positional("concurrent", args)
    check_concurrency(max_inputs, target_inputs)
    return _decorator("concurrent", None, {"max_inputs": max_inputs, "target_inputs": target_inputs})


def check_concurrency(max_inputs: Any, target_inputs: Any) -> None:
    """Check the numbers of ``concurrent`` and ``with_concurrency``. Raises InvalidError."""
    _whole("max_inputs", max_inputs, 1)
    if target_inputs is not None:
        _whole("target_inputs", target_inputs, 1)
        if target_inputs > max_inputs:
            raise InvalidError(
                f"target_inputs ({target_inputs}) cannot be higher than max_inputs ({max_inputs})"
            )


def check_batching(max_batch_size: Any, wait_ms: Any) -> None:
    """Check the numbers of ``batched`` and ``with_batching``. Raises InvalidError."""
    _whole("max_batch_size", max_batch_size, 1, MAX_BATCH_SIZE)
    _whole("wait_ms", wait_ms, 0, MAX_BATCH_WAIT_MS)


def check_batched_function(raw_f: Any, name: str, *, is_method: bool) -> None:
    """Check that a function can take batches. Raises InvalidError."""
    if inspect.isgeneratorfunction(raw_f) or inspect.isasyncgenfunction(raw_f):
        raise InvalidError(f"{name} is a generator function, and cannot be batched; return a list")
    parameters = list(inspect.signature(raw_f).parameters.values())[1 if is_method else 0 :]
    for parameter in parameters:
        if parameter.default is not inspect.Parameter.empty:
            raise InvalidError(
                f"{name} is batched and cannot have default arguments; leave out that of {parameter.name!r}"
            )


def _decorator(word: str, role: str | None, changes: dict[str, Any]) -> Callable[[Any], Any]:
    def decorate(target: Any) -> PartialFunction:
        old = _checked(word, role, target)
        roles = old.roles | {role} if role else old.roles
        if WEB in roles and (role or "batch_max_size" in changes):
            raise InvalidError(
                f"@modal.{word} and a web decorator cannot be combined on {old.name}; make it two"
            )
        combined = sorted(roles)
        if METHOD in roles and len(roles) > 1:
            other = next(x for x in combined if x != METHOD)
            raise InvalidError(f"@modal.method and @modal.{other} cannot be combined on {old.name}")
        if {ENTER, SNAP} <= roles:
            raise InvalidError(f"{old.name} is decorated twice with @modal.enter; keep one")
        if roles & {ENTER, SNAP, EXIT, BUILD}:
            settings = replace(old.settings, **changes)
            if settings.batch_max_size or settings.max_inputs:
                raise InvalidError(
                    f"{old.name} is a hook of its class's life, and cannot be batched or concurrent"
                )
            _check_hook(word, old.raw_f, EXIT in roles)
        if "batch_max_size" in changes:
            if old.settings.batch_max_size:
                raise InvalidError(f"{old.name} is decorated twice with @modal.batched; keep one")
            check_batched_function(old.raw_f, old.name, is_method=_takes_self(old.raw_f))
        if "max_inputs" in changes and old.settings.max_inputs:
            raise InvalidError(f"{old.name} is decorated twice with @modal.concurrent; keep one")
        return PartialFunction(old.raw_f, roles, replace(old.settings, **changes))

    return decorate


def _checked(word: str, role: str | None, target: Any) -> PartialFunction:
    if isinstance(target, PartialFunction):
        if inspect.isclass(target.raw_f) and role:
            raise InvalidError(f"@modal.{word}() decorates a method, not the class {target.name}")
        return target
    kind = type(target).__name__
    if kind in ("Function", "Cls"):
        over = "@app.function()" if kind == "Function" else "@app.cls()"
        raise InvalidError(f"@modal.{word}() must stand below {over}, directly over what it decorates")
    if inspect.isclass(target):
        if word == "concurrent":
            return PartialFunction(target)
        raise InvalidError(f"@modal.{word}() decorates functions, not the class {target.__name__}")
    if isinstance(target, (staticmethod, classmethod)):
        raise InvalidError(f"@modal.{word}() cannot decorate a static or class method; give it self")
    if not callable(target):
        raise InvalidError(f"@modal.{word}() got {target!r}; it decorates functions")
    return PartialFunction(target)


def _takes_self(raw_f: Any) -> bool:
    # A function in a class body is known by where it stands; one of a function's body is no method.
    before = getattr(raw_f, "__qualname__", "").rpartition(".")[0]
    return bool(before) and not before.endswith("<locals>")


def _check_hook(word: str, raw_f: Any, is_exit: bool) -> None:
    name = getattr(raw_f, "__name__", repr(raw_f))
    if inspect.isgeneratorfunction(raw_f) or inspect.isasyncgenfunction(raw_f):
        raise InvalidError(f"{name} is a generator function, and @modal.{word} hooks cannot be")
    count = positional_count(raw_f)
    if count == 1 or (is_exit and count == 4):
        return
    raise InvalidError(f"{name} is a @modal.{word} hook and takes no arguments besides self")


def positional_count(raw_f: Any) -> int:
    """Return how many arguments a function must be given."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters: Iterable[inspect.Parameter] = inspect.signature(raw_f).parameters.values()
    needed = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds]
    return len(needed)


def _no_positional(word: str, args: tuple[Any, ...]) -> None:
    if not args:
        return
    if callable(args[0]):
        raise InvalidError(f"Did you forget parentheses? Suggestion: `@modal.{word}()`.")
    raise InvalidError(f"@modal.{word} takes its parameters by name, as in `@modal.{word}(name=value)`")


def _whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
        bounds = f"from {least} to {most}" if most else f"of at least {least}"
        raise InvalidError(f"{name} is {value!r}; give a whole number {bounds}")
