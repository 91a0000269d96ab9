"""What generators yield, on its way from a worker to the reader; a part of the call engine.

Only what its reader has not taken is held, and the worker stops at the edge of its window
(``wire.window``): a slow reader costs a window, not a list. After a lost container the input runs again
from its start, and what is known by its number is dropped.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._call import Call, Input
from modal_nomad.dispatcher._upkeep import Upkeep


class Stream:
    """One generator input: the items that were yielded and not taken.

    Attributes:
        items: in order; the last one has number ``next - 1``.
        next: the first number that has not come yet.
        container_id: where it ran when the last item came.
        lease: under which lease.
    """

    __slots__ = ("container_id", "items", "lease", "next")

    def __init__(self) -> None:
        self.items: deque[ev.Item] = deque()
        self.next = 0
        self.container_id = ""
        self.lease = 0

    @property
    def taken(self) -> int:
        """How many items the reader has."""
        return self.next - len(self.items)


class Streams(Upkeep):
    """The call engine's part that concerns generators."""

    def _items_produced(self, event: ev.ItemsProduced) -> None:
        container = self._containers.get(event.container_id)
        item = container.leases.get(event.lease) if container is not None else None
        if item is None or item.call is None:
            return
        call = item.call
        stream = _stream(call, item.index)
        if stream.lease != event.lease:
            stream.lease, stream.container_id = event.lease, event.container_id
            if stream.taken:
                # A second run: it may go on to where its reader is.
                self._grant(stream)
        if event.first > stream.next:
            text = f"item {stream.next} of a generator is missing: {event.first} came"
            self._finish(item, ev.INTERNAL, text.encode())
            self._out.append(ev.CancelLeases(event.container_id, [event.lease]))
            return
        first = stream.next
        fresh = list(event.items[first - event.first :])
        if fresh:
            stream.items.extend(fresh)
            stream.next += len(fresh)
            self._out.append(ev.DeliverItems(call.call_id, item.index, first, fresh))

    def _items_taken(self, event: ev.ItemsTaken) -> None:
        call = self._calls.get(event.call_id)
        entry = call.entries.get(event.index) if call is not None else None
        if call is None or entry is None:
            return
        stream = _stream(call, event.index)
        news = event.count - stream.taken
        if news <= 0:
            return
        if event.count >= stream.next:
            # Its reader had them from an earlier run, before this process lived.
            stream.items.clear()
            stream.next = event.count
        else:
            for _ in range(news):
                stream.items.popleft()
        if stream.lease and type(entry) is Input:
            self._grant(stream)

    def _grant(self, stream: Stream) -> None:
        self._out.append(ev.GrantItems(stream.container_id, stream.lease, stream.taken))

    def _deliver_items_again(self, call: Call) -> None:
        for index, stream in (call.streams or {}).items():
            if stream.items:
                items = list(islice(stream.items, None))
                self._out.append(ev.DeliverItems(call.call_id, index, stream.taken, items))


def _stream(call: Call, index: int) -> Stream:
    if call.streams is None:
        call.streams = {}
    stream = call.streams.get(index)
    if stream is None:
        stream = call.streams[index] = Stream()
    return stream
