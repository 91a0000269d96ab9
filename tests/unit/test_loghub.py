"""Containers' output and progress: who follows an App hears all that matters, however late."""

from __future__ import annotations

from typing import Any

from modal_nomad.dispatcher._codec import decode
from modal_nomad.dispatcher.loghub import LogHub


def heard(hub: LogHub, *, backlog: bool = False) -> list[tuple[str, str, str]]:
    """Follow the App; return the events that come at once."""
    found: list[dict[str, Any]] = []
    hub.follow("ap-1", lambda frame: found.append(decode(frame)[0]), backlog=backlog)
    return [(x["k"], x["e"], x["r"]) for x in found if x["t"] == "ev" and x["e"] != "backlog_end"]


def test_who_follows_late_hears_what_containers_wait_for() -> None:
    hub = LogHub()
    hub.event("ap-1", "f", "ta-1", "starting")
    assert heard(hub) == [("ta-1", "starting", "")]
    hub.event("ap-1", "f", "ta-1", "pending", "no node fits")
    hub.event("ap-1", "f", "ta-2", "starting")
    hub.event("ap-2", "g", "ta-3", "pending", "another App's")
    said = [("ta-1", "pending", "no node fits"), ("ta-2", "starting", "")]
    assert heard(hub) == heard(hub, backlog=True) == said
    hub.event("ap-1", "f", "ta-1", "ready")
    hub.event("ap-1", "f", "ta-2", "ended", "out of memory")
    assert heard(hub) == []


def test_a_forgotten_app_waits_for_nothing() -> None:
    hub = LogHub()
    hub.event("ap-1", "f", "ta-1", "pending", "no node fits")
    hub.forget("ap-1")
    assert heard(hub) == []


def test_followers_hear_events_as_they_come() -> None:
    hub, found = LogHub(), []
    hub.follow("ap-1", lambda frame: found.append(decode(frame)[0]["e"]), backlog=False)
    for what in ("starting", "pending", "ready", "ended", "app_stopped"):
        hub.event("ap-1", "f", "ta-1", what)
    assert found == ["starting", "pending", "ready", "ended", "app_stopped"]
