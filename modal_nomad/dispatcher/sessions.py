"""The two kinds of WebSocket peers, seen from the dispatcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modal_nomad.dispatcher._codec import encode
from modal_nomad.dispatcher._peer import Peer
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.wire import frames

MAX_NUMBER = 1 << 53
_MAX_FLAGS = 255


class Session:
    """A peer that has said hello."""

    def __init__(self, peer: Peer, identity: Identity) -> None:
        self.peer = peer
        self.identity = identity
        self.send = peer.send

    def send_frame(self, header: frames.Header, payloads: Sequence[bytes] = ()) -> None:
        """Encode and send a frame."""
        self.send(encode(header, payloads))


class KeptAnswers:
    """Which answers the store keeps for a client, for it may ask for them again.

    Args:
        again: it may have been given some up to this number over an earlier connection.
    """

    def __init__(self, again: int = 0) -> None:
        self._again = again
        # In the order in which they came, which is nearly that of their numbers.
        self._kept: dict[int, None] = {}
        self._confirmed: list[int] = []

    def __bool__(self) -> bool:
        return self._again > 0 or bool(self._kept)

    def keep(self, number: int) -> None:
        """Note that the answer to a request is kept."""
        self._kept[number] = None

    def confirm(self, numbers: Sequence[int]) -> None:
        """Note that the client has the answers to some requests."""
        self._confirmed += [x for x in numbers if x in self._kept or x <= self._again]

    def confirmed(self, below: int) -> tuple[int, ...]:
        """Return which are needed no more besides all below a number, once; they are removed then."""
        found = tuple(x for x in self._confirmed if x >= below)
        self._confirmed.clear()
        kept = self._kept
        for number in found:
            kept.pop(number, None)
        while kept and (first := next(iter(kept))) < below:
            del kept[first]
        return found


class ClientSession(Session):
    """A caller: an SDK process, or a container that calls Functions.

    Attributes:
        owner: the client's id, made unique by its container for callers inside one.
        caller: whose calls these are for the call engine: the container, or the client outside of one.
        again: requests with numbers up to this one may have come before, over an earlier connection.
        answers: which answers are kept for it.
        said_bye: its program has come to its end.
    """

    def __init__(self, peer: Peer, identity: Identity, owner: str, again: int = 0) -> None:
        super().__init__(peer, identity)
        self.again = again
        self.answers = KeptAnswers(again)
        self.said_bye = False
        self.owner = owner
        self.caller = identity.container or owner


class WorkerSession(Session):
    """A container's worker.

    Attributes:
        of_class: it runs a class, so that inputs must say their method.
        parks: its allocation stays when the container has ended, for the memory snapshot in it.
        scope: the only environments that it may touch; none means all.
    """

    def __init__(self, peer: Peer, identity: Identity, container_id: str) -> None:
        super().__init__(peer, identity)
        self.container_id = container_id
        self.said_bye = False
        self.parks = False
        self.scope: Sequence[str] = ()
        self.of_class = False


def integers(value: Any, count: int | None = None) -> list[int]:
    """Return a list of integers from a frame's header. Raises FrameError."""
    if type(value) is not list or (count is not None and len(value) != count):
        raise frames.FrameError("a list of numbers is missing or has the wrong length")
    for item in value:
        if type(item) is not int:
            raise frames.FrameError("a list of numbers holds something else")
    if value and (min(value) < 0 or max(value) > MAX_NUMBER):
        raise frames.FrameError("a number is negative or beyond 2**53")
    return value


def statuses(value: Any, count: int) -> list[int]:
    """Return the statuses of outputs; all are success when the header has none. Raises FrameError."""
    if value is None:
        return [frames.SUCCESS] * count
    if max(integers(value, count), default=0) > frames.INTERNAL:
        raise frames.FrameError("an output has a status that there is not")
    return list(value)


def flags(value: Any, count: int) -> list[int]:
    """Return the flags of payloads; none are set when the header has none. Raises FrameError."""
    if value is None:
        return [0] * count
    if max(integers(value, count), default=0) > _MAX_FLAGS:
        raise frames.FrameError("a payload has flags that there are not")
    return list(value)


def text(value: Any) -> str:
    """Return a string from a frame's header. Raises FrameError."""
    if type(value) is not str:
        raise frames.FrameError("a string is missing")
    return value
