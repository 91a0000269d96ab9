"""``map``: a window of inputs in flight, drawn lazily, with results while inputs are still drawn."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from . import _execution_context as context
from ._bridge import io, run_blocking
from ._invocation import blob_payload, connection_error, encode_input, output_error
from ._wakeup import Wakeup
from .wire.connection import Call, Output
from .wire.frames import FAILURE, SUCCESS
from .wire.ids import new_id
from .wire.input_frames import Input
from .wire.serialization import loads

if TYPE_CHECKING:
    from ._output import CallProgress
    from .client import Client

WINDOW = 1000
"""Inputs drawn and not yet yielded: memory and back-pressure both follow from it."""
_CHUNK = 128

_INSTANT = (list, tuple, range, str, bytes, dict, set, frozenset)


class MapRun(Wakeup):
    """The state that the caller's thread, the feeder and the library's loop share."""

    def __init__(self, client: Client, function_id: str, home: str = "", method: str = "") -> None:
        super().__init__()
        self.client = client
        self.home = home
        self.arrived: deque[list[Output]] = deque()
        self.drawn = 0
        self.exhausted = False
        self.error: BaseException | None = None
        self.stopped = False
        self.call = Call(
            new_id("fc"),
            function_id,
            self._on_outputs,
            self._on_failure,
            parent=context.current_input_id() or "",
            method=method,
        )

    def _on_outputs(self, outputs: list[Output]) -> None:
        self.arrived.append(outputs)
        self.wake()

    def _on_failure(self, error: BaseException) -> None:
        self.fail(connection_error(error))

    def fail(self, error: BaseException) -> None:
        """End the run with an error, after what has arrived; from any thread."""
        if self.error is None:
            self.error = error
        self.wake()

    def submit(self, batch: list[Input]) -> None:
        """Send inputs; from any thread."""
        self.client._submit(self.call, batch)


async def map_outputs(
    client: Client,
    function_id: str,
    inputs: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]],
    kwargs: dict[str, Any],
    *,
    home: str = "",
    method: str = "",
    order_outputs: bool,
    instant: bool,
    failed: Callable[[BaseException], Any] | None,
    progress: CallProgress | None = None,
) -> AsyncIterator[Any]:
    """Yield one result per input.

    Args:
        client: where to.
        function_id: of which Function.
        inputs: argument tuples.
        kwargs: keyword arguments of every input.
        home: the module that the containers have loaded, where that is known.
        method: which method of a class; empty for a plain function.
        order_outputs: yield in input order rather than as they come.
        instant: drawing an input never waits, so no thread is needed to draw them.
        failed: what to yield for an exception; None raises it.
        progress: what shows how far it is.
    """
    run = MapRun(client, function_id, home, method)
    feed: _Feed
    if not instant:
        feed = _BackgroundFeed(run, inputs, kwargs)
    else:
        feed = _DirectFeed(run, iter(inputs), kwargs)  # type: ignore[arg-type]
    held: dict[int, Output] = {}
    arrived = run.arrived
    taken = 0

    def something_to_do() -> bool:
        return bool(arrived or run.error is not None or (run.exhausted and taken == run.drawn))

    try:
        while True:
            await feed.fill(taken)
            if not arrived:
                if run.error is not None:
                    raise run.error
                if run.exhausted and taken == run.drawn:
                    return
                waiter = run.waiter(something_to_do)
                if waiter is not None:
                    await io(waiter)
                continue
            outputs = arrived.popleft()
            if progress is not None:
                progress.done += len(outputs)
            for output in outputs:
                if not order_outputs:
                    ready: Iterable[Output] = (output,)
                elif output[0] == taken and not held:
                    ready = (output,)
                else:
                    held[output[0]] = output
                    ready = _in_order(held, taken)
                for _, status, payload, flags in ready:
                    taken += 1
                    feed.taken = taken
                    try:
                        if flags:
                            payload = await blob_payload(client, payload, flags)
                        value = loads(payload) if status == SUCCESS else output_error(status, payload)
                    except Exception as error:
                        # It arrived and cannot be had here: a module that this side lacks, a lost blob.
                        status, value = FAILURE, error
                    if status != SUCCESS:
                        if failed is None:
                            raise value
                        value = failed(value)
                    yield value
    finally:
        run.stopped = True
        feed.stop()
        client._end(run.call)
        if progress is not None:
            if run.exhausted:
                progress.total = run.drawn
            progress.end()


def _in_order(held: dict[int, Output], index: int) -> Iterator[Output]:
    while index in held:
        yield held.pop(index)
        index += 1


def is_instant(iterable: Any) -> bool:
    """Tell whether drawing from an iterable can never wait."""
    return type(iterable) in _INSTANT


class _Feed:
    taken = 0

    async def fill(self, taken: int) -> None:
        raise AssertionError

    def stop(self) -> None:
        pass


class _DirectFeed(_Feed):
    """Draws in the consumer's own thread, whenever a good part of the window is free."""

    def __init__(self, run: MapRun, inputs: Iterator[tuple[Any, ...]], kwargs: dict[str, Any]) -> None:
        self._run = run
        self._inputs = inputs
        self._kwargs = kwargs

    async def fill(self, taken: int) -> None:
        run = self._run
        if run.exhausted or run.drawn - taken > WINDOW * 3 // 4:
            return
        batch: list[Input] = []
        while run.drawn - taken < WINDOW:
            try:
                args = next(self._inputs)
            except StopIteration:
                run.exhausted = True
                break
            payload, flags = await encode_input(run.client, args, self._kwargs, run.home)
            batch.append((run.drawn, payload, flags))
            run.drawn += 1
            if len(batch) >= _CHUNK or len(payload) > 65536:
                run.submit(batch)
                batch = []
        if batch:
            run.submit(batch)


class _BackgroundFeed(_Feed):
    """Draws in a thread (or a task of the caller's loop, for async iterables), held by the window."""

    def __init__(
        self,
        run: MapRun,
        inputs: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]],
        kwargs: dict[str, Any],
    ) -> None:
        self._run = run
        self._kwargs = kwargs
        self._room = threading.Semaphore(WINDOW)
        self._released = 0
        self._outbox: list[Input] = []
        self._outbox_lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        if isinstance(inputs, AsyncIterable):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self._start(lambda: asyncio.run(self._draw_async(inputs)))
            else:
                self._task = loop.create_task(self._draw_async(inputs))
        else:
            self._start(lambda: self._draw(iter(inputs)))

    def _start(self, target: Callable[[], None]) -> None:
        import contextvars

        frame = contextvars.copy_context()
        threading.Thread(target=frame.run, args=(target,), name="modal-nomad-map-inputs", daemon=True).start()

    async def fill(self, taken: int) -> None:
        free = taken - self._released
        if free >= 64 or (free and taken == self._run.drawn):
            self._released = taken
            self._room.release(free)

    def stop(self) -> None:
        self._room.release(1)
        if self._task is not None:
            self._task.cancel()

    def _draw(self, inputs: Iterator[tuple[Any, ...]]) -> None:
        run = self._run
        try:
            for args in inputs:
                self._room.acquire()
                if run.stopped:
                    return
                self._emit(args)
        except BaseException as error:
            run.error = run.error or error
        run.exhausted = True
        run.wake()

    async def _draw_async(self, inputs: AsyncIterable[tuple[Any, ...]]) -> None:
        run = self._run
        loop = asyncio.get_running_loop()
        try:
            async for args in inputs:
                if not self._room.acquire(blocking=False):
                    await loop.run_in_executor(None, self._room.acquire)
                if run.stopped:
                    return
                self._emit(args)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            run.error = run.error or error
        run.exhausted = True
        run.wake()

    def _emit(self, args: tuple[Any, ...]) -> None:
        run = self._run
        data = encode_input(run.client, args, self._kwargs, run.home)
        payload, flags = run_blocking(data)
        with self._outbox_lock:
            self._outbox.append((run.drawn, payload, flags))
            first = len(self._outbox) == 1
        run.drawn += 1
        if first:
            # The loop takes what has gathered by the time it runs: one frame for a fast iterator's
            # many inputs, at once for a slow one's single input.
            from ._bridge import library_loop

            library_loop().call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._outbox_lock:
            batch, self._outbox = self._outbox, []
        if batch and not self._run.stopped:
            self._run.client._live().submit(self._run.call, batch)
