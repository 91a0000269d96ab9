"""Running async functions: all inputs on one event loop, which lives as long as the container."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic
from types import coroutine
from typing import Any, Callable, Deque, Dict, Generator, List, Optional, Set, Tuple

from .._execution_context import current_work
from ..exception import InputCancellation
from ..wire import frames
from ..wire.serialization import dumps, loads
from ..wire.spec import CLEANUP_SECONDS
from ._outbox import MAX_BYTES, Outbox, Output, Values, Work, stopped
from ._pool import FLUSH_DURING, GIVE_BACK_AFTER, STUCK_AFTER, thrown
from ._threads import ThreadCall


class _Cancellation(InputCancellation, asyncio.CancelledError):
    """What a cancelled input's coroutine meets: asyncio's own means, and user code, both know it."""


@coroutine
def _told(awaitable: Any, running: "Running") -> Generator[Any, Any, Any]:
    """Await, with the cancellation of the input arriving as InputCancellation."""
    steps = awaitable.__await__()
    try:
        future = steps.send(None)
        while True:
            try:
                value = yield future
            except asyncio.CancelledError as error:
                told = error
                if running.pending is not None and running.pending[0] == frames.TERMINATED:
                    told = _Cancellation("the input was cancelled")
                future = steps.throw(told)
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:
                future = steps.throw(error)
            else:
                future = steps.send(value)
    except StopIteration as end:
        return end.value


class Running:
    """An input (or a batch of them) that is being run: its task, or its call in a thread."""

    __slots__ = ("call", "delivered", "pending", "started", "task")

    def __init__(self) -> None:
        self.delivered = False
        self.task: Optional[asyncio.Task[None]] = None
        self.started = monotonic()
        self.pending: Optional[Tuple[int, float]] = None
        self.call: Optional[ThreadCall] = None


class LoopPool:
    """Inputs as tasks of one loop on the main thread; the interface is that of ``_pool.Pool``.

    Args, besides those of ``_pool.Pool``:
        loop: the loop of a class's instance, which outlives the pool; None: one of the pool's own.
        in_thread: says of a method that it must not run on the loop.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        queue: "Deque[Work]",
        values: Values,
        new_outbox: Callable[[], Outbox],
        slots: int,
        timeout: float,
        give_back: Callable[[List[Any]], None],
        request_drain: Callable[[], None],
        *,
        loop: Optional[asyncio.AbstractEventLoop] = None,
        in_thread: Optional[Callable[[str], bool]] = None,
    ) -> None:
        self.function = function
        self.queue = queue
        self.values = values
        self.outbox = new_outbox()
        self.slots = slots
        self.timeout = timeout
        self.give_back = give_back
        self.request_drain = request_drain
        self.stopping = False
        self.abandoned = False
        self.active: Dict[Any, Running] = {}
        self._serving = False
        self._owns_loop = loop is None
        self._loop = loop or asyncio.new_event_loop()
        self._in_thread = in_thread
        self._executor: Optional[ThreadPoolExecutor] = None
        self._ended = self._loop.create_future()
        self._flushing = False
        self._size = 0

    def run(self) -> None:
        """Run inputs until ``stop``; on the main thread."""
        loop = self._loop
        asyncio.set_event_loop(loop)
        loop.call_soon(self._start)
        self._serving = True
        try:
            loop.run_until_complete(self._ended)
            self.outbox.flush()
        except KeyboardInterrupt:
            self.abandoned = True
            self.request_drain()
            running = self.running()
            self.active.clear()
            self.give_back(running)
            self.interrupted()
        finally:
            self._serving = False
            left = asyncio.all_tasks(loop) if self._owns_loop else self._tasks()
            for task in left:
                task.cancel()
            # A second interruption must still find the way out.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            if self._owns_loop:
                loop.run_until_complete(loop.shutdown_asyncgens())
                asyncio.set_event_loop(None)
                loop.close()

    def _tasks(self) -> "Set[asyncio.Task[None]]":
        return {x.task for x in self.active.values() if x.task is not None}

    def interruptible(self) -> bool:
        """Tell whether a KeyboardInterrupt in the main thread meets the loop."""
        return self._serving

    def preempt(self) -> bool:
        """Cancel what runs; what does not end by itself then is given back. In a signal handler.

        Returns:
            Whether the handler is to raise KeyboardInterrupt: never here.
        """
        self.abandoned = True
        self._call(self._cancel_all)
        return False

    def _cancel_all(self) -> None:
        # A batch stands there once for each of its inputs.
        for running in dict.fromkeys(self.active.values()):
            if running.call is not None:
                running.call.interrupt(InputCancellation("the container ends"))
            elif running.task is not None:
                running.task.cancel()

    def stop(self) -> None:
        """End when nothing is being run. Safe in a signal handler."""
        self.stopping = True
        self._call(self._start)

    def wake(self, count: int) -> None:
        """Tell that inputs were queued."""
        self._call(self._start)

    def busy(self) -> bool:
        """Whether user code runs."""
        return bool(self.active)

    def interrupted(self) -> None:
        """End what else there is after an interruption, while the loop is still there."""

    def running(self) -> List[Any]:
        """Return the leases that are being run."""
        return list(self.active)

    def unsent(self) -> List[Any]:
        """Return the leases whose outputs have not been sent."""
        return self.outbox.leases()

    def flush(self) -> None:
        """Send all waiting outputs that nobody is sending."""
        self.outbox.try_flush()

    def cancel(self, lease: Any) -> bool:
        """Cancel the task of an input; False when it is not being run."""
        running = self.active.get(lease)
        if running is None:
            return False
        self._interrupt(running, frames.TERMINATED)
        return True

    def pending_status(self, lease: Any) -> int:
        """Return why an input was cancelled: TIMEOUT or TERMINATED."""
        running = self.active.get(lease)
        return running.pending[0] if running is not None and running.pending is not None else frames.TIMEOUT

    def tick(self, now: float) -> Tuple[float, bool, Any]:
        """Enforce times; returns what ``Pool.tick`` returns."""
        wait = 3600.0
        active = list(self.active.items())
        all_long = len(active) >= self.slots
        stuck = None
        for lease, running in active:
            elapsed = now - running.started
            if elapsed < GIVE_BACK_AFTER:
                all_long = False
            if running.pending is not None:
                limit = CLEANUP_SECONDS if running.delivered else STUCK_AFTER
                wait = min(wait, max(STUCK_AFTER / 50, running.pending[1] + limit - now))
                if now > running.pending[1] + limit:
                    stuck = lease
            elif elapsed >= self.timeout:
                self._interrupt(running, frames.TIMEOUT)
            else:
                wait = min(wait, self.timeout - elapsed)
        if self.outbox.items or self.queue:
            wait = min(wait, FLUSH_DURING)
        return wait, all_long, stuck

    def _call(self, action: Callable[[], None]) -> None:
        # RuntimeError: the loop has ended, and nothing is left that could be told.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(action)

    def _interrupt(self, running: Running, status: int) -> None:
        if running.pending is None and running.task is not None:
            running.pending = (status, monotonic())
            self._call(lambda: self._deliver(running))

    def _deliver(self, running: Running) -> None:
        running.delivered = True
        if running.call is not None:
            running.call.interrupt(thrown(running.pending[0] if running.pending else 0, self.timeout))
        elif running.task is not None:
            running.task.cancel()

    def _start(self) -> None:
        while self._room() and not self.abandoned:
            try:
                work = self.queue.popleft()
            except IndexError:
                break
            self.active[work[0]] = running = Running()
            running.task = self._loop.create_task(self._one(work, running))
        self._end_when_done()

    def _room(self) -> bool:
        """Whether another input may run."""
        return len(self.active) < self.slots

    def _freed(self) -> None:
        """A slot is free."""
        if self.queue or self.stopping:
            self._start()

    def _quiet(self) -> bool:
        """Whether nothing else than inputs keeps a stopping pool."""
        return True

    def _end_when_done(self) -> None:
        over = self.stopping and not self.active and not self.queue
        if over and not self._ended.done() and self._quiet():
            self._ended.set_result(None)

    async def _call_user(self, work: Work, running: Running, args: Any, kwargs: Any) -> Any:
        if self._in_thread is None or not self._in_thread(work[5]):
            result = self.function(*args, **kwargs)
            return await _told(result, running) if hasattr(result, "__await__") else result
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.slots, thread_name_prefix="modal-slot")
        running.call = call = ThreadCall(self.function, args, kwargs)
        try:
            return await self._loop.run_in_executor(self._executor, call.run)
        finally:
            running.call = None

    async def _one(self, work: Work, running: Running) -> None:
        lease, _, _, flags, data, _ = work
        current_work.set(work)
        try:
            if flags & frames.FLAG_BLOB:
                data = await self._loop.run_in_executor(None, self.values.fetch, data)
            args, kwargs = loads(data)
            data = dumps(await self._call_user(work, running, args, kwargs))
            if len(data) <= frames.INLINE_LIMIT:
                output = (lease, frames.SUCCESS, 0, data)
            else:
                output = await self._loop.run_in_executor(
                    None, self.values.output, lease, frames.SUCCESS, data
                )
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.abandoned and isinstance(error, (asyncio.CancelledError, InputCancellation)):
                if self.active.pop(lease, None) is not None:
                    self.give_back([lease])
                self._start()
                return
            output = self.values.failure(lease, error) if running.pending is None else stopped(lease, 0, 0)
        if running.pending is not None:
            output = stopped(lease, running.pending[0], self.timeout)
        self.outbox.seconds += monotonic() - running.started
        self._keep(output)
        self.active.pop(lease, None)
        self._freed()

    def _keep(self, output: Output) -> None:
        self.outbox.items.append(output)
        self._size += len(output[3])
        if self._size >= MAX_BYTES:
            self._flush()
        elif not self._flushing:
            # All that ends in this turn of the loop shares one frame.
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._size = 0
        self.outbox.flush()
