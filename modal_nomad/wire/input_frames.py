"""Inputs of a call as frames, of a size that others need not wait behind."""

from typing import TYPE_CHECKING, Iterable, List, Tuple

from . import frames

if TYPE_CHECKING:
    from .connection import Call

Input = Tuple[int, bytes, int]
"""Index, payload, flags."""

_BATCH_INPUTS = 128
_BATCH_BYTES = 4 << 20


def batches(inputs: List[Input]) -> Iterable[List[Input]]:
    """Cut inputs into what goes into one frame each."""
    if len(inputs) == 1:
        return [inputs]
    return _cut(inputs)


def _cut(inputs: List[Input]) -> Iterable[List[Input]]:
    batch: List[Input] = []
    size = 0
    for item in inputs:
        batch.append(item)
        size += len(item[1])
        if len(batch) >= _BATCH_INPUTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def waited_frame(call: "Call", inputs: List[Input]) -> bytes:
    """Return a frame with inputs of a call that its client waits for, and what it has had of it since."""
    if len(inputs) == 1 and not call.acks:
        index, payload, flags = inputs[0]
        if not flags and not call.parent and not call.method:
            # Ids have nothing in them that JSON escapes.
            ids = f'"c":"{call.call_id}","f":"{call.function_id}"'
            return frames.encode_head(f'{{"t":"in",{ids},"x":[{index}],"z":[{len(payload)}]}}', payload)
    header: frames.Header = {"t": "in", "c": call.call_id, "f": call.function_id}
    if call.acks:
        header["k"], call.acks = call.acks, []
    return inputs_frame(header, call, inputs)


def inputs_frame(header: frames.Header, call: "Call", inputs: List[Input]) -> bytes:
    """Return a frame that brings inputs of a call to the dispatcher."""
    header["x"] = [item[0] for item in inputs]
    if any(item[2] for item in inputs):
        header["g"] = [item[2] for item in inputs]
    if call.parent:
        header["p"] = call.parent
    if call.method:
        header["m"] = call.method
    return frames.encode_flat(header, [item[1] for item in inputs])
