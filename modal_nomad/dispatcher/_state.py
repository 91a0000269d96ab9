"""The call engine's state: its pools, calls and timers, and what each handled event gives out."""

from __future__ import annotations

from heapq import heappop, heappush

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._call import Call, Input
from modal_nomad.dispatcher._events import Command, Output
from modal_nomad.dispatcher._pool import Container, Pool
from modal_nomad.dispatcher.autoscaler import Autoscaler


class State:
    """What all of the engine shares: pools, calls, timers, and the commands on their way out."""

    def __init__(self, default_max_containers: int, first_lease: int) -> None:
        self._autoscaler = Autoscaler(default_max_containers)
        self._pools: dict[str, Pool] = {}
        self._calls: dict[str, Call] = {}
        self._containers: dict[str, Container] = {}
        self._owners: dict[str, set[str]] = {}
        self._next_lease = first_lease
        self._sequence = 0
        self._timers: list[tuple[float, int, Pool]] = []
        # A timer was set since who carries the commands out last asked for the next one.
        self.rearmed = False
        self._now = 0.0
        self._out: list[Command] = []
        self._sink: dict[Call, list[Output]] = {}
        self._accepted = self._delivered = self._retries = self._losses = self._started = 0

    # ---- time

    def next_wakeup(self) -> float | None:
        """When to send the next ``Tick``, on the clock of ``handle``; None when nothing waits for time."""
        timers = self._timers
        while timers and timers[0][2].wake_at != timers[0][0]:
            heappop(timers)
        return timers[0][0] if timers else None

    def _arm(self, pool: Pool, when: float) -> None:
        if when < pool.wake_at:
            pool.wake_at = when
            self.rearmed = True
            self._sequence += 1
            heappush(self._timers, (when, self._sequence, pool))

    # ---- outputs and calls

    def _finish(self, item: Input, status: int, payload: bytes, deliver: bool = True) -> None:
        """End a pending input with an output of the engine's own; a lease of it stays until answered."""
        call = item.call
        if call is None:
            return
        output = (item.index, status, payload, 0)
        item.call = None
        item.payload = b""
        call.entries[item.index] = output
        call.pending -= 1
        if deliver:
            self._sink.setdefault(call, []).append(output)

    def _flush(self) -> None:
        for call, outputs in self._sink.items():
            if outputs:
                self._delivered += len(outputs)
                self._out.append(ev.Deliver(call.call_id, outputs))
                if call.closed:
                    call.forget([x[0] for x in outputs])
            self._say_done(call)
            if call.closed and not call.pending:
                self._forget_call(call)
        self._sink.clear()

    def _say_done(self, call: Call, repeat: bool = False) -> None:
        if call.last and not call.pending and (repeat or not call.done_said):
            call.done_said = True
            self._out.append(ev.CallDone(call.call_id))

    def _forget_call(self, call: Call) -> None:
        self._disown(call)
        self._calls.pop(call.call_id, None)
        # A closed durable call is forgotten while its last outputs are being delivered.
        if not call.closed:
            self._sink.pop(call, None)

    def _disown(self, call: Call) -> None:
        if call.owner is not None:
            owned = self._owners.get(call.owner)
            if owned is not None:
                owned.discard(call.call_id)
                if not owned:
                    del self._owners[call.owner]

    def _fail_queue(self, pool: Pool, status: int, payload: bytes) -> None:
        for item in pool.queue:
            self._finish(item, status, payload)
        pool.queue.clear()
        pool.strikes = 0

    def _requeue(self, pool: Pool, items: list[Input]) -> None:
        """Put inputs back where they were: at the front, in their order."""
        items = [x for x in items if x.call is not None]
        if items:
            if not pool.queue:
                pool.stall_from = self._now
            pool.queue.extendleft(reversed(items))
