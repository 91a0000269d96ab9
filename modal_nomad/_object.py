"""Instances of classes: their methods as Functions, and a local instance for all else."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import exception
from ._bridge import blocking
from ._class_info import method_spec
from ._partial_function import ENTER, SNAP
from .functions import Function

if TYPE_CHECKING:
    from ._autoscaling import FunctionAutoscalerSettings
    from ._partial_function import PartialFunction
    from .client import Client
    from .cls import Cls
    from .wire.spec import WebSpec


class Obj:
    """An instance of a class in an App. Its methods are Functions; other attributes are the local instance's.

    ``Cls.__call__`` makes it. The user's own ``__init__`` runs when an attribute is first asked for, and
    the ``@modal.enter`` hooks at the first ``.local()`` call.
    """

    _cls: Cls
    _args: tuple[Any, ...]
    _kwargs: Mapping[str, Any]
    _service: Function[Any, Any]
    _methods: dict[str, MethodFunction]
    _user: Any
    _entered: bool
    _lock: Any

    @classmethod
    def _new(cls, of: Cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Obj:
        made = object.__new__(cls)
        values: dict[str, Any] = {
            "_cls": of,
            "_args": args,
            "_kwargs": dict(kwargs),
            "_service": of._instance_service(args, kwargs),
            "_methods": {},
            "_user": None,
            "_entered": False,
            "_lock": threading.RLock(),
        }
        made.__dict__.update(values)
        return made

    def __init__(self) -> None:
        raise exception.InvalidError("an instance is made by calling its class")

    def __repr__(self) -> str:
        given = [repr(x) for x in self._args] + [f"{k}={v!r}" for k, v in self._kwargs.items()]
        return f"{self._cls._name}({', '.join(given)})"

    def __reduce__(self) -> Any:
        return _object_of, (self._cls, self._args, dict(self._kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        info = self._cls._info
        if info is None:
            return self._remote_attribute(name)
        if name in info.methods:
            return self._method(name)
        return getattr(self._local(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._cls._info is None:
            raise exception.NotFoundError(
                f"{self!r} was looked up by name: its attributes can't be accessed here"
            )
        setattr(self._local(), name, value)

    # --- the same for every instance of these parameters --------------------------------------------

    @blocking
    async def update_autoscaler(
        self,
        *,
        min_containers: int | None = None,
        max_containers: int | None = None,
        scaledown_window: float | None = None,
        buffer_containers: int | None = None,
    ) -> FunctionAutoscalerSettings:
        """Change how many containers the instance's parameters have, until the App's next deployment.

        Args:
            min_containers: containers that are kept warm.
            max_containers: the most there may be.
            scaledown_window: seconds that an idle container lives.
            buffer_containers: idle containers kept beside busy ones.

        Returns:
            All four settings as they are now.

        Raises:
            InvalidError: naming a value that cannot be.
        """
        return await self._service.update_autoscaler.aio(
            min_containers=min_containers,
            max_containers=max_containers,
            scaledown_window=scaledown_window,
            buffer_containers=buffer_containers,
        )

    @blocking
    async def keep_warm(self, warm_pool_size: int) -> None:
        """Deprecated form of ``update_autoscaler(min_containers=warm_pool_size)``."""
        from ._options import warn_deprecated

        warn_deprecated("'keep_warm(n)' is now called 'update_autoscaler(min_containers=n)'")
        await self._service.update_autoscaler.aio(min_containers=warm_pool_size)

    # --- below: for methods, and for containers -----------------------------------------------------

    def _method(self, name: str) -> MethodFunction:
        found = self._methods.get(name)
        if found is None:
            found = self._methods.setdefault(name, MethodFunction._of(self, name))
        return found

    def _remote_attribute(self, name: str) -> Any:
        known = self._cls._service._remote_spec
        if known is not None and name not in known[1].methods:
            raise no_method(self._cls._name, name, known[1].methods)
        return self._method(name)

    def _local(self) -> Any:
        """Return the instance of the user's class in this process, constructed when first asked for."""
        with self._lock:
            if self._user is None:
                info = self._cls._info
                if info is None:
                    self._cls._user_cls()
                assert info is not None
                # Two steps, so that a failing __init__ is tried again rather than half done.
                self.__dict__["_user"] = info.instance(self._args, self._kwargs, self)
            return self._user

    def _adopt(self, user: Any) -> None:
        """Take an instance that a container made and entered."""
        self.__dict__.update(_user=user, _entered=True)

    def _pending_hooks(self) -> list[Callable[[], Any]]:
        """Return the enter hooks that have not run yet, once."""
        with self._lock:
            if self._entered:
                return []
            user = self._local()
            self.__dict__["_entered"] = True
            info = self._cls._info
            assert info is not None
            hooks = (*info.hooks[SNAP], *info.hooks[ENTER])
            return [hook.raw_f.__get__(user) for hook in hooks]

    def _call_local(self, partial: PartialFunction, args: Any, kwargs: Any) -> Any:
        hooks = self._pending_hooks()
        call = partial.raw_f.__get__(self._local())
        if not any(inspect.iscoroutinefunction(hook) for hook in hooks):
            for hook in hooks:
                hook()
            return call(*args, **kwargs)
        inner = inspect.unwrap(partial.raw_f)
        if inspect.iscoroutinefunction(inner):
            return _after(hooks, call, args, kwargs)
        if inspect.isasyncgenfunction(inner):
            return _items_after(hooks, call, args, kwargs)
        _run_apart(_run_hooks(hooks))
        return call(*args, **kwargs)


class MethodFunction(Function[Any, Any]):
    """A method of an instance, as a Function."""

    _obj: Obj
    _partial: PartialFunction | None

    @classmethod
    def _of(cls, obj: Obj, name: str) -> MethodFunction:
        made: Any = cls._new()
        info = obj._cls._info
        partial = info.methods[name] if info is not None else None
        made._obj, made._method, made._partial = obj, name, partial
        made._app = obj._service._app
        if partial is not None:
            made._remote_generator = method_spec(partial).is_generator
            for key in ("__module__", "__name__", "__qualname__", "__doc__"):
                setattr(made, key, getattr(partial, key, None))
        method: MethodFunction = made
        return method

    def __repr__(self) -> str:
        return f"Function({self.tag!r}, {self._obj._service._function_id or 'not hydrated'})"

    def __reduce__(self) -> Any:
        return _method_of, (self._obj, self._method)

    @property
    def tag(self) -> str:
        return f"{self._obj._cls._name}.{self._method}"

    @property
    def object_id(self) -> str:
        return self._obj._service.object_id

    @property
    def is_hydrated(self) -> bool:
        return self._obj._service.is_hydrated

    def get_raw_f(self) -> Any:
        if self._partial is None:
            raise exception.ExecutionError(f"{self!r} was looked up by name: its source is not known here")
        return self._partial.raw_f

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method here, on the local instance, whose enter hooks run before its first call."""
        if self._partial is None:
            raise exception.ExecutionError(
                f"{self!r} was looked up by name: its code is not here, use .remote(...)"
            )
        return self._obj._call_local(self._partial, args, kwargs)

    async def _target(self) -> tuple[Client, str]:
        if self._partial is None:
            spec = await self._obj._cls._spec()
            if self._method not in spec.methods:
                raise no_method(self._obj._cls._name, self._method, spec.methods)
            self._remote_generator = spec.methods[self._method].is_generator
        return await self._obj._service._target()

    def _home(self) -> str:
        return self._obj._service._home()

    def _web(self) -> WebSpec | None:
        if self._partial is not None:
            partial: PartialFunction = self._partial
            return partial.settings.web
        known = self._obj._cls._service._remote_spec
        if known is None or self._method not in known[1].methods:
            return None
        return known[1].methods[self._method].web

    def _check_generator(self, verb: str) -> None:
        self._check_not_web(verb)
        if self._partial is not None and not self.is_generator:
            raise exception.InvalidError(
                f"A non-generator function cannot be called with `.{verb}(...)`: {self!r}; use .remote(...)"
            )

    def _variant(self, overrides: Mapping[str, Any]) -> Any:
        name = self._obj._cls._name
        raise exception.InvalidError(
            f"{self.tag} has the options of its class: say {name}.with_options(...)(...).{self._method}"
        )

    def _of_class(self, verb: str) -> exception.InvalidError:
        name = self._obj._cls._name
        return exception.InvalidError(
            f"{self.tag} shares its containers with the other methods of {name}: say {name}(...).{verb}"
        )

    @blocking
    async def update_autoscaler(self, /, **settings: Any) -> Any:
        """Not for one method: containers belong to the instance. Raises InvalidError."""
        raise self._of_class("update_autoscaler(...)")

    @blocking
    async def keep_warm(self, warm_pool_size: int) -> None:
        """Not for one method: containers belong to the instance. Raises InvalidError."""
        raise self._of_class("keep_warm(...)")


def no_method(class_name: str, name: str, methods: Mapping[str, Any]) -> exception.NotFoundError:
    """Return the error for a name that a looked-up class does not have as a method."""
    return exception.NotFoundError(
        f"class {class_name} has no method {name!r} (its methods are {', '.join(methods) or 'none'}); "
        "other attributes can't be accessed for remote classes"
    )


async def _run_hooks(hooks: list[Callable[[], Any]]) -> None:
    for hook in hooks:
        result = hook()
        if inspect.isawaitable(result):
            await result


async def _after(hooks: list[Callable[[], Any]], call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    await _run_hooks(hooks)
    return await call(*args, **kwargs)


async def _items_after(
    hooks: list[Callable[[], Any]], call: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    await _run_hooks(hooks)
    async for item in call(*args, **kwargs):
        yield item


def _run_apart(coroutine: Any) -> None:
    """Run a coroutine to its end for a caller that is not async, though its thread may run a loop."""
    failure: list[BaseException] = []

    def run() -> None:
        import asyncio

        try:
            asyncio.run(coroutine)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="modal-nomad-hooks")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _object_of(of: Cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Obj:
    return of(*args, **kwargs)


def _method_of(obj: Obj, name: str) -> MethodFunction:
    return obj._method(name)
