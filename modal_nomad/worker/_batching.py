"""Running batched functions: inputs gathered into lists, one call for all of them."""

import asyncio
import inspect
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from .._execution_context import current_work
from ..exception import ExecutionError, InputCancellation
from ..wire import frames
from ..wire.serialization import dumps, loads
from ._loop_pool import LoopPool, Running
from ._outbox import Output, Work, stopped


class _Batch(Running):
    """A batch that is being run; its members share a task, and end together."""

    __slots__ = ("cancelled", "leases")

    def __init__(self, leases: Sequence[Any]) -> None:
        super().__init__()
        self.leases = set(leases)
        self.cancelled: Set[Any] = set()


class BatchPool(LoopPool):
    """Gathers up to ``size`` inputs, waiting ``wait`` seconds from the first, and calls the function once.

    As ``LoopPool``, whose slots are all members of all batches at a time.
    """

    def __init__(self, *args: Any, size: int, wait: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._batch_size = size
        self._wait = wait
        self._lanes = max(1, self.slots // size)
        self._busy = 0
        self._arrived: Optional[float] = None
        self._timer: Optional[asyncio.TimerHandle] = None

    def cancel(self, lease: Any) -> bool:
        """End one member of a batch: the others go on, and without others the batch is interrupted."""
        batch = self.active.get(lease)
        if not isinstance(batch, _Batch):
            return False
        batch.cancelled.add(lease)
        if batch.cancelled >= batch.leases:
            self._interrupt(batch, frames.TERMINATED)
        return True

    def _start(self) -> None:
        queue = self.queue
        while queue and self._busy < self._lanes and not self.abandoned:
            now = monotonic()
            if self._arrived is None:
                self._arrived = now
            due = self._arrived + self._wait
            if len(queue) < self._batch_size and now < due and not self.stopping:
                if self._timer is None:
                    self._timer = self._loop.call_later(due - now, self._linger_over)
                return
            self._take()
        self._end_when_done()

    def _linger_over(self) -> None:
        self._timer = None
        self._start()

    def _take(self) -> None:
        works: List[Work] = []
        while len(works) < self._batch_size:
            try:
                works.append(self.queue.popleft())
            except IndexError:
                break
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # What is left over came while this batch filled: its own wait begins now at the latest.
        self._arrived = monotonic() if self.queue else None
        if not works:
            return
        self._busy += 1
        batch = _Batch([work[0] for work in works])
        for work in works:
            self.active[work[0]] = batch
        batch.task = self._loop.create_task(self._run_batch(works, batch))

    async def _run_batch(self, works: List[Work], batch: _Batch) -> None:
        current_work.set(works[0])
        outputs: Dict[Any, Output] = {}
        try:
            members = await self._members(works, outputs)
            if members:
                results = await self._call_user(
                    works[0], batch, *_transposed(self._signature(works[0]), members)
                )
                await self._results(members, results, outputs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.abandoned and isinstance(error, (asyncio.CancelledError, InputCancellation)):
                self._abandon(batch)
                return
            for work in works:
                if work[0] not in outputs:
                    outputs[work[0]] = self.values.failure(work[0], error)
        for lease in list(batch.leases):
            if batch.pending is not None:
                outputs[lease] = stopped(lease, batch.pending[0], self.timeout)
            elif lease in batch.cancelled:
                outputs[lease] = stopped(lease, frames.TERMINATED, self.timeout)
            self._keep(outputs[lease])
            self.active.pop(lease, None)
        self.outbox.seconds += monotonic() - batch.started
        self._busy -= 1
        self._start()

    def _abandon(self, batch: _Batch) -> None:
        self.give_back([x for x in batch.leases if self.active.pop(x, None) is not None])
        self._busy -= 1
        self._start()

    async def _members(
        self, works: List[Work], outputs: Dict[Any, Output]
    ) -> List[Tuple[Any, "inspect.BoundArguments"]]:
        """Return lease and bound arguments of each input; one that cannot be bound fails alone."""
        members = []
        for lease, _, _, flags, data, _ in works:
            try:
                if flags & frames.FLAG_BLOB:
                    data = await self._loop.run_in_executor(None, self.values.fetch, data)
                args, kwargs = loads(data)
                members.append((lease, self._signature(works[0]).bind(*args, **kwargs)))
            except Exception as error:
                outputs[lease] = self.values.failure(lease, error)
        return members

    async def _results(
        self, members: Sequence[Tuple[Any, Any]], results: Any, outputs: Dict[Any, Output]
    ) -> None:
        if not isinstance(results, list):
            raise ExecutionError(
                f"a batched function must return a list with a result for each input; this one returned a "
                f"{type(results).__name__}"
            )
        if len(results) != len(members):
            raise ExecutionError(
                "a batched function must return a list with a result for each input; this one returned "
                f"{len(results)} results for {len(members)} inputs"
            )
        for (lease, _), result in zip(members, results):  # noqa: B905 (not on 3.9)
            try:
                data = dumps(result)
            except Exception as error:
                outputs[lease] = self.values.failure(lease, error)
                continue
            if len(data) <= frames.INLINE_LIMIT:
                outputs[lease] = (lease, frames.SUCCESS, 0, data)
            else:
                outputs[lease] = await self._loop.run_in_executor(
                    None, self.values.output, lease, frames.SUCCESS, data
                )

    def _signature(self, work: Work) -> inspect.Signature:
        function: Callable[..., Any] = self.function
        method = getattr(function, "method", None)
        return inspect.signature(method(work[5]) if method is not None else function)


def _transposed(
    signature: inspect.Signature, members: Sequence[Tuple[Any, "inspect.BoundArguments"]]
) -> Tuple[List[Any], Dict[str, Any]]:
    """Return the arguments of the one call: for each parameter the list of its values."""
    args: List[Any] = []
    kwargs: Dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        values = [bound.arguments.get(name) for _, bound in members]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            columns = zip(*(v or () for v in values))  # noqa: B905 (not on 3.9)
            args.extend(list(column) for column in columns)
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for key in values[0] or ():
                kwargs[key] = [(v or {}).get(key) for v in values]
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            kwargs[name] = values
        else:
            args.append(values)
    return args, kwargs
