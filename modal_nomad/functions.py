"""Functions: the units that run remotely."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from . import _output, exception
from ._autoscaling import Autoscaled, FunctionAutoscalerSettings, FunctionStats
from ._bridge import blocking, blocking_function, blocking_gen, io
from ._execution_context import is_local
from ._invocation import call_remote, encode_input, spawn_call
from ._map_methods import MapMethods
from ._older_names import Called, Resolvable
from ._options import name_of
from ._publishing import is_published_with
from ._returned_exceptions import UserCodeException
from ._web_urls import WebUrls
from ._with_options import WithOptions
from .function_call import FunctionCall, gather

if TYPE_CHECKING:
    from typing import ParamSpec

    from typing_extensions import TypeVar as TypeVarWithDefault

    from ._function_info import FunctionInfo
    from ._options import FunctionOptions
    from .app import App
    from .client import Client
    from .wire.spec import FunctionSpec, WebSpec

    P = ParamSpec("P")
    R = TypeVar("R")
    # What the function itself returns, and .local() with it: of an async one, a coroutine.
    O = TypeVarWithDefault("O", default=R)  # noqa: E741
else:
    # Generic parameters of Python 3.9, which containers may run, are plain type variables.
    P = TypeVar("P")
    R = TypeVar("R")
    O = TypeVar("O")  # noqa: E741

OWN_APP = ""
"""Where a Function is looked for that pickled code of its own App refers to."""

__all__ = [
    "Function",
    "FunctionAutoscalerSettings",
    "FunctionCall",
    "FunctionStats",
    "UserCodeException",
    "gather",
]


class Function(MapMethods[R], Autoscaled, WithOptions, Resolvable, Called, WebUrls, Generic[P, R, O]):
    """A function that runs in containers; ``@app.function()`` and ``Function.from_name`` make them.

    Example:
        >>> with app.run():
        ...     square.remote(3), square.local(4), list(square.map(range(4)))
        (9, 16, [0, 1, 4, 9])
    """

    if not TYPE_CHECKING:

        def __class_getitem__(cls, parameters):
            # As type checkers take it: the third parameter may be left out, on any Python.
            return GenericAlias(cls, parameters)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise exception.InvalidError(
            "Function has no constructor; decorate with @app.function() or use Function.from_name()"
        )

    _app: App | None
    _raw_f: Callable[..., Any] | None
    _info: FunctionInfo | None
    _options: FunctionOptions | None
    _function_id: str | None
    _client: Client | None
    _where: tuple[str, str, str | None] | None
    _remote_generator: bool
    # Which method of a class its calls name; empty for a plain function.
    _method: str
    __wrapped__: Callable[..., Any]
    # What the server said of it, by its id.
    _remote_spec: tuple[str, FunctionSpec] | None

    @classmethod
    def _new(cls) -> Function[Any, Any]:
        function = object.__new__(cls)
        function._app = function._raw_f = function._info = function._options = None
        function._function_id = function._client = function._where = None
        function._remote_generator = False
        function._method = ""
        function._remote_spec = None
        return cast("Function[Any, Any]", function)

    @classmethod
    def _local(
        cls, app: App, raw_f: Callable[..., Any], options: FunctionOptions, info: FunctionInfo
    ) -> Function[Any, Any]:
        function = cls._new()
        function._app, function._raw_f, function._options, function._info = app, raw_f, options, info
        # What tools look at (help(), doctest, CLI flags) is the user's own function's.
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            with contextlib.suppress(AttributeError, TypeError):
                setattr(function, name, getattr(raw_f, name))
        # And so is what ``inspect.signature`` says.
        function.__wrapped__ = raw_f
        return function

    def __repr__(self) -> str:
        name = self._info.name if self._info else (self._where or ("?", "?"))[1]
        return f"Function({name!r}, {self._function_id or 'not hydrated'})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise exception.InvalidError(
            f"{self!r} is not called directly: use .remote(...) to run it in a container or .local(...) here"
        )

    def __reduce__(self) -> Any:
        if is_published_with(self):
            # A class is found again by its name alone; a function can be called there with .local(), too.
            raw_f = None if isinstance(self._raw_f, type) else self._raw_f
            return _of_own_app, (self.tag, self.is_generator), raw_f
        if self._function_id is None:
            if self._where is not None:
                return _named, self._where
            raise exception.InvalidError(
                f"{self!r} cannot be passed on before it is hydrated: pass it within `with app.run():`"
            )
        return _by_id, (self._function_id, self.is_generator)

    def __setstate__(self, raw_f: Callable[..., Any]) -> None:
        self._raw_f = raw_f

    # --- identity ---------------------------------------------------------------------------------

    @property
    def object_id(self) -> str:
        """The id ``fu-…``. Raises ExecutionError before the Function is hydrated."""
        if self._function_id is None:
            raise exception.ExecutionError(f"{self!r} has no id before it is hydrated")
        return self._function_id

    @property
    def is_hydrated(self) -> bool:
        """Whether the Function knows its id on the server."""
        return self._function_id is not None

    @property
    def app(self) -> App:
        """The App that defines it. Raises ExecutionError for a looked-up Function."""
        if self._app is None:
            raise exception.ExecutionError(f"{self!r} was looked up by name and has no App object here")
        return self._app

    @property
    def info(self) -> FunctionInfo:
        """Where it stands. Raises ExecutionError for a looked-up Function."""
        if self._info is None:
            raise exception.ExecutionError(f"{self!r} was looked up by name: its source is not known here")
        return self._info

    @property
    def tag(self) -> str:
        """Its name in the App."""
        return self._info.name if self._info else (self._where or ("", ""))[1]

    @property
    def is_generator(self) -> bool:
        """Whether it yields."""
        return self._info.is_generator if self._info else self._remote_generator

    def get_raw_f(self) -> Callable[P, O]:
        """Return the user's own function.

        Example:
            >>> square.get_raw_f()(3)
            9
        """
        return cast("Callable[P, O]", self.info.raw_f)

    @staticmethod
    def from_name(
        app_name: str,
        name: str | None = None,
        namespace: Any = None,
        environment_name: str | None = None,
        client: Client | None = None,
        *,
        tag: str | None = None,
    ) -> Function[..., Any]:
        """Refer to a Function of a deployed App; nothing is asked of the server until it is used.

        Args:
            app_name: the App's name.
            name: the Function's name in it.
            namespace: ignored; older code passes it.
            environment_name: the environment, or the configured one.
            client: the connection, or the configured one.
            tag: deprecated: use ``name``.

        Example:
            >>> _ = app.deploy(name="squares")
            >>> Function.from_name("squares", "square").remote(3)
            9
        """
        name = name_of("Function.from_name", "Function", name, tag)
        return _named(app_name, name, environment_name, client)

    @staticmethod
    @blocking_function
    async def lookup(
        app_name: str,
        name: str | None = None,
        namespace: Any = None,
        client: Client | None = None,
        environment_name: str | None = None,
        *,
        tag: str | None = None,
    ) -> Function[..., Any]:
        """Deprecated form of ``from_name(...).hydrate()``."""
        from ._options import warn_deprecated

        warn_deprecated(
            "Function.lookup is deprecated: use Function.from_name, and .hydrate() to check at once"
        )
        name = name_of("Function.lookup", "Function", name, tag)
        function = _named(app_name, name, environment_name, client)
        await function.hydrate.aio()
        return function

    @blocking
    async def hydrate(self, client: Client | None = None) -> Function[P, R, O]:
        """Find the Function on the server now and return it.

        Raises:
            NotFoundError: naming the Function, the App and the environment.

        Example:
            >>> Function.from_name("no-such-app", "square").hydrate()
            Traceback (most recent call last):
            ...
            modal_nomad.exception.NotFoundError: ...
        """
        if client is not None:
            self._client = client
        await self._target()
        return self

    def _hydrate(self, function_id: str, client: Client) -> None:
        self._function_id, self._client = function_id, client

    def _unhydrate(self) -> None:
        self._function_id = self._client = None

    async def _target(self) -> tuple[Client, str]:
        if self._function_id is None:
            await self._resolve()
        client = self._client
        if client is None or client.is_closed():
            from .client import Client

            client = self._client = await Client.from_env.aio()
        return client, self.object_id

    async def _resolve(self) -> None:
        from .client import Client

        if self._where is not None:
            app, name, environment = self._where
        elif not is_local():
            app, name, environment = OWN_APP, self.tag, None
        else:
            raise exception.ExecutionError(
                f"{self!r} is not hydrated: call it within `with app.run():`, or deploy the App and use "
                "Function.from_name"
            )
        if app == OWN_APP and not is_local():
            # Inside a container a Function of the same App is found through the App that runs it.
            import os

            app = os.environ.get("MODAL_APP_ID", "")
        client = self._client or await Client.from_env.aio()
        if environment is None:
            from .config import config

            environment = config.get("environment")
        found = await io(
            client._request("function.lookup", {"app": app, "name": name, "environment": environment})
        )
        self._client, self._function_id = client, found["function_id"]
        self._remote_generator = found["is_generator"]
        from .wire.spec import FunctionSpec

        self._remote_spec = (found["function_id"], FunctionSpec.from_dict(found["spec"]))

    def _home(self) -> str:
        """The module that a container of this Function has loaded, where that is known here."""
        return self._info.module if self._info is not None else ""

    def _web(self) -> WebSpec | None:
        if self._options is not None:
            return self._options.web
        return self._remote_spec[1].web if self._remote_spec is not None else None

    # --- calls ------------------------------------------------------------------------------------

    def _check_plain(self, verb: str) -> None:
        self._check_not_web(verb)
        if self.is_generator:
            raise exception.InvalidError(
                f"A generator function cannot be called with `.{verb}(...)`: {self!r}; use .remote_gen(...)"
            )

    def _check_generator(self, verb: str) -> None:
        self._check_not_web(verb)
        looked_up = self._info is None and self._function_id is None
        if not self.is_generator and not looked_up:
            raise exception.InvalidError(
                f"A non-generator function cannot be called with `.{verb}(...)`: {self!r}; use .remote(...)"
            )

    async def _plain_target(self, verb: str) -> tuple[Client, str]:
        self._check_plain(verb)
        target = await self._target()
        if self._info is None:
            # A looked-up Function says what it is only now.
            self._check_plain(verb)
        return target

    @blocking
    async def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in a container and return its result.

        Raises:
            BaseException: what the function raised, as itself, with its remote traceback.
            FunctionTimeoutError: it ran longer than its timeout.
            RemoteError: its container was lost too often, or the input was cancelled.

        Example:
            >>> with app.run():
            ...     square.remote(3)
            9
        """
        client, function_id = await self._plain_target("remote")
        home, method = self._home(), self._method
        progress = None
        if _output.current() is not None:
            progress = _output.begin(self.tag, 1, one=True)
        try:
            result: R = await call_remote(client, function_id, args, kwargs, home, method)
            return result
        finally:
            if progress is not None:
                progress.end()

    @blocking_gen
    async def remote_gen(self, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Run a generator function in a container and yield what it yields, while it runs.

        It is never further ahead of its reader than 1,024 items or 4 MiB. Left early, it is closed
        in its container as well, as a local generator is.

        Raises:
            BaseException: what the function raised, after all that it yielded before.
            InvalidError: the function does not yield.

        Example:
            >>> @app.function()
            ... def count(upto: int):
            ...     yield from range(upto)
            >>> with app.run():
            ...     list(count.remote_gen(3))
            [0, 1, 2]
        """
        from ._generators import stream_remote

        self._check_generator("remote_gen")
        client, function_id = await self._target()
        self._check_generator("remote_gen")
        body = stream_remote(client, function_id, args, kwargs, self._home(), self._method)
        try:
            async for item in body:
                yield item
        finally:
            await body.aclose()  # type: ignore[attr-defined]

    def local(self, *args: P.args, **kwargs: P.kwargs) -> O:
        """Run the function here, in this process.

        Example:
            >>> square.local(3)
            9
        """
        raw_f = self._raw_f if self._info is None else self._info.raw_f
        if raw_f is None:
            raise exception.ExecutionError(
                f"{self!r} was looked up by name: its code is not here, use .remote(...)"
            )
        return cast(O, raw_f(*args, **kwargs))

    @blocking
    async def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> FunctionCall[R]:
        """Start the function and return at once, with a handle on the call.

        The input is on the dispatcher's disk when this returns: it will run, whatever is killed. What a
        generator yields is had by ``FunctionCall.get_gen``.

        Example:
            >>> with app.run():
            ...     call = square.spawn(3)
            ...     call.get(timeout=60)
            9
        """
        self._check_not_web("spawn")
        client, function_id = await self._target()
        self._check_not_web("spawn")
        if self.is_generator:
            from ._options import warn_deprecated

            warn_deprecated("`.spawn()` of a generator function is deprecated: use .remote_gen()")
        payload, flags = await encode_input(client, args, dict(kwargs), self._home())
        call_id = await spawn_call(client, function_id, [(0, payload, flags)], self._method)
        return FunctionCall._new(call_id, client, is_generator=self.is_generator)

    # --- other options ----------------------------------------------------------------------------

    def _variant(self, overrides: Mapping[str, Any]) -> Function[P, R, O]:
        from ._variants import VariantFunction

        return VariantFunction._of(self, overrides=overrides)

    def _check_batching(self) -> None:
        from ._partial_function import check_batched_function

        if self._info is not None:
            check_batched_function(self._info.raw_f, self._info.name, is_method=False)


def _named(
    app_name: str, name: str, environment_name: str | None = None, client: Client | None = None
) -> Function[Any, Any]:
    function = Function._new()
    function._where = (app_name, name, environment_name)
    function._client = client
    return function


def _of_own_app(name: str, is_generator: bool) -> Function[Any, Any]:
    function = _named(OWN_APP, name)
    function._remote_generator = is_generator
    return function


def _by_id(function_id: str, is_generator: bool) -> Function[Any, Any]:
    function = Function._new()
    function._function_id = function_id
    function._remote_generator = is_generator
    return function
