"""The cost of one input in the call engine alone: submit, lease, return, deliver, acknowledge.

No sockets and no workers: a loop plays the client (a window of 1,000 inputs, frames of 50) and the
containers (frames of 50). Prints microseconds per input, the best of some rounds.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc

from modal_nomad.dispatcher._events import (
    CallClosed,
    ContainersStarting,
    Deliver,
    FunctionAdded,
    FunctionPolicy,
    InputsSubmitted,
    Lease,
    OutputsAcked,
    OutputsReturned,
    StartContainers,
    WorkerReady,
)
from modal_nomad.dispatcher.call_engine import CallEngine

FRAME = 50
WINDOW = 1000


def run(total: int, containers: int, acks: bool) -> tuple[float, float, int]:
    """Give microseconds per input in the engine, inputs per lease frame, and events handled."""
    engine = CallEngine(default_max_containers=containers)
    policy = FunctionPolicy("v1", min_containers=containers, max_containers=containers)
    for command in engine.handle(FunctionAdded("fu", policy), 0.0):
        if isinstance(command, StartContainers):
            names = [f"ta-{i}" for i in range(command.count)]
            engine.handle(ContainersStarting("fu", "v1", names), 0.0)
            for name in names:
                engine.handle(WorkerReady(name, "fu", "v1", 1), 0.1)
    clock = time.perf_counter
    spent = 0.0
    now = 1.0
    sent = done = frames = leased = events = 0
    held: dict[str, list[int]] = {}
    payload = b"x" * 64

    def handle(event: object) -> None:
        nonlocal spent, done, frames, leased, events, now
        began = clock()
        commands = engine.handle(event, now)  # type: ignore[arg-type]
        spent += clock() - began
        now += 0.0001
        events += 1
        for command in commands:
            if isinstance(command, Lease):
                frames += 1
                leased += len(command.inputs)
                held.setdefault(command.container_id, []).extend(x[0] for x in command.inputs)
            elif isinstance(command, Deliver):
                done += len(command.outputs)
                if acks:
                    handle(OutputsAcked(command.call_id, [x[0] for x in command.outputs]))

    while done < total:
        while sent < total and sent - done <= WINDOW - FRAME:
            inputs = [(i, payload, 0) for i in range(sent, min(sent + FRAME, total))]
            sent += len(inputs)
            handle(InputsSubmitted("fc", "fu", False, "cl", inputs, sent == total))
        for name in list(held):
            batch, held[name] = held[name][:FRAME], held[name][FRAME:]
            if batch:
                outputs = [(lease, 0, payload, 0) for lease in batch]
                handle(OutputsReturned(name, outputs, len(batch) * 2e-6))
    engine.handle(CallClosed("fc"), now)
    return spent / total * 1e6, leased / frames, events


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for containers in (1, 2, 8, 64):
        for acks in (False, True):
            rows = [run(args.inputs, containers, acks) for _ in range(args.rounds)]
            cost, frame, _ = min(rows)
            words = "with acks" if acks else "no acks  "
            print(f"{containers:3} containers {words} {cost:5.2f} us/input {frame:6.1f} inputs/lease frame")
    tracemalloc.start()
    for total in (20_000, 200_000):
        tracemalloc.reset_peak()
        run(total, 2, True)
        print(f"peak memory at {total} inputs: {tracemalloc.get_traced_memory()[1] / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
