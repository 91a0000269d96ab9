"""Random histories with faults: what the call engine promises holds after each step."""

from __future__ import annotations

import dataclasses
from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher import _views as views
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.wire.spec import RetrySpec

MAX = 3
FU = "fu-1"


class EngineMachine(RuleBasedStateMachine):
    """Plays the rim, the workers and the clients against one engine."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = CallEngine(default_max_containers=2)
        self.now = 0.0
        self.version = 1
        self.names = 0
        self.calls = 0
        self.asked: list[ev.StartContainers] = []
        self.starting: dict[str, str] = {}
        self.ready: dict[str, dict[int, tuple[str, int]]] = {}
        self.ending: set[str] = set()
        self.accepted: dict[str, set[int]] = {}
        self.delivered: dict[str, Counter[int]] = {}
        self.allowed: dict[str, Counter[int]] = {}
        self.leased_order: dict[str, list[int]] = {}
        self.closed: set[str] = set()
        self.limit = MAX
        self.faulty: set[str] = set()
        self.lowering = False
        self.failed: Counter[tuple[str, int]] = Counter()
        self.deploy()

    def policy(self) -> ev.FunctionPolicy:
        return ev.FunctionPolicy(
            f"v{self.version}",
            timeout=20.0,
            retries=RetrySpec(1, initial_delay=0.5) if self.version % 2 else None,
            min_containers=self.version % 2,
            max_containers=self.limit,
            buffer_containers=self.version % 3 == 0,
            scaledown_window=5.0,
            max_concurrent_inputs=1 + self.version % 2,
            single_use=self.version % 5 == 4,
        )

    def deploy(self) -> None:
        self.do(ev.FunctionAdded(FU, self.policy()))

    def do(self, event: ev.Event) -> None:
        lowering = self.lowering
        drains_are_scaling = not isinstance(event, ev.FunctionAdded | ev.OutputsReturned)
        for command in self.engine.handle(event, self.now):
            match command:
                case ev.StartContainers():
                    self.asked.append(command)
                    assert self.alive() <= self.limit
                case ev.Lease(name, inputs):
                    assert name in self.ready, "leased to a container that is not routable"
                    assert name not in self.ending, "leased to a container that was told to end"
                    for lease, call_id, index, payload, _ in inputs:
                        assert payload == f"{call_id}:{index}".encode()
                        assert index in self.accepted[call_id]
                        self.ready[name][lease] = (call_id, index)
                        order = self.leased_order.setdefault(call_id, [])
                        if not self.faulty:
                            assert not order or index > order[-1], "not first in, first out"
                        order.append(index)
                case ev.Deliver(call_id, outputs):
                    assert call_id not in self.closed
                    for index, *_ in outputs:
                        self.delivered[call_id][index] += 1
                case ev.DrainContainer(name):
                    if drains_are_scaling and name in self.ready and name not in self.ending:
                        live = [x for x in self.ready[name].values() if x[0] not in self.closed]
                        retired = self.view(name).version_key != f"v{self.version}"
                        assert retired or lowering or not live, "a busy container was drained"
                    self.ending.add(name)
                case ev.StopContainer(name, force, _):
                    self.ending.add(name)
                    if force and name in self.ready:
                        self.faulty.add("stopped")

    def view(self, name: str) -> views.ContainerView:
        return next(x for x in self.engine.containers() if x.container_id == name)

    def alive(self) -> int:
        return len(self.starting) + len(self.ready) + sum(x.count for x in self.asked)

    def pick(self, data: st.DataObject, names: object) -> str:
        return data.draw(st.sampled_from(sorted(names)))  # type: ignore[call-overload]

    # ---- clients

    @rule(count=st.integers(0, 40), durable=st.booleans(), owner=st.sampled_from([None, "cl-1", "cl-2"]))
    def submit(self, count: int, durable: bool, owner: str | None) -> None:
        self.calls += 1
        call_id = f"fc-{self.calls}"
        self.accepted[call_id] = set(range(count))
        self.delivered[call_id] = Counter()
        self.allowed[call_id] = Counter(dict.fromkeys(range(count), 1))
        self.owner_of = getattr(self, "owner_of", {})
        self.owner_of[call_id] = (owner, durable)
        self.send(call_id, durable, owner, range(count))

    def send(self, call_id: str, durable: bool, owner: str | None, indexes: object) -> None:
        inputs = [(i, f"{call_id}:{i}".encode(), 0) for i in indexes]  # type: ignore[attr-defined]
        self.do(ev.InputsSubmitted(call_id, FU, durable, owner, inputs, True))

    def open_calls(self) -> list[str]:
        return sorted(set(self.accepted) - self.closed)

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        call_id = self.pick(data, self.open_calls())
        owner, durable = self.owner_of[call_id]
        for index in self.delivered[call_id]:
            self.allowed[call_id][index] += 1
        self.send(call_id, durable, owner, sorted(self.accepted[call_id]))

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        call_id = self.pick(data, self.open_calls())
        for index in self.delivered[call_id]:
            self.allowed[call_id][index] += 1
        self.do(ev.CallAttached(call_id))

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        call_id = self.pick(data, self.open_calls())
        self.do(ev.OutputsAcked(call_id, list(self.delivered[call_id])))
        self.do(ev.OutputsStored(call_id, list(self.delivered[call_id])))

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data(), terminate=st.booleans())
    def cancel(self, data: st.DataObject, terminate: bool) -> None:
        call_id = self.pick(data, self.open_calls())
        self.do(ev.CallCancelled(call_id, terminate))
        assert set(self.delivered[call_id]) == self.accepted[call_id]

    @precondition(lambda self: self.open_calls())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        call_id = self.pick(data, self.open_calls())
        if not self.owner_of[call_id][1]:
            self.closed.add(call_id)
            self.do(ev.CallClosed(call_id))

    @rule(owner=st.sampled_from(["cl-1", "cl-2"]))
    def lose_owner(self, owner: str) -> None:
        self.closed |= {x for x in self.open_calls() if self.owner_of[x] == (owner, False)}
        self.do(ev.OwnerLost(owner))

    # ---- containers

    @precondition(lambda self: self.asked)
    @rule(fails=st.booleans())
    def answer_start(self, fails: bool) -> None:
        command = self.asked.pop(0)
        names = []
        for _ in range(command.count - (fails and command.count > 1)):
            self.names += 1
            names.append(f"ta-{self.names}")
            self.starting[names[-1]] = command.version_key
        self.do(ev.ContainersStarting(FU, command.version_key, names, command.count))

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), slots=st.integers(1, 3))
    def become_ready(self, data: st.DataObject, slots: int) -> None:
        name = self.pick(data, self.starting)
        version = self.starting.pop(name)
        self.ready[name] = {}
        self.do(ev.WorkerReady(name, FU, version, slots))

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), how=st.sampled_from(["failed", "init", "pending", "placed"]))
    def start_trouble(self, data: st.DataObject, how: str) -> None:
        name = self.pick(data, self.starting)
        if how == "pending" or how == "placed":
            self.do(ev.ContainerPending(name, "no node has 1 GPU" if how == "pending" else ""))
            return
        if how == "init":
            self.do(ev.WorkerInitFailed(name, b"ImportError"))
        del self.starting[name]
        self.do(ev.ContainerFailed(name, "exit code 1"))

    def holders(self) -> list[str]:
        return [x for x, held in self.ready.items() if held]

    @precondition(lambda self: self.holders())
    @rule(data=st.data(), status=st.sampled_from([0, 0, 0, 1, 4]), busy=st.floats(0, 3))
    def return_outputs(self, data: st.DataObject, status: int, busy: float) -> None:
        name = self.pick(data, self.holders())
        held = self.ready[name]
        count = data.draw(st.integers(1, len(held)))
        batch = list(held)[:count]
        for lease in batch:
            call_id, index = held.pop(lease)
            if status and index not in self.delivered[call_id]:
                self.failed[call_id, index] += 1
                # One attempt, and one more under the versions that retry.
                assert self.failed[call_id, index] <= 2, "retried too often"
        if status:
            self.faulty.add("retry")
        self.now += busy
        outputs = [(x, status, b"out", 0) for x in batch]
        self.do(ev.OutputsReturned(name, outputs, busy))
        self.do(ev.OutputsReturned(name, outputs, busy))

    @precondition(lambda self: self.holders())
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        name = self.pick(data, self.holders())
        leases = list(self.ready[name])[1:]
        for lease in leases:
            del self.ready[name][lease]
        self.faulty.add("back")
        self.do(ev.InputsGivenBack(name, leases))

    @precondition(lambda self: self.holders())
    @rule(data=st.data(), data_slots=st.integers(1, 3))
    def preempt(self, data: st.DataObject, data_slots: int) -> None:
        name = self.pick(data, self.holders())
        leases = list(self.ready[name])
        self.ready[name].clear()
        self.ending.add(name)
        self.faulty.add("preempted")
        self.do(ev.WorkerDraining(name))
        self.do(ev.InputsGivenBack(name, leases[:data_slots], True))
        self.do(ev.InputsGivenBack(name, leases[data_slots:]))

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        name = self.pick(data, self.ready)
        if self.ready[name]:
            self.faulty.add("lost")
        del self.ready[name]
        self.do(ev.WorkerLost(name, "killed"))
        self.do(ev.ContainerFailed(name, "killed"))

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def worker_drains(self, data: st.DataObject) -> None:
        name = self.pick(data, self.ready)
        self.ending.add(name)
        self.do(ev.WorkerDraining(name))

    @precondition(lambda self: self.ending)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = self.pick(data, self.ending)
        self.ending.discard(name)
        self.starting.pop(name, None)
        if self.ready.pop(name, None):
            self.faulty.add("lost")
        self.do(ev.WorkerLost(name, "drained"))

    @rule()
    def redeploy(self) -> None:
        self.version += 1
        self.deploy()

    @rule(limit=st.integers(1, MAX))
    def update_autoscaler(self, limit: int) -> None:
        # The window in which more containers than the new limit may be there, on their way out.
        self.limit = limit
        self.lowering = True
        self.deploy()
        self.lowering = False
        asked = sum(self.engine._pools[FU].requested.values())
        alive = sum(x.state in ("starting", "ready") for x in self.engine.containers())
        assert alive + asked <= max(limit, asked), "more containers than the new limit, and none told to end"

    @rule(seconds=st.sampled_from([0.01, 0.06, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.faulty.add("time")
        end = self.now + seconds
        for _ in range(100):
            wake = self.engine.next_wakeup()
            if wake is None or wake > end:
                break
            self.now = max(self.now, wake)
            self.do(ev.Tick())
        self.now = end

    # ---- promises

    @invariant()
    def once_and_no_more(self) -> None:
        for call_id, counter in self.delivered.items():
            assert set(counter) <= self.accepted[call_id]
            assert all(n <= self.allowed[call_id][i] for i, n in counter.items()), "delivered twice"

    @invariant()
    def nothing_lost(self) -> None:
        engine = self.engine
        pool = engine._pools[FU]
        waiting = Counter(
            (x.call.call_id, x.index)
            for group in (
                pool.queue,
                [d[2] for d in pool.delayed],
                *[c.leases.values() for c in pool.containers.values()],
            )
            for x in group
            if x.call is not None
        )
        expected = {
            (call_id, index)
            for call_id in self.open_calls()
            for index in self.accepted[call_id] - set(self.delivered[call_id])
        }
        assert set(waiting) == expected
        assert all(n == 1 for n in waiting.values())

    @invariant()
    def books_agree(self) -> None:
        pool = self.engine._pools[FU]
        ready = [c for c in pool.containers.values() if c.state == "ready"]
        assert pool.leased == sum(len(c.leases) for c in ready)
        assert pool.busy == sum(bool(c.leases) for c in ready)
        assert pool.counts == {
            s: sum(c.state == s for c in pool.containers.values())
            for s in ("starting", "ready", "draining", "stopping")
        }
        assert not set(pool.free) & set(pool.room)
        for c in pool.containers.values():
            assert len(c.leases) <= max(c.slots * 256, 1024)
            assert (c.container_id in pool.free) == (c.state == "ready" and len(c.leases) < c.slots)
        assert not (pool.queue and (pool.free or pool.room)), "inputs wait while there is credit"
        for call in self.engine._calls.values():
            assert call.pending == len(call.pending_inputs())
        if pool.queue:
            assert self.engine.next_wakeup() is not None, "a queue with nobody to look after it"

    def teardown(self) -> None:
        """Heal all faults: each accepted input gets its output, and closing the calls frees everything."""
        for _ in range(2000):
            if self.asked:
                self.answer_start(False)
            for name in sorted(self.ending):
                held = self.ready.get(name)
                if name in self.ready and held:
                    continue
                self.ending.discard(name)
                self.starting.pop(name, None)
                self.ready.pop(name, None)
                self.do(ev.WorkerLost(name, "drained"))
            for name in sorted(self.starting):
                if name not in self.ending:
                    version = self.starting.pop(name)
                    self.ready[name] = {}
                    self.do(ev.WorkerReady(name, FU, version, 1))
            for name in self.holders():
                batch = list(self.ready[name])
                self.ready[name].clear()
                self.do(ev.OutputsReturned(name, [(x, 0, b"out", 0) for x in batch], 0.01))
            if all(set(self.delivered[x]) == self.accepted[x] for x in self.open_calls()):
                break
            wake = self.engine.next_wakeup()
            self.now = self.now if wake is None else max(self.now, wake)
            self.do(ev.Tick())
        for call_id in self.open_calls():
            assert set(self.delivered[call_id]) == self.accepted[call_id], "an input was lost"
        self.once_and_no_more()
        for call_id in self.open_calls():
            self.do(ev.CallClosed(call_id))
        assert not self.engine._calls and not self.engine._owners and not self.engine._sink
        assert self.engine.stats().backlog == 0
        assert len(self.engine._timers) < 200
        self.scale_to_zero()

    def scale_to_zero(self) -> None:
        """With nothing left to do all containers end, and every slot was given back."""
        self.do(ev.FunctionAdded(FU, dataclasses.replace(self.policy(), min_containers=0)))
        for _ in range(200):
            if self.asked:
                self.answer_start(False)
            for name in sorted(self.starting):
                if name not in self.ending:
                    version = self.starting.pop(name)
                    self.ready[name] = {}
                    self.do(ev.WorkerReady(name, FU, version, 1))
            for name in self.holders():
                batch = list(self.ready[name])
                self.ready[name].clear()
                self.do(ev.OutputsReturned(name, [(x, 0, b"out", 0) for x in batch], 0.01))
            for name in sorted(self.ending):
                self.ending.discard(name)
                self.starting.pop(name, None)
                self.ready.pop(name, None)
                self.do(ev.WorkerLost(name, "drained"))
            if not self.engine._containers and not self.asked:
                break
            wake = self.engine.next_wakeup()
            if wake is None and self.asked:
                continue
            assert wake is not None, "containers that nobody looks after"
            self.now = max(self.now, wake)
            self.do(ev.Tick())
        pool = self.engine._pools[FU]
        assert not pool.containers and not pool.requested and not self.engine._containers
        assert not pool.free and not pool.room and pool.leased == pool.busy == 0, "a slot leaked"


TestCallEngine = EngineMachine.TestCase
TestCallEngine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
