"""The two kinds of WebSocket peers, seen from the dispatcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modal_nomad.dispatcher._codec import encode
from modal_nomad.dispatcher._peer import Peer
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.wire import frames


class Session:
    """A peer that has said hello."""

    def __init__(self, peer: Peer, identity: Identity) -> None:
        self.peer = peer
        self.identity = identity
        self.send = peer.send

    def send_frame(self, header: frames.Header, payloads: Sequence[bytes] = ()) -> None:
        """Encode and send a frame."""
        self.send(encode(header, payloads))


class ClientSession(Session):
    """A caller: an SDK process, or a container that calls Functions.

    Attributes:
        owner: the client's id, made unique by its container for callers inside one.
        caller: whose calls these are for the call engine: the container, or the client outside of one.
    """

    def __init__(self, peer: Peer, identity: Identity, owner: str) -> None:
        super().__init__(peer, identity)
        self.owner = owner
        self.caller = identity.container or owner


class WorkerSession(Session):
    """A container's worker.

    Attributes:
        of_class: it runs a class, so that inputs must say their method.
    """

    def __init__(self, peer: Peer, identity: Identity, container_id: str) -> None:
        super().__init__(peer, identity)
        self.container_id = container_id
        self.said_bye = False
        self.of_class = False


def integers(value: Any, count: int | None = None) -> list[int]:
    """Return a list of integers from a frame's header. Raises FrameError."""
    if type(value) is not list or (count is not None and len(value) != count):
        raise frames.FrameError("a list of numbers is missing or has the wrong length")
    for item in value:
        if type(item) is not int:
            raise frames.FrameError("a list of numbers holds something else")
    return value


def text(value: Any) -> str:
    """Return a string from a frame's header. Raises FrameError."""
    if type(value) is not str:
        raise frames.FrameError("a string is missing")
    return value
