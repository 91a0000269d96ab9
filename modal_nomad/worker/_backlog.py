"""What was leased to a container and has not begun: taken in, cancelled, given back."""

import time
from collections import deque
from itertools import repeat
from typing import Any, Callable, Deque, Dict, List

from ..wire import frames
from ._ending import FOREVER
from ._outbox import Outbox, Work, stopped
from ._session import Session

# A cancellation that meets its input between the queue and the lane is tried again this long.
_CANCEL_WITHIN = 5.0
_MOST_WITHIN = 0.1
_SOON, _LATER = 0.005, 0.1


class Backlog:
    """The inputs that wait in this container. The reader thread adds to it, lanes take from it.

    Args:
        session: the connection.
        sync: has what user code printed sent before what follows.

    Attributes:
        queue: the inputs, first come first.
        draining: no more inputs are taken.
    """

    def __init__(self, session: Session, sync: Callable[[], None]) -> None:
        self.queue: Deque[Work] = deque()
        self.draining = False
        self._session = session
        self._sync = sync
        self._said_drain = False
        self._to_cancel: Dict[Any, float] = {}

    def add(self, header: Dict[str, Any], payloads: List[bytes]) -> int:
        """Take the inputs of a frame in; return how many."""
        leases = header["x"]
        flags = header.get("f") or [0] * len(leases)
        methods = header.get("m") or repeat("")
        works = zip(leases, header["c"], header["n"], flags, payloads, methods)  # noqa: B905 (not on 3.9)
        self.queue.extend(works)
        return len(leases)

    def take(self) -> List[Work]:
        """Empty the queue."""
        taken: List[Work] = []
        try:
            while True:
                taken.append(self.queue.popleft())
        except IndexError:
            return taken

    def give_back(self, leases: List[Any]) -> None:
        """Give leases back of which nothing ran."""
        if leases:
            self._session.send({"t": "back", "x": leases})

    def give_back_queued(self) -> None:
        """Give back all that waits."""
        self.give_back([work[0] for work in self.take()])

    def give_back_begun(self, leases: List[Any]) -> None:
        """Give leases back that user code had begun with."""
        if leases:
            # In this order: else they would be leased to this very container again.
            self.say_drain()
            self._session.send({"t": "back", "x": leases, "b": 1})

    def say_drain(self) -> None:
        """Have the dispatcher lease no more to this container."""
        if not self._said_drain:
            self._said_drain = self.draining = True
            self._session.send({"t": "drain"})

    def cancel(self, leases: List[Any], pool: Any) -> None:
        """Cancel inputs: those that wait at once, of those that run ``pool`` knows.

        Args:
            leases: of the inputs.
            pool: what runs inputs; None while there is nothing yet.
        """
        wanted = set(leases)
        keep = []
        outbox = Outbox(self._session, self._sync)
        for work in self.take():
            if work[0] in wanted:
                wanted.discard(work[0])
                outbox.items.append(stopped(work[0], frames.TERMINATED, 0))
            else:
                keep.append(work)
        outbox.flush(sync_logs=False)
        if pool is None:
            return
        if keep:
            self.queue.extend(keep)
            pool.wake(len(keep))
        until = time.monotonic() + _CANCEL_WITHIN
        for lease in wanted:
            if not pool.cancel(lease):
                self._to_cancel[lease] = until

    def cancel_again(self, now: float, pool: Any) -> float:
        """Try again what ``cancel`` did not find; gives the seconds until the next attempt."""
        for lease, until in list(self._to_cancel.items()):
            if pool.cancel(lease) or now > until:
                del self._to_cancel[lease]
        if not self._to_cancel:
            return FOREVER
        newest = max(self._to_cancel.values()) - _CANCEL_WITHIN
        return _SOON if now < newest + _MOST_WITHIN else _LATER
