"""What the call engine commands, as frames: inputs to workers, outputs and items to clients."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._codec import encode, encode_one
from modal_nomad.wire import frames


def run_frames(
    inputs: Sequence[ev.LeasedInput], spawned: Container[str], method_of: Callable[[str], str] | None
) -> list[bytes]:
    """Return the frames that have a worker run leased inputs.

    Args:
        inputs: what is leased.
        spawned: the ids of durable calls.
        method_of: tells the method that a call names, for containers of classes.
    """
    if len(inputs) == 1 and not spawned and method_of is None:
        lease, call_id, index, payload, flags = inputs[0]
        one: frames.Header = {"t": "run", "x": [lease], "c": [call_id], "n": [index]}
        if flags:
            one["f"] = [flags]
        return [encode_one(one, payload)]
    found = []
    for start, end in _cut([item[3] for item in inputs]):
        part = inputs[start:end]
        header: frames.Header = {
            "t": "run",
            "x": [r[0] for r in part],
            "c": [r[1] for r in part],
            "n": [r[2] for r in part],
        }
        if spawned and any(r[1] in spawned for r in part):
            header["f"] = [r[4] | frames.FLAG_SPAWNED * (r[1] in spawned) for r in part]
        elif any(r[4] for r in part):
            header["f"] = [r[4] for r in part]
        if method_of is not None:
            header["m"] = [method_of(r[1]) for r in part]
        found.append(encode(header, [r[3] for r in part]))
    return found


def output_frames(command: ev.Deliver) -> list[bytes]:
    """Return the frames that give a client outputs of its call."""
    outputs = command.outputs
    if len(outputs) == 1:
        index, status, payload, flags = outputs[0]
        one: frames.Header = {"t": "out", "c": command.call_id, "x": [index]}
        if status:
            one["s"] = [status]
        if flags:
            one["f"] = [flags]
        return [encode_one(one, payload)]
    found = []
    for start, end in _cut([o[2] for o in outputs]):
        part = outputs[start:end]
        header: frames.Header = {"t": "out", "c": command.call_id, "x": [o[0] for o in part]}
        if any(o[1] for o in part):
            header["s"] = [o[1] for o in part]
        if any(o[3] for o in part):
            header["f"] = [o[3] for o in part]
        found.append(encode(header, [o[2] for o in part]))
    return found


def item_frames(command: ev.DeliverItems) -> Iterator[bytes]:
    """Yield the frames that give a client what a generator yielded."""
    items = command.items
    for start, end in _cut([item[0] for item in items]):
        part = items[start:end]
        header: frames.Header = {
            "t": "gen",
            "c": command.call_id,
            "x": command.index,
            "q": command.first + start,
        }
        if any(item[1] for item in part):
            header["f"] = [item[1] for item in part]
        yield encode(header, [item[0] for item in part])


def _cut(payloads: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return ranges whose payloads fit in a frame together."""
    total = sum(map(len, payloads))
    if total <= frames.MAX_FRAME_BYTES // 2:
        return [(0, len(payloads))]
    ranges, start, size = [], 0, 0
    for position, payload in enumerate(payloads):
        if size and size + len(payload) > frames.MAX_FRAME_BYTES // 2:
            ranges.append((start, position))
            start, size = position, 0
        size += len(payload)
    ranges.append((start, len(payloads)))
    return ranges
