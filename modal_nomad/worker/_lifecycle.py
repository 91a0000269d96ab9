"""The life of a class's instance in its container: build, snapshot hooks, enter, inputs, exit."""

import asyncio
import inspect
import os
import sys
import traceback
from typing import Any, Optional, Sequence

from .._class_info import ClassInfo
from .._execution_context import in_snapshot
from .._partial_function import BUILD, ENTER, EXIT, SNAP, PartialFunction
from ..wire.spec import FunctionSpec, content_key


class Lifecycle:
    """Runs the hooks of one instance, in the order of their definition, base classes first.

    Async hooks share one event loop with the async methods. The order is ``begin``, ``enter``, the
    inputs, ``exit``; what ``begin`` leaves in memory is what a snapshot holds.

    Args:
        info: the class.
        spec: the Function's specification.
    """

    def __init__(self, info: ClassInfo, spec: FunctionSpec) -> None:
        self._info = info
        self._spec = spec
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._entered = False
        self.instance: Any = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the instance's async hooks and methods, made when first asked for."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop

    def begin(self, params: Optional[bytes], of_app: Any) -> Any:
        """Construct the instance, run its build hooks where that is due, then its snapshot hooks.

        Args:
            params: the serialized constructor parameters, or None.
            of_app: what the instance's methods find their App by.
        """
        self.instance = self._info.construct(params, of_app)
        builds = self._info.hooks[BUILD]
        if builds:
            self._build(builds)
        token = in_snapshot.set(self._spec.enable_memory_snapshot)
        try:
            self._run(self._info.hooks[SNAP])
        finally:
            in_snapshot.reset(token)
        return self.instance

    def enter(self) -> None:
        """Run the hooks that each container runs for itself."""
        self._run(self._info.hooks[ENTER])
        self._entered = True

    def settle(self) -> None:
        """Close the event loop of the snapshot hooks: no fork can share it. The next one is made anew."""
        if self._loop is not None:
            self._close(self._loop)
            self._loop = None

    def exit(self) -> None:
        """Run the exit hooks, all of them though one may fail, and end what is left of async code."""
        if self._entered:
            self._entered = False
            for hook in self._info.hooks[EXIT]:
                try:
                    self._run([hook])
                except KeyboardInterrupt:
                    # The container's time is over.
                    raise
                except BaseException:
                    name = f"{self._info.user_cls.__name__}.{hook.name}"
                    sys.stderr.write(
                        f"modal-nomad worker: the exit hook {name} failed:\n{traceback.format_exc()}"
                    )
        self.settle()

    def _run(self, hooks: Sequence[PartialFunction]) -> None:
        for hook in hooks:
            # An exit hook of older code takes what a context manager's __exit__ takes.
            more = 3 if EXIT in hook.roles and len(inspect.signature(hook.raw_f).parameters) == 4 else 0
            result = hook.raw_f.__get__(self.instance)(*[None] * more)
            if inspect.isawaitable(result):
                asyncio.set_event_loop(self.loop)
                self.loop.run_until_complete(_awaited(result))

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()

    def _build(self, hooks: Sequence[PartialFunction]) -> None:
        """Run build hooks once per node and content: what they download stays on the node."""
        import fcntl

        force = any(hook.settings.build_force for hook in hooks)
        key = content_key(
            {
                "environment": self._spec.image.environment_key,
                "class": [self._spec.app, self._spec.name],
                "hooks": [_source(hook) for hook in hooks],
                "version": self._spec.version_key if force else "",
            }
        )
        folder = os.path.join(_state_dir(), "builds")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, key)
        with open(path + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(path):
                return
            self._run(hooks)
            with open(path, "w"):
                pass


async def _awaited(result: Any) -> Any:
    return await result


def _source(hook: PartialFunction) -> str:
    try:
        return inspect.getsource(hook.raw_f)
    except (OSError, TypeError):
        return str(hook.raw_f.__code__.co_code.hex())


def _state_dir() -> str:
    named = os.environ.get("MODAL_ENVIRONMENTS_DIR")
    if named:
        return named
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "modal-nomad")
