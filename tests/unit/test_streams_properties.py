"""Random histories of generators with faults: every item once and in order, and nothing left behind."""

from __future__ import annotations

from collections import deque

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._call import Call
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.wire.frames import FLAG_BLOB
from modal_nomad.wire.window import ReadWindow, SendWindow

FU = "fu-1"
ITEMS, BYTES = 8, 40


def size_of(number: int) -> int:
    return (3, 1, 17, 50, 2)[number % 5]


class Run:
    """One lease in one worker: a generator that may be ahead of its reader by a window."""

    def __init__(self, call_id: str, length: int) -> None:
        self.call_id = call_id
        self.length = length
        self.window = SendWindow(ITEMS, BYTES)


class Reader:
    """A client's end of one call."""

    def __init__(self, length: int, durable: bool) -> None:
        self.length = length
        self.durable = durable
        self.window = ReadWindow(ITEMS, BYTES)
        self.read: list[int] = []
        self.end: int | None = None


class StreamMachine(RuleBasedStateMachine):
    """Plays rim, workers and readers; messages to workers and readers are delayed at will."""

    def __init__(self) -> None:
        super().__init__()
        self.first_lease = 1
        self.names = self.calls = 0
        self.readers: dict[str, Reader] = {}
        self.workers: dict[str, dict[int, Run]] = {}
        self.to_worker: deque[ev.Command] = deque()
        self.to_reader: deque[ev.Command] = deque()
        self.asked = 0
        self.boot()

    def boot(self) -> None:
        self.engine = CallEngine(default_max_containers=3, first_lease=self.first_lease)
        self.first_lease += 1_000_000
        self.do(ev.FunctionAdded(FU, ev.FunctionPolicy("v1", max_concurrent_inputs=2)))

    def do(self, event: ev.Event) -> None:
        for command in self.engine.handle(event, 0.0):
            match command:
                case ev.StartContainers(count=count):
                    self.asked += count
                case ev.Lease(name, inputs):
                    for lease, call_id, _, payload, _ in inputs:
                        self.workers[name][lease] = Run(call_id, int(payload))
                case ev.GrantItems() | ev.CancelLeases():
                    self.to_worker.append(command)
                case ev.DeliverItems() | ev.Deliver():
                    self.to_reader.append(command)

    # ---- clients

    @rule(length=st.integers(0, 40), durable=st.booleans())
    def call(self, length: int, durable: bool) -> None:
        self.calls += 1
        self.readers[f"fc-{self.calls}"] = Reader(length, durable)
        self.submit(f"fc-{self.calls}")

    def submit(self, call_id: str) -> None:
        reader = self.readers[call_id]
        owner = None if reader.durable else "cl-1"
        inputs = [(0, b"%d" % reader.length, 0)]
        self.do(ev.InputsSubmitted(call_id, FU, reader.durable, owner, inputs))

    def take(self, call_id: str, count: int) -> None:
        reader = self.readers[call_id]
        while count and reader.window:
            payload, _ = reader.window.take()
            assert len(payload) == size_of(len(reader.read)) + 1
            reader.read.append(len(reader.read))
            count -= 1
            taken = reader.window.to_tell()
            if taken is not None:
                self.do(ev.ItemsTaken(call_id, 0, taken))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), count=st.integers(1, 12))
    def read(self, data: st.DataObject, count: int) -> None:
        self.take(data.draw(st.sampled_from(sorted(self.readers))), count)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def close_early(self, data: st.DataObject) -> None:
        call_id = data.draw(st.sampled_from(sorted(self.readers)))
        self.do(ev.CallCancelled(call_id))
        self.do(ev.CallClosed(call_id))
        del self.readers[call_id]

    @rule()
    def reconnect(self) -> None:
        """The client's socket broke: what was on its way is lost, and it asks again."""
        self.to_reader.clear()
        for call_id, reader in self.readers.items():
            if reader.end is None:
                self.submit(call_id)
                self.do(ev.ItemsTaken(call_id, 0, reader.window.taken))

    @rule(count=st.integers(1, 5))
    def to_readers(self, count: int) -> None:
        while count and self.to_reader:
            count -= 1
            command = self.to_reader.popleft()
            assert isinstance(command, ev.DeliverItems | ev.Deliver)
            reader = self.readers.get(command.call_id)
            if reader is None:
                continue
            if isinstance(command, ev.Deliver):
                reader.end = command.outputs[0][0]
                continue
            reader.window.receive(command.first, command.items)
            if reader.durable:
                self.take(command.call_id, 1000)
                self.do(ev.ItemsTaken(command.call_id, 0, reader.window.taken))

    # ---- workers

    @precondition(lambda self: self.asked)
    @rule()
    def start(self) -> None:
        self.asked -= 1
        self.names += 1
        name = f"ta-{self.names}"
        self.do(ev.ContainersStarting(FU, "v1", [name]))
        self.workers[name] = {}
        self.do(ev.WorkerReady(name, FU, "v1", 2))

    @precondition(lambda self: any(self.workers.values()))
    @rule(data=st.data(), count=st.integers(1, 10))
    def produce(self, data: st.DataObject, count: int) -> None:
        name = data.draw(st.sampled_from(sorted(k for k, v in self.workers.items() if v)))
        lease = data.draw(st.sampled_from(sorted(self.workers[name])))
        self.step(name, lease, count)

    def step(self, name: str, lease: int, count: int) -> bool:
        run = self.workers[name][lease]
        window = run.window
        items: list[ev.Item] = []
        first = -1
        while count and window.next < run.length and window.open():
            size = size_of(window.next)
            number = window.send(size)
            count -= 1
            if number is not None:
                first = number if first < 0 else first
                items.append((b"x" * (size + 1), FLAG_BLOB if size == 50 else 0))
        if items:
            self.do(ev.ItemsProduced(name, lease, first, items))
        if window.next == run.length:
            del self.workers[name][lease]
            self.do(ev.OutputsReturned(name, [(lease, 0, b"%d" % run.length, 0)], 0.1))
            return True
        return bool(items)

    @rule(count=st.integers(1, 5))
    def to_workers(self, count: int) -> None:
        while count and self.to_worker:
            count -= 1
            command = self.to_worker.popleft()
            if isinstance(command, ev.GrantItems):
                run = self.workers.get(command.container_id, {}).get(command.lease)
                if run is not None:
                    run.window.took(command.taken)
            elif isinstance(command, ev.CancelLeases):
                for lease in command.leases:
                    if self.workers.get(command.container_id, {}).pop(lease, None) is not None:
                        output = (lease, ev.TERMINATED, b"", 0)
                        self.do(ev.OutputsReturned(command.container_id, [output], 0.0))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        del self.workers[name]
        self.do(ev.WorkerLost(name, "killed"))

    @rule()
    def restart_dispatcher(self) -> None:
        """SIGKILL: nothing on its way arrives; workers give up what they run, clients ask again."""
        self.to_worker.clear()
        self.to_reader.clear()
        self.asked = 0
        self.boot()
        for name in list(self.workers):
            self.workers[name] = {}
            self.do(ev.WorkerReady(name, FU, "v1", 2))
        self.reconnect()

    # ---- what always holds

    def held(self) -> list[Call]:
        return list(self.engine._calls.values())

    @invariant()
    def a_slow_reader_costs_a_window(self) -> None:
        for call in self.held():
            for stream in (call.streams or {}).values():
                assert len(stream.items) <= ITEMS
                assert sum(len(x[0]) - 1 for x in list(stream.items)[:-1]) < BYTES

    @invariant()
    def items_come_once_and_in_order(self) -> None:
        for reader in self.readers.values():
            assert reader.read == list(range(len(reader.read)))
            assert len(reader.read) <= reader.length

    def teardown(self) -> None:
        for _ in range(10_000):
            busy = bool(self.to_worker or self.to_reader)
            self.to_workers(1000)
            self.to_readers(1000)
            while self.asked:
                self.start()
                busy = True
            for name in list(self.workers):
                for lease in list(self.workers[name]):
                    busy |= self.step(name, lease, 1000)
            for call_id in list(self.readers):
                before = len(self.readers[call_id].read)
                self.take(call_id, 1000)
                busy |= len(self.readers[call_id].read) > before
            if not busy:
                break
        for call_id, reader in self.readers.items():
            assert reader.end is not None, f"{call_id} never ended"
            assert len(reader.read) == reader.length
            if reader.durable:
                self.do(ev.OutputsStored(call_id, [0]))
            self.do(ev.CallClosed(call_id))
        assert not any(self.workers.values()), "a slot was leaked"
        assert self.engine.stats().calls == 0 and self.engine.stats().running == 0


StreamMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestStreams = StreamMachine.TestCase
