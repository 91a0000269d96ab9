"""A call's inputs and outputs, as the call engine holds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from modal_nomad.dispatcher._events import Output

if TYPE_CHECKING:
    from modal_nomad.dispatcher._streams import Stream


class Input:
    """One input on its way. ``call`` is None once nobody wants its output any more."""

    __slots__ = ("attempts", "call", "flags", "index", "losses", "payload")

    def __init__(self, call: Call, index: int, payload: bytes, flags: int) -> None:
        self.call: Call | None = call
        self.index = index
        self.payload = payload
        self.flags = flags
        self.losses = 0
        self.attempts = 0


class Call:
    """One function call: per index either the input that is pending or its output, until it is forgotten.

    Forgotten indexes are remembered as a low-water mark and the set of those above it, so that a
    caller who acknowledges roughly in order costs no memory.
    """

    __slots__ = (
        "call_id",
        "closed",
        "done_said",
        "durable",
        "entries",
        "forgotten",
        "function_id",
        "last",
        "low",
        "method",
        "owner",
        "pending",
        "streams",
    )

    def __init__(
        self, call_id: str, function_id: str, durable: bool, owner: str | None, method: str = ""
    ) -> None:
        self.call_id = call_id
        self.function_id = function_id
        self.durable = durable
        self.owner = owner
        self.method = method
        self.entries: dict[int, Input | Output] = {}
        self.low = 0
        self.forgotten: set[int] = set()
        self.pending = 0
        self.last = False
        self.done_said = False
        self.closed = False
        self.streams: dict[int, Stream] | None = None

    def forget(self, indexes: Iterable[int]) -> None:
        """Drop the outputs of these indexes and remember that they are done; pending ones stay."""
        entries, forgotten, low = self.entries, self.forgotten, self.low
        for index in indexes:
            if type(entries.get(index)) is Input:
                continue
            entries.pop(index, None)
            if self.streams is not None:
                self.streams.pop(index, None)
            if index == low:
                low += 1
                while low in forgotten:
                    forgotten.remove(low)
                    low += 1
            elif index > low:
                forgotten.add(index)
        self.low = low

    def outputs(self) -> list[Output]:
        """The outputs still held, in order of index."""
        return sorted(x for x in self.entries.values() if type(x) is tuple)

    def pending_inputs(self) -> list[Input]:
        """The inputs without output, in order of submission."""
        return [x for x in self.entries.values() if type(x) is Input]
