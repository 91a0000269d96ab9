"""Classes: state that a container keeps between inputs, set up and taken down by lifecycle hooks."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _parameters, exception
from ._bridge import blocking, blocking_function
from ._class_info import ClassInfo, class_info, pack_arguments
from ._object import Obj
from ._older_names import Resolvable
from ._options import name_of
from ._variants import VariantFunction, described
from ._with_options import WithOptions
from .functions import Function, _by_id, _named

if TYPE_CHECKING:
    from ._function_info import FunctionInfo
    from ._options import FunctionOptions
    from .app import App
    from .client import Client
    from .wire.spec import FunctionSpec

SERVICE_SUFFIX = ".*"
"""A class is one Function on the server, named ``Class.*``."""


class Cls(WithOptions, Resolvable):
    """A class whose methods run in containers; ``@app.cls()`` and ``Cls.from_name`` make them.

    Calling it makes an instance, and asks nothing of the server.

    Example:
        >>> Model = Cls.from_name("my-app", "Model")
        >>> Model
        Cls('Model', not hydrated)
    """

    _service: Function[Any, Any]
    _name: str
    _info: ClassInfo | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise exception.InvalidError(
            "Cls has no constructor; decorate a class with @app.cls() or use Cls.from_name()"
        )

    @classmethod
    def _new(cls, service: Function[Any, Any], name: str, info: ClassInfo | None = None) -> Cls:
        made = object.__new__(cls)
        made._service, made._name, made._info = service, name, info
        if info is not None:
            for key in ("__module__", "__name__", "__qualname__", "__doc__"):
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(made, key, getattr(info.user_cls, key))
        return made

    @classmethod
    def _local(cls, app: App, info: ClassInfo, options: FunctionOptions, place: FunctionInfo) -> Cls:
        return cls._new(Function._local(app, info.user_cls, options, place), info.user_cls.__name__, info)

    def __repr__(self) -> str:
        return f"Cls({self._name!r}, {self.object_id if self.is_hydrated else 'not hydrated'})"

    def __call__(self, *args: Any, **kwargs: Any) -> Obj:
        """Make an instance; its own ``__init__`` and its hooks run in the container, or with ``.local()``.

        Raises:
            TypeError: a parameter that the class does not have, or of another type.
            InvalidError: ``modal.parameter()`` values given by position.
        """
        info = self._info
        if info is not None:
            check_arguments(self._name, info.own_init, info.parameters, args, kwargs)
        return Obj._new(self, args, kwargs)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        # What lets another class be derived from one that is decorated.
        return (self._user_cls(),)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        info = self.__dict__.get("_info")
        if info is None:
            raise AttributeError(
                f"{self!r} has no attribute {name!r} here. Did you forget to instantiate the class first?"
            )
        if name in info.methods:
            if info.needs_parameters:
                raise AttributeError(
                    f"{self._name}.{name} needs an instance. Did you forget to instantiate the class first? "
                    f"Say {self._name}(...).{name}"
                )
            from ._options import warn_deprecated

            warn_deprecated(f"{self._name}.{name} of the class is deprecated: say {self._name}().{name}")
            return getattr(self(), name)
        return getattr(info.user_cls, name)

    def __reduce__(self) -> Any:
        return _cls_of, (self._service, self._name)

    # --- identity ---------------------------------------------------------------------------------

    @staticmethod
    def from_name(
        app_name: str,
        name: str | None = None,
        namespace: Any = None,
        environment_name: str | None = None,
        workspace: Any = None,
        client: Client | None = None,
        *,
        tag: str | None = None,
    ) -> Cls:
        """Refer to a class of a deployed App; nothing is asked of the server until it is used.

        Args:
            app_name: the App's name.
            name: the class's name in it.
            namespace: ignored; older code passes it.
            environment_name: the environment, or the configured one.
            workspace: ignored; older code passes it.
            client: the connection, or the configured one.
            tag: deprecated: use ``name``.

        Example:
            >>> Model = Cls.from_name("my-app", "Model")
            >>> Model(size=3).predict.remote(1)  # doctest: +SKIP
        """
        name = name_of("Cls.from_name", "class", name, tag)
        service = _named(app_name, name + SERVICE_SUFFIX, environment_name, client)
        return Cls._new(service, name)

    @staticmethod
    @blocking_function
    async def lookup(
        app_name: str,
        name: str | None = None,
        namespace: Any = None,
        client: Client | None = None,
        environment_name: str | None = None,
        workspace: Any = None,
        *,
        tag: str | None = None,
    ) -> Cls:
        """Deprecated form of ``from_name(...).hydrate()``.

        Example:
            >>> Cls.lookup("my-app", "Model")  # doctest: +SKIP
        """
        from ._options import warn_deprecated

        warn_deprecated("Cls.lookup is deprecated: use Cls.from_name, and .hydrate() to check at once")
        name = name_of("Cls.lookup", "class", name, tag)
        found = Cls.from_name(app_name, name, environment_name=environment_name, client=client)
        await found.hydrate.aio()
        return found

    @blocking
    async def hydrate(self, client: Client | None = None) -> Cls:
        """Find the class on the server now and return it.

        Raises:
            NotFoundError: naming the class, the App and the environment.

        Example:
            >>> Cls.from_name("no-such-app", "Model").hydrate()
            Traceback (most recent call last):
            ...
            modal_nomad.exception.NotFoundError: ...
        """
        if client is not None:
            self._service._client = client
        await self._spec()
        return self

    @property
    def object_id(self) -> str:
        """The id ``cs-…``. Raises ExecutionError before the class is hydrated."""
        # A class is one Function on the server: its id is that one's, under the prefix of classes.
        return "cs-" + self._service.object_id.partition("-")[2]

    @property
    def is_hydrated(self) -> bool:
        """Whether the class knows its id on the server."""
        return self._service.is_hydrated

    # --- for instances and the other modules of this package ----------------------------------------

    def _variant(self, overrides: Mapping[str, Any]) -> Cls:
        return Cls._new(VariantFunction._of(self._service, overrides=overrides), self._name, self._info)

    def _check_batching(self) -> None:
        from ._partial_function import check_batched_function

        if self._info is None:
            return
        for name, partial in self._info.methods.items():
            check_batched_function(partial.raw_f, f"{self._name}.{name}", is_method=True)
        if len(self._info.methods) != 1:
            raise exception.InvalidError(
                f"{self._name} has {len(self._info.methods)} methods: only a class of one can be batched"
            )

    def _user_cls(self) -> type:
        if self._info is None:
            raise exception.ExecutionError(f"{self!r} was looked up by name: its code is not here")
        return self._info.user_cls

    async def _spec(self) -> FunctionSpec:
        client, function_id = await self._service._target()
        return await described(self._service, client, function_id)

    def _instance_service(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Function[Any, Any]:
        """Return the Function of an instance: that of the class where there are no parameters."""
        info = self._info
        if info is not None and not (args or kwargs or info.needs_parameters):
            return self._service

        async def parameters(client: Client, function_id: str) -> bytes | None:
            known: Any = info
            if known is None:
                known = await described(self._service, client, function_id)
                check_arguments(self._name, known.own_init, known.parameters, args, kwargs)
            if known.own_init:
                return pack_arguments(True, args, kwargs) if args or kwargs else None
            values = _parameters.complete(self._name, known.parameters, kwargs)
            if not known.needs_parameters and values == _parameters.complete(
                self._name, known.parameters, {}
            ):
                return None
            return pack_arguments(False, (), values)

        return VariantFunction._of(self._service, parameters=parameters)


def inside_container(info: ClassInfo, function_id: str) -> Obj:
    """Return the object that stands for the instance of a container, bound to that container's Function."""
    service = _by_id(function_id, False)
    made = Obj._new(Cls._new(service, info.user_cls.__name__, info), (), {})
    object.__setattr__(made, "_service", service)
    return made


def check_arguments(
    name: str, own_init: bool, specs: tuple[Any, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Check constructor arguments as far as the parameters' declaration says.

    Raises:
        InvalidError: values of parameters given by position.
        TypeError: an unknown parameter, or a value of another type.
    """
    if own_init:
        return
    if args:
        names = ", ".join(f"{s.name}=..." for s in specs)
        raise exception.InvalidError(f"{name} takes its parameters by name: {name}({names})")
    _parameters.check_values(name, specs, kwargs)


def class_options(info: ClassInfo, options: FunctionOptions, concurrency: Any) -> FunctionOptions:
    """Add what the decorators inside and below ``@app.cls()`` say to its options.

    Args:
        info: the class.
        options: of ``@app.cls()``.
        concurrency: the settings of ``@modal.concurrent`` on the class, or None.

    Raises:
        InvalidError: they contradict each other.
    """
    import dataclasses

    name = info.user_cls.__name__
    settings = [p.settings for p in info.methods.values()]
    chosen = {(s.max_inputs, s.target_inputs) for s in settings if s.max_inputs}
    if concurrency is not None:
        chosen.add((concurrency.max_inputs, concurrency.target_inputs))
    if len(chosen) > 1:
        raise exception.InvalidError(
            f"the methods of {name} share containers, but differ in @modal.concurrent: put one on the class"
        )
    if settings and options.retries is not None and all(s.web is not None for s in settings):
        raise exception.InvalidError(
            f"the methods of {name} are all served on the web and cannot have retries: leave them out"
        )
    changes: dict[str, Any] = {}
    if chosen:
        changes["max_concurrent_inputs"], changes["target_concurrent_inputs"] = chosen.pop()
    for one in settings:
        if one.batch_max_size:
            changes.update(batch_max_size=one.batch_max_size, batch_wait_ms=one.batch_wait_ms)
        if one.keep_warm:
            changes["min_containers"] = max(options.min_containers, one.keep_warm)
    if info.hooks["enter(snap=True)"] and not options.enable_memory_snapshot:
        raise exception.InvalidError(
            f"{name} has @modal.enter(snap=True) hooks: they need @app.cls(enable_memory_snapshot=True)"
        )
    builds = [p.settings.build_timeout for p in info.hooks["build"]]
    if builds:
        # Build hooks run where the container starts: its start may take as long as they may.
        changes["startup_timeout"] = max(options.startup_timeout or 0.0, float(max(builds)))
    return dataclasses.replace(options, **changes)


def local_class(app: App, target: Any, options: FunctionOptions) -> Cls:
    """Return the ``Cls`` of what ``@app.cls()`` decorates; the App keeps it.

    Raises:
        TypeError: for something else than a class.
        InvalidError: a wrong use of a decorator, or a class that is neither in global scope nor serialized.
    """
    from ._function_info import class_place
    from ._partial_function import PartialFunction

    concurrency = None
    if isinstance(target, PartialFunction) and inspect.isclass(target.raw_f):
        target, concurrency = target.raw_f, target.settings
    if isinstance(target, Cls):
        raise exception.InvalidError(f"{target._name} is decorated twice with @app.cls(); keep one")
    if isinstance(target, type) and any(
        isinstance(base, Cls) for base in vars(target).get("__orig_bases__", ())
    ):
        # Left by deriving from a decorated class; a pickle of this class must not hold that one's App.
        del target.__orig_bases__  # type: ignore[attr-defined]
    info = class_info(target)
    place = class_place(info.user_cls, serialized=options.serialized, suffix=SERVICE_SUFFIX)
    return Cls._local(app, info, class_options(info, options, concurrency), place)


def _cls_of(service: Function[Any, Any], name: str) -> Cls:
    return Cls._new(service, name)


__all__ = ["Cls", "Obj"]
