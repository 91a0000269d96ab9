"""Generators in the call engine: single histories, in the order in which they happen."""

from __future__ import annotations

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.wire.window import WINDOW_BYTES, WINDOW_ITEMS, ReadWindow, SendWindow

FU = "fu-1"


class Bench:
    """One Function with ready containers, one call of one generator input."""

    def __init__(self, durable: bool = False) -> None:
        self.engine = CallEngine()
        self.do(ev.FunctionAdded(FU, ev.FunctionPolicy("v1")))
        self.durable = durable
        self.lease = 0
        self.ready("ta-1")
        self.submit()

    def do(self, event: ev.Event) -> list[ev.Command]:
        commands = self.engine.handle(event, 0.0)
        for command in commands:
            if isinstance(command, ev.Lease):
                self.lease = command.inputs[0][0]
        return commands

    def ready(self, name: str) -> None:
        self.do(ev.WorkerReady(name, FU, "v1"))

    def submit(self) -> list[ev.Command]:
        return self.do(ev.InputsSubmitted("fc-1", FU, self.durable, "cl-1", [(0, b"in", 0)]))

    def produce(self, first: int, count: int, name: str = "ta-1") -> list[ev.Command]:
        items = [(b"%d" % n, 0) for n in range(first, first + count)]
        return self.do(ev.ItemsProduced(name, self.lease, first, items))


def numbers(command: ev.Command) -> list[int]:
    assert isinstance(command, ev.DeliverItems)
    assert [int(x[0]) for x in command.items] == list(
        range(command.first, command.first + len(command.items))
    )
    return [int(x[0]) for x in command.items]


def test_items_are_passed_on_and_progress_comes_back() -> None:
    bench = Bench()
    (deliver,) = bench.produce(0, 3)
    assert numbers(deliver) == [0, 1, 2]
    assert bench.do(ev.ItemsTaken("fc-1", 0, 2)) == [ev.GrantItems("ta-1", bench.lease, 2)]
    assert bench.do(ev.ItemsTaken("fc-1", 0, 2)) == []
    assert bench.do(ev.ItemsTaken("fc-1", 0, 1)) == []


def test_a_reader_who_comes_back_gets_what_it_has_not_taken() -> None:
    bench = Bench()
    bench.produce(0, 5)
    bench.do(ev.ItemsTaken("fc-1", 0, 3))
    (deliver,) = bench.submit()
    assert numbers(deliver) == [3, 4]
    done = bench.do(ev.OutputsReturned("ta-1", [(bench.lease, 0, b"5", 0)], 0.1))
    assert any(isinstance(x, ev.Deliver) for x in done)
    again = bench.submit()
    assert numbers(again[0]) == [3, 4] and isinstance(again[1], ev.Deliver)


def test_a_second_run_is_told_where_its_reader_is_and_known_items_are_dropped() -> None:
    bench = Bench()
    bench.produce(0, 5)
    bench.do(ev.ItemsTaken("fc-1", 0, 2))
    bench.ready("ta-2")
    bench.do(ev.WorkerLost("ta-1", "killed"))
    grant, deliver = bench.produce(0, 7, "ta-2")
    assert grant == ev.GrantItems("ta-2", bench.lease, 2)
    assert numbers(deliver) == [5, 6]
    assert bench.do(ev.ItemsTaken("fc-1", 0, 7)) == [ev.GrantItems("ta-2", bench.lease, 7)]


def test_a_new_dispatcher_takes_the_readers_word() -> None:
    bench = Bench()
    bench.do(ev.ItemsTaken("fc-1", 0, 100))
    grant = bench.produce(0, 10)
    assert grant == [ev.GrantItems("ta-1", bench.lease, 100)]
    (deliver,) = bench.produce(100, 1)
    assert numbers(deliver) == [100]


def test_a_gap_ends_the_input() -> None:
    bench = Bench()
    bench.produce(0, 2)
    commands = bench.produce(5, 1)
    assert ev.CancelLeases("ta-1", [bench.lease]) in commands
    (deliver,) = [x for x in commands if isinstance(x, ev.Deliver)]
    assert deliver.outputs[0][1] == ev.INTERNAL and b"item 2" in deliver.outputs[0][2]


def test_items_of_strangers_are_ignored() -> None:
    bench = Bench()
    assert bench.do(ev.ItemsProduced("ta-9", bench.lease, 0, [(b"0", 0)])) == []
    assert bench.do(ev.ItemsProduced("ta-1", 12345, 0, [(b"0", 0)])) == []
    assert bench.do(ev.ItemsTaken("fc-9", 0, 1)) == []
    assert bench.do(ev.ItemsTaken("fc-1", 9, 1)) == []


def test_closing_cancels_the_lease_and_forgets_the_items() -> None:
    bench = Bench()
    bench.produce(0, 5)
    assert ev.CancelLeases("ta-1", [bench.lease]) in bench.do(ev.CallClosed("fc-1"))
    assert bench.produce(5, 1) == []
    assert bench.engine.stats().calls == 0


def test_the_window_of_the_worker() -> None:
    window = SendWindow()
    for number in range(WINDOW_ITEMS):
        assert window.open() and window.send(10) == number
    assert not window.open()
    window.took(1)
    assert window.open()
    # Told of more than it has made: what is known already is neither sent nor counted.
    window.took(WINDOW_ITEMS + 5)
    assert [window.send(1) for _ in range(6)] == [None] * 5 + [WINDOW_ITEMS + 5]
    large = SendWindow()
    assert large.send(WINDOW_BYTES * 3) == 0
    assert not large.open()
    large.took(1)
    assert large.open()


def test_the_window_of_the_reader() -> None:
    window = ReadWindow()
    assert window.receive(0, [(b"a", 0), (b"b", 0)])
    assert not window.receive(0, [(b"a", 0)]) and not window.receive(3, [(b"d", 0)])
    assert window.receive(1, [(b"b", 0), (b"c", 0)])
    assert [window.take()[0] for _ in range(3)] == [b"a", b"b", b"c"] and not window
    assert window.to_tell() is None
    # A blob may be as large as the whole window.
    window.receive(3, [(b"x" * 64, 1)])
    window.take()
    assert window.to_tell() == 4 and window.to_tell() is None
