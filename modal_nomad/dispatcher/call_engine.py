"""The call engine: which input runs where, as a pure state machine.

``handle(event, now)`` takes one event and gives the commands that follow from it, in order. There are
no sockets here, no clock, no randomness: the rim brings the time and carries out the commands. See
``_events`` for both vocabularies, ``_pool`` for how inputs are dealt out, ``_upkeep`` for what happens
to containers, ``autoscaler`` for how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher import _views as views
from modal_nomad.dispatcher._call import Call, Input
from modal_nomad.dispatcher._events import Command, Event, FunctionPolicy, Output
from modal_nomad.dispatcher._pool import Container, Pool
from modal_nomad.dispatcher._upkeep import CHECK_SECONDS
from modal_nomad.dispatcher._web_load import WebLoad
from modal_nomad.dispatcher.autoscaler import STALL_SECONDS
from modal_nomad.wire.spec import RetrySpec


class CallEngine(WebLoad):
    """Queues, leases, retries and containers of all Functions.

    Args:
        default_max_containers: ceiling of a Function that names none.
        first_lease: the first lease number. A restarted dispatcher passes a number above all it ever
            gave out (the time in microseconds will do), so that an answer to an old lease is recognised.
    """

    def __init__(self, default_max_containers: int = 100, first_lease: int = 1) -> None:
        super().__init__(default_max_containers, first_lease)
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            ev.FunctionAdded: self._function_added,
            ev.FunctionRemoved: self._function_removed,
            ev.InputsSubmitted: self._inputs_submitted,
            ev.CallCancelled: self._call_cancelled,
            ev.CallClosed: self._call_closed,
            ev.OutputsAcked: self._outputs_acked,
            ev.OutputsStored: self._outputs_stored,
            ev.TriesKnown: self._tries_known,
            ev.CallAttached: self._call_attached,
            ev.OwnerLost: self._owner_lost,
            ev.ContainersStarting: self._containers_starting,
            ev.ContainerPending: self._container_pending,
            ev.ContainerFailed: self._container_gone,
            ev.WorkerReady: self._worker_ready,
            ev.WorkerInitFailed: self._worker_init_failed,
            ev.OutputsReturned: self._outputs_returned,
            ev.ItemsProduced: self._items_produced,
            ev.ItemsTaken: self._items_taken,
            ev.WorkerUsage: self._worker_usage,
            ev.CapacityChanged: self._capacity_changed,
            ev.InputsGivenBack: self._inputs_given_back,
            ev.WorkerDraining: self._worker_draining,
            ev.WorkerLost: self._container_gone,
            ev.WebLoad: self._web_load,
            ev.Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event that happens at ``now`` (monotonic seconds); gives the commands to carry out."""
        out: list[Command] = []
        self._out = out
        self._now = now
        self._handlers[type(event)](event)
        if self._sink:
            self._flush()
        return out

    # ---- views

    def pools(self) -> list[views.PoolView]:
        """Each Function's queue and containers."""
        return [pool.view() for pool in self._pools.values()]

    def pool(self, function_id: str) -> views.PoolView | None:
        """One Function's queue and containers, or None when it is not known."""
        pool = self._pools.get(function_id)
        return pool.view() if pool else None

    def containers(self) -> list[views.ContainerView]:
        """Each container."""
        return [view for pool in self._pools.values() for view in pool.container_views()]

    def pending(self, call_id: str) -> int | None:
        """How many inputs of a call have no output yet; None when the call is not known."""
        call = self._calls.get(call_id)
        return call.pending if call else None

    def function_of(self, call_id: str) -> str | None:
        """Whose call it is; None when it is not known."""
        call = self._calls.get(call_id)
        return call.function_id if call else None

    def method(self, call_id: str) -> str:
        """Which method a call names; empty for a plain function or an unknown call."""
        call = self._calls.get(call_id)
        return call.method if call else ""

    def held(self) -> list[list[Any]]:
        """Return all inputs, outputs and items that are held: copied at once, to be read elsewhere."""
        held: list[list[Any]] = []
        for call in self._calls.values():
            held.append(list(call.entries.values()))
            held.extend(list(stream.items) for stream in (call.streams or {}).values())
        return held

    def inputs(self, call_id: str) -> views.CallView | None:
        """A call and its inputs; None when it is not known."""
        call = self._calls.get(call_id)
        if call is None:
            return None
        rows = [(i, x[1] if type(x) is tuple else None) for i, x in sorted(call.entries.items())]
        return views.CallView(call.function_id, call.method, rows)

    def running(self) -> dict[tuple[str, int], str]:
        """The container of each input that runs now, by call and index."""
        return {
            (item.call.call_id, item.index): container.container_id
            for container in self._containers.values()
            for _, item in container.running()
            if item.call is not None
        }

    def settled(self, call_id: str) -> bool:
        """Say whether a call is known and holds neither pending inputs nor outputs."""
        call = self._calls.get(call_id)
        return call is not None and not call.entries

    def stats(self) -> views.EngineStats:
        """Totals now and since the start."""
        pools = self.pools()
        return views.EngineStats(
            functions=len(pools),
            calls=len(self._calls),
            backlog=sum(x.backlog for x in pools),
            running=sum(x.running for x in pools),
            containers=len(self._containers),
            inputs_accepted=self._accepted,
            outputs_delivered=self._delivered,
            retries=self._retries,
            losses=self._losses,
            containers_started=self._started,
        )

    # ---- Functions

    def _function_added(self, event: ev.FunctionAdded) -> None:
        pool = self._pools.get(event.function_id)
        if pool is None:
            pool = self._pools[event.function_id] = Pool(event.function_id, event.policy)
        new_version = pool.policy.version_key != event.policy.version_key
        pool.policy = event.policy
        pool.removed = None
        if new_version:
            pool.average, pool.prefetch, pool.quantum = None, 1, event.policy.batch_size
            pool.cpu_seconds = pool.cpu_of = 0.0
            pool.failures = pool.strikes = 0
            pool.not_before = 0.0
            for container in list(pool.containers.values()):
                self._retire(container, "a new version was deployed")
        pool.idle_until = 0.0
        self._review(pool)

    def _function_removed(self, event: ev.FunctionRemoved) -> None:
        pool = self._pools.get(event.function_id)
        if pool is None:
            return
        pool.removed = event.reason
        text = event.reason.encode()
        for call in list(self._calls.values()):
            if call.function_id == event.function_id:
                for item in call.pending_inputs():
                    self._finish(item, ev.TERMINATED, text)
        pool.queue.clear()
        pool.delayed.clear()
        for container in list(pool.containers.values()):
            leases = list(container.leases)
            if leases and container.state in ("ready", "draining"):
                self._out.append(ev.CancelLeases(container.container_id, leases))
            self._retire(container, event.reason)
        self._review(pool)

    # ---- calls

    def _inputs_submitted(self, event: ev.InputsSubmitted) -> None:
        call = self._calls.get(event.call_id)
        if call is None:
            call = Call(event.call_id, event.function_id, event.durable, event.owner, event.method)
            self._calls[event.call_id] = call
            self._own(call, event.owner)
        elif call.owner != event.owner and event.owner is not None:
            self._own(call, event.owner)
        if event.last:
            call.last = True
        pool = self._pools.get(event.function_id)
        if pool is None or pool.removed is not None:
            self._refuse(call, event, pool)
            return
        queue = pool.queue
        waiting = len(queue)
        entries, low, forgotten, append = call.entries, call.low, call.forgotten, pool.queue.append
        again: list[Output] = []
        for index, payload, flags in event.inputs:
            known = entries.get(index)
            if known is None:
                if index >= low and index not in forgotten:
                    entries[index] = item = Input(call, index, payload, flags)
                    append(item)
            elif type(known) is tuple:
                again.append(known)
        if call.streams is not None:
            self._deliver_items_again(call)
        if again:
            self._out.append(ev.Deliver(call.call_id, again))
        count = len(queue) - waiting
        if not count:
            self._say_done(call, repeat=bool(again))
            return
        call.pending += count
        call.done_said = False
        self._accepted += count
        if not waiting:
            pool.stall_from = self._now
            pool.stall_next = self._now + STALL_SECONDS
            if not pool.containers:
                pool.not_before = 0.0
        self._next_lease = pool.feed(self._next_lease, self._out)
        # Also with nothing queued: the floor and the buffer of an active Function are met here.
        policy = pool.policy
        if queue or policy.buffer_containers or policy.target_inputs:
            self._scale(pool)
            self._arm(pool, self._now + STALL_SECONDS)
        else:
            self._arm(pool, self._now + CHECK_SECONDS)

    def _refuse(self, call: Call, event: ev.InputsSubmitted, pool: Pool | None) -> None:
        if pool is not None and pool.removed is not None:
            status, text = ev.TERMINATED, pool.removed
        else:
            status, text = (
                ev.INTERNAL,
                f"Function {event.function_id} is not known here: deploy its app again",
            )
        sink = self._sink.setdefault(call, [])
        for index, _, _ in event.inputs:
            known = call.entries.get(index)
            if type(known) is tuple:
                sink.append(known)
            elif known is None and index >= call.low and index not in call.forgotten:
                output = (index, status, text.encode(), 0)
                call.entries[index] = output
                sink.append(output)

    def _call_cancelled(self, event: ev.CallCancelled) -> None:
        call = self._calls.get(event.call_id)
        if call is not None:
            self._cancel([call], deliver=True, terminate=event.terminate_containers)

    def _call_closed(self, event: ev.CallClosed) -> None:
        call = self._calls.get(event.call_id)
        if call is None:
            return
        if call.pending:
            if call.durable:
                call.closed = True
                call.forget([x[0] for x in call.outputs()])
                return
            self._cancel([call], deliver=False)
        self._forget_call(call)

    def _owner_lost(self, event: ev.OwnerLost) -> None:
        calls = [self._calls[x] for x in self._owners.pop(event.owner, ())]
        lost = [x for x in calls if not x.durable]
        self._cancel(lost, deliver=False)
        for call in calls:
            call.owner = None
        for call in lost:
            self._forget_call(call)

    def _cancel(self, calls: list[Call], deliver: bool, terminate: bool = False) -> None:
        chosen = {x for x in calls if x.pending}
        pools = {x.function_id: self._pools[x.function_id] for x in chosen if x.function_id in self._pools}
        hit: list[Container] = []
        for pool in pools.values():
            pool.drop_queued(chosen)
            for container in pool.containers.values():
                leases = [k for k, x in container.leases.items() if x.call in chosen]
                if not leases:
                    continue
                if terminate and any(x.call in chosen for _, x in container.running()):
                    hit.append(container)
                else:
                    self._out.append(ev.CancelLeases(container.container_id, leases))
        for call in chosen:
            for item in call.pending_inputs():
                self._finish(item, ev.TERMINATED, b"the call was cancelled", deliver)
        for container in hit:
            self._force_stop(container, "the call was cancelled with terminate_containers")
        for pool in pools.values():
            self._review(pool)

    def _outputs_acked(self, event: ev.OutputsAcked) -> None:
        call = self._calls.get(event.call_id)
        if call is not None and not call.durable:
            call.forget(event.indexes)

    def _outputs_stored(self, event: ev.OutputsStored) -> None:
        call = self._calls.get(event.call_id)
        if call is not None and call.durable:
            call.forget(event.indexes)

    def _tries_known(self, event: ev.TriesKnown) -> None:
        call = self._calls.get(event.call_id)
        if call is not None:
            for index, (losses, attempts) in event.tries.items():
                item = call.entries.get(index)
                if type(item) is Input:
                    item.losses, item.attempts = losses, attempts

    def _call_attached(self, event: ev.CallAttached) -> None:
        call = self._calls.get(event.call_id)
        if call is not None:
            self._deliver_items_again(call)
            outputs = call.outputs()
            if outputs:
                self._out.append(ev.Deliver(call.call_id, outputs))
            self._say_done(call, repeat=True)

    # ---- outputs

    def _outputs_returned(self, event: ev.OutputsReturned) -> None:
        container = self._containers.get(event.container_id)
        if container is None:
            return
        pool = container.pool
        held = len(container.leases)
        pop = container.leases.pop
        retries = pool.policy.retries
        sink = self._sink
        call: Call | None = None
        count = 0
        failed: list[Input] = []
        for lease, status, payload, flags in event.outputs:
            item = pop(lease, None)
            if item is None:
                continue
            owner = item.call
            if owner is None:
                continue
            if (
                status
                and retries is not None
                and status in (ev.FAILURE, ev.TIMEOUT)
                and item.attempts < retries.max_retries
            ):
                self._retry_later(pool, item, retries)
                failed.append(item)
                continue
            if owner is not call:
                if call is not None:
                    call.pending -= count
                call, count = owner, 0
                entries = owner.entries
                bucket = sink.get(owner)
                if bucket is None:
                    bucket = sink[owner] = []
                add = bucket.append
            index = item.index
            entries[index] = output = (index, status, payload, flags)
            add(output)
            count += 1
        if call is not None:
            call.pending -= count
        if failed:
            self._keep_tries(failed)
        returned = held - len(container.leases)
        if not returned:
            return
        pool.learn(returned, event.busy_seconds)
        if event.usage is not None:
            pool.learn_cpu(*event.usage)
        pool.stall_from = self._now
        container.no_prefetch = False
        if container.state != "ready":
            return
        pool.leased -= returned
        if not container.leases:
            pool.busy -= 1
            container.idle_since = self._now
        if pool.policy.single_use:
            self._drain(container, "a container of this Function ends after one input")
            self._react(pool, [container])
            return
        pool.set_credit(container)
        self._next_lease = pool.top_up(container, self._next_lease, self._out)
        if not container.leases:
            self._arm(pool, self._now + pool.policy.scaledown_window)

    def _retry_later(self, pool: Pool, item: Input, retries: RetrySpec) -> None:
        item.attempts += 1
        self._retries += 1
        self._sequence += 1
        when = self._now + retries.delay(item.attempts)
        heappush(pool.delayed, (when, self._sequence, item))
        self._arm(pool, when)

    def _inputs_given_back(self, event: ev.InputsGivenBack) -> None:
        container = self._containers.get(event.container_id)
        if container is None:
            return
        pool = container.pool
        items = [container.leases.pop(x) for x in sorted(set(event.leases)) if x in container.leases]
        if container.state == "ready" and items:
            pool.leased -= len(items)
            if not container.leases:
                pool.busy -= 1
                container.idle_since = self._now
        if event.begun:
            self._count_losses(items, "it was interrupted, and its inputs with it")
        container.no_prefetch = True
        pool.set_credit(container)
        if container.state == "ready":
            pool.place(container)
        self._requeue(pool, items)
        self._react(pool, [container])

    # ---- owners

    def _own(self, call: Call, owner: str | None) -> None:
        self._disown(call)
        call.owner = owner
        if owner is not None:
            self._owners.setdefault(owner, set()).add(call.call_id)


__all__ = ["CallEngine", "FunctionPolicy"]
