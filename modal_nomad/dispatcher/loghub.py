"""Containers' output and progress, passed on to whoever follows an App, and kept for who comes later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from modal_nomad.dispatcher._codec import encode

Send = Callable[[bytes], None]

KEPT_BYTES = 4 << 20
"""Bytes of output kept per App; the engine's own log files hold more."""


_WAITS = ("starting", "pending")


class LogHub:
    """Followers and recent output, by App."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[bytes]] = {}
        self._sizes: dict[str, int] = {}
        self._followers: dict[str, set[Send]] = {}
        self._waiting: dict[str, dict[str, bytes]] = {}

    def log(self, app_id: str, function: str, container: str, stream: int, ts: float, text: bytes) -> None:
        """Take a piece of a container's output."""
        header = {"t": "log", "a": app_id, "f": function, "k": container, "s": stream, "ts": ts}
        frame = encode(header, [text])
        kept = self._kept.setdefault(app_id, deque())
        kept.append(frame)
        size = self._sizes.get(app_id, 0) + len(frame)
        while size > KEPT_BYTES:
            size -= len(kept.popleft())
        self._sizes[app_id] = size
        self._pass_on(app_id, frame)

    def event(self, app_id: str, function: str, container: str, what: str, reason: str = "") -> None:
        """Tell followers what became of a container or of the App, and later ones why it waits still."""
        header: dict[str, Any] = {
            "t": "ev",
            "a": app_id,
            "f": function,
            "k": container,
            "e": what,
            "r": reason,
        }
        frame = encode(header)
        if what in _WAITS:
            self._waiting.setdefault(app_id, {})[container] = frame
        elif app_id in self._waiting:
            self._waiting[app_id].pop(container, None)
            if not self._waiting[app_id]:
                del self._waiting[app_id]
        self._pass_on(app_id, frame)

    def follow(self, app_id: str, send: Send, *, backlog: bool) -> None:
        """Pass an App's output on to ``send`` from now on, what is kept first when asked to.

        What containers wait for is said in any case: who follows a moment late would never hear of it.
        """
        for frame in self._waiting.get(app_id, {}).values():
            send(frame)
        if backlog:
            for frame in self._kept.get(app_id, ()):
                send(frame)
            header = {"t": "ev", "a": app_id, "f": "", "k": "", "e": "backlog_end", "r": ""}
            send(encode(header))
        self._followers.setdefault(app_id, set()).add(send)

    def unfollow(self, send: Send) -> None:
        """Forget a follower everywhere."""
        for app_id in [a for a, s in self._followers.items() if send in s]:
            self._followers[app_id].discard(send)
            if not self._followers[app_id]:
                del self._followers[app_id]

    def apps(self) -> list[str]:
        """Return the Apps of which anything is kept."""
        return list(self._kept)

    def forget(self, app_id: str) -> None:
        """Drop what is kept of an App."""
        self._kept.pop(app_id, None)
        self._sizes.pop(app_id, None)
        self._waiting.pop(app_id, None)

    def _pass_on(self, app_id: str, frame: bytes) -> None:
        for send in tuple(self._followers.get(app_id, ())):
            send(frame)
