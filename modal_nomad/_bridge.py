"""Blocking and async faces of one coroutine.

A body is written once, as ``async def``. It runs in the *caller's* thread in both faces, so user code
(iterators, ``__reduce__``, entry points) never runs on the library's loop; the only thing it awaits is
``io(coroutine)``, which runs network I/O on the library's one background loop. The blocking face steps
the body and waits for each such result; the ``.aio`` face awaits it on the caller's own loop.
"""

from __future__ import annotations

import functools
import os
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

if TYPE_CHECKING:
    # Not at run time: a container that calls nobody would pay for asyncio at its start.
    import asyncio
    from concurrent.futures import Future
    from typing import Concatenate, ParamSpec, Protocol

    P = ParamSpec("P")
    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)
    S = TypeVar("S")
    S_contra = TypeVar("S_contra", contravariant=True)

    class Waitable(Protocol[T_co]):
        def done(self) -> bool: ...
        def result(self) -> T_co: ...
        def cancel(self) -> Any: ...

    class _Blocking(Protocol[P, T_co]):
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
        def aio(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]: ...

    class _BlockingGen(Protocol[P, T_co]):
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncOrSyncIterable[T_co]: ...
        def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T_co]: ...

    class _BlockingContext(Protocol[P, T]):
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> DualContext[T]: ...
        def aio(self, *args: P.args, **kwargs: P.kwargs) -> DualContext[T]: ...

    class _Method(Protocol[S_contra, P, T_co]):
        @overload
        def __get__(self, instance: None, owner: Any) -> _Blocking[Concatenate[S_contra, P], T_co]: ...
        @overload
        def __get__(self, instance: S_contra, owner: Any) -> _Blocking[P, T_co]: ...
        def __call__(self, instance: S_contra, *args: P.args, **kwargs: P.kwargs) -> T_co: ...

    class _GenMethod(Protocol[S_contra, P, T_co]):
        @overload
        def __get__(self, instance: None, owner: Any) -> _BlockingGen[Concatenate[S_contra, P], T_co]: ...
        @overload
        def __get__(self, instance: S_contra, owner: Any) -> _BlockingGen[P, T_co]: ...

    class _ContextMethod(Protocol[S_contra, P, T]):
        @overload
        def __get__(self, instance: None, owner: Any) -> _BlockingContext[Concatenate[S_contra, P], T]: ...
        @overload
        def __get__(self, instance: S_contra, owner: Any) -> _BlockingContext[P, T]: ...
else:
    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)


class _Library:
    """The background loop of this process; made on first use, anew after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None and self._pid == os.getpid():
            return self._loop
        import asyncio

        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                loop = asyncio.new_event_loop()
                threading.Thread(target=self._run, args=(loop,), name="modal-nomad-io", daemon=True).start()
                self._loop, self._pid = loop, os.getpid()
            return self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        asyncio.set_event_loop(loop)
        loop.run_forever()


_library = _Library()


def library_loop() -> asyncio.AbstractEventLoop:
    """Return the library's background loop, starting its thread when there is none."""
    return _library.loop()


class io(Generic[T]):
    """Awaitable that runs a coroutine, or waits for a Future of another thread, off the caller's loop.

    Args:
        work: the coroutine, the Future, or what gives one (``future()``) and has its ``done`` and ``result``.
        reader: a connection's ``direct``: a thread that only waits reads the socket by itself.
    """

    __slots__ = ("future", "reader")

    def __init__(self, work: Coroutine[Any, Any, T] | Future[T] | Waitable[Any], reader: Any = None) -> None:
        self.future: Any = work
        self.reader = reader

    def __await__(self) -> Generator[Any, Any, T]:
        if type(self.future) is types.CoroutineType:
            self.future = submit(self.future)
        value: T = yield self
        return value


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the library's loop from any other thread."""
    import asyncio

    loop = _library.loop()
    if threading.current_thread().name == "modal-nomad-io":
        coroutine.close()
        raise RuntimeError("a blocking call was made on modal_nomad's own loop; use the .aio form")
    return asyncio.run_coroutine_threadsafe(coroutine, loop)


def _wait(step: io[Any]) -> Any:
    future = step.future
    try:
        if step.reader is not None:
            step.reader.read_until(future.done)
        return future.result()
    except BaseException:
        # Ctrl-C while waiting: the I/O must not go on behind the user's back.
        if not future.done():
            future.cancel()
        raise


class _Driving(threading.local):
    """Whether this thread is inside a step of a body: a twin awaited there leaves waiting to that driver."""

    active = False


_driving = _Driving()


def _step(advance: Callable[[Any], Any], argument: Any) -> Any:
    outer = _driving.active
    _driving.active = True
    try:
        return advance(argument)
    finally:
        _driving.active = outer


def run_blocking(coroutine: Any) -> Any:
    """Step a body in this thread, waiting for each I/O it asks for."""
    driving, advance = _driving, coroutine.send
    outer = driving.active
    value: Any = None
    try:
        while True:
            driving.active = True
            step = advance(value)
            driving.active = outer
            if type(step) is not io:
                raise RuntimeError("a blocking call cannot await an asyncio object; use the .aio form")
            try:
                value, advance = _wait(step), coroutine.send
            except BaseException as error:
                value, advance = error, coroutine.throw
    except StopIteration as stop:
        return stop.value
    finally:
        driving.active = outer
        # An exception in it would hold this frame, and so the caller's, for as long as it lives.
        value = None


@types.coroutine
def run_async(coroutine: Any) -> Generator[Any, Any, Any]:
    """Step a body on the caller's loop, translating each I/O into an asyncio future of that loop."""
    import asyncio

    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = _step(coroutine.send, value) if error is None else _step(coroutine.throw, error)
        except StopIteration as stop:
            return stop.value
        value = error = None
        try:
            if type(step) is io and not _driving.active:
                if step.reader is not None:
                    step.reader.look_soon()
                made = getattr(step.future, "future", None)
                future: Any = made() if made is not None else step.future
                value = yield from asyncio.wrap_future(future).__await__()
            else:
                value = yield step
        except BaseException as failure:
            error = failure


class _Face:
    """A descriptor with ``__call__`` (blocking) and ``aio``; bound like any function."""

    __slots__ = ("__dict__", "_function")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        functools.update_wrapper(cast(Any, self), function)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        bound = object.__new__(type(self))
        bound._function = types.MethodType(self._function, instance)
        return bound

    def __repr__(self) -> str:
        return f"<{type(self).__name__.strip('_')} {self._function!r}>"


class _BlockingFace(_Face):
    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return run_blocking(self._function(*args, **kwargs))
        except Exception as error:
            _clean(error)
            raise error

    def aio(self, *args: Any, **kwargs: Any) -> Any:
        return _awaitable(self._function(*args, **kwargs))


async def _awaitable(coroutine: Any) -> Any:
    try:
        return await run_async(coroutine)
    except Exception as error:
        _clean(error)
        raise error


def _clean(error: Exception) -> None:
    from ._clean_tracebacks import cut_own_frames

    cut_own_frames(error)


class AsyncOrSyncIterable(Generic[T_co]):
    """What an iterating method gives: an iterator for ``for`` and for ``async for``.

    Args:
        body: the async generator that yields its items; it starts when the first one is asked for.
    """

    def __init__(self, body: Any) -> None:
        self._body = body
        self._plain: Iterator[T_co] | None = None
        self._async: AsyncIterator[T_co] | None = None

    def _sync_items(self) -> Iterator[T_co]:
        if self._plain is None:
            self._plain = _iterate(self._body)
        return self._plain

    def _async_items(self) -> AsyncIterator[T_co]:
        if self._async is None:
            self._async = _aiterate(self._body)
        return self._async

    def __iter__(self) -> Iterator[T_co]:
        return self

    def __next__(self) -> T_co:
        try:
            return next(self._sync_items())
        except StopIteration:
            raise
        except Exception as error:
            _clean(error)
            raise error

    def close(self) -> None:
        """Take no more items; what still runs for them is cancelled."""
        self._sync_items().close()  # type: ignore[attr-defined]

    def __aiter__(self) -> AsyncIterator[T_co]:
        return self

    def __anext__(self) -> Awaitable[T_co]:
        return self._async_items().__anext__()

    async def aclose(self) -> None:
        """Take no more items; what still runs for them is cancelled."""
        await self._async_items().aclose()  # type: ignore[attr-defined]


class _GenFace(_Face):
    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return AsyncOrSyncIterable(self._function(*args, **kwargs))

    def aio(self, *args: Any, **kwargs: Any) -> Any:
        return _aiterate(self._function(*args, **kwargs))


def _iterate(body: Any) -> Iterator[Any]:
    try:
        while True:
            try:
                item = run_blocking(body.__anext__())
            except StopAsyncIteration:
                return
            except Exception as error:
                _clean(error)
                raise error
            yield item
    finally:
        run_blocking(body.aclose())


async def _aiterate(body: Any) -> AsyncIterator[Any]:
    try:
        while True:
            try:
                item = await run_async(body.__anext__())
            except StopAsyncIteration:
                return
            except Exception as error:
                _clean(error)
                raise error
            yield item
    finally:
        await run_async(body.aclose())


class DualContext(Generic[T]):
    """A context manager for both ``with`` and ``async with``."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def __enter__(self) -> T:
        return cast(T, run_blocking(self._enter()))

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        return bool(run_blocking(self._exit(kind, error)))

    async def __aenter__(self) -> T:
        return cast(T, await run_async(self._enter()))

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        return bool(await run_async(self._exit(kind, error)))

    async def _enter(self) -> Any:
        return await self._body.__anext__()

    async def _exit(self, kind: Any, error: BaseException | None) -> bool:
        if kind is None:
            try:
                await self._body.__anext__()
            except StopAsyncIteration:
                return False
            raise RuntimeError("the context body yielded twice")
        value = error if error is not None else kind()
        tb = value.__traceback__
        try:
            await self._body.athrow(value)
        except StopAsyncIteration:
            return True
        except BaseException as failure:
            if failure is value:
                # Its way through our body is no part of the user's.
                value.__traceback__ = tb
                return False
            raise
        raise RuntimeError("the context body yielded twice")


class _ContextFace(_Face):
    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return DualContext(self._function(*args, **kwargs))

    aio = __call__


if TYPE_CHECKING:

    def blocking(function: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> _Method[S, P, T]: ...
    def blocking_function(function: Callable[P, Coroutine[Any, Any, T]]) -> _Blocking[P, T]: ...
    def blocking_gen(function: Callable[Concatenate[S, P], AsyncIterator[T]]) -> _GenMethod[S, P, T]: ...
    def blocking_context(
        function: Callable[Concatenate[S, P], AsyncIterator[T]],
    ) -> _ContextMethod[S, P, T]: ...
    def blocking_function_context(
        function: Callable[P, AsyncIterator[T]],
    ) -> _BlockingContext[P, T]: ...

else:

    def blocking(function):
        """Give an ``async def`` method a blocking face and an ``.aio`` twin."""
        return _BlockingFace(function)

    def blocking_gen(function):
        """Give an async generator method a plain-iterator face and an ``.aio`` twin."""
        return _GenFace(function)

    def blocking_context(function):
        """Make an async generator method that yields once a context manager for both worlds."""
        return _ContextFace(function)

    blocking_function = blocking
    blocking_function_context = blocking_context
