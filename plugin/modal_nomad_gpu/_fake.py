"""Cards out of a file, for machines without one: what the file says is what the driver would say.

The file is JSON and read again whenever it changes::

    {"driver_version": "550.54",
     "mps": true,
     "gpus": [
       {"uuid": "GPU-1", "name": "NVIDIA A100-SXM4-80GB", "memory": 81920,
        "xid": 79, "fault": "", "usage": {"memory_used": 1024, "temperature": 41},
        "mig": [{"uuid": "MIG-1", "profile": "1g.10gb", "memory": 9856}]}]}
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from modal_nomad_gpu._cards import BackendError, Card, Event, Instance, Survey, Usage

_LOOK_SECONDS = 0.1
_NOT_OF_CARD = ("xid", "fault", "usage", "mig")
_NOT_OF_INSTANCE = ("xid", "fault", "usage")


class Fake:
    """A backend that reads a file.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._told: set[Event] = set()
        self._pause = threading.Event()

    def survey(self) -> Survey:
        self._stamp = self._look()
        state = self._read()
        faults: dict[str, str] = {}
        cards = []
        for entry in state.get("gpus", ()):
            mig = entry.get("mig")
            instances = None if mig is None else tuple(_made(Instance, x, _NOT_OF_INSTANCE) for x in mig)
            cards.append(_made(Card, {**entry, "mig": instances}, _NOT_OF_CARD[:-1]))
            for item in (entry, *(mig or ())):
                if item.get("fault"):
                    faults[item["uuid"]] = str(item["fault"])
        return Survey(str(state.get("driver_version", "")), tuple(cards), faults)

    def events(self, seconds: float) -> Sequence[Event]:
        waited = 0.0
        while waited < seconds:
            try:
                news = [event for event in _events(self._read()) if event not in self._told]
            except BackendError:
                news = []
            self._told.update(news)
            if news or self._look() != self._stamp:
                return news
            self._pause.wait(min(_LOOK_SECONDS, seconds))
            waited += _LOOK_SECONDS
        return []

    def usage(self) -> Mapping[str, Usage]:
        found: dict[str, Usage] = {}
        for entry in self._read().get("gpus", ()):
            for item in (entry, *(entry.get("mig") or ())):
                total = {"memory_total": item.get("memory")}
                found[item["uuid"]] = _made(Usage, {**total, **item.get("usage", {})})
        return found

    def mps_ready(self, pipe_directory: str) -> bool:
        try:
            return bool(self._read().get("mps"))
        except BackendError:
            return False

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _read(self) -> Mapping[str, Any]:
        try:
            with open(self._path, encoding="utf-8") as file:
                state = json.load(file)
        except (OSError, ValueError) as error:
            raise BackendError(f"fake = {self._path!r} cannot be read: {error}") from error
        if not isinstance(state, dict):
            raise BackendError(f"fake = {self._path!r} is no JSON object")
        return state


def _events(state: Mapping[str, Any]) -> list[Event]:
    items = [item for entry in state.get("gpus", ()) for item in (entry, *(entry.get("mig") or ()))]
    return [Event(item["uuid"], int(item["xid"])) for item in items if item.get("xid")]


def _made(kind: Any, values: Mapping[str, Any], left_out: Sequence[str] = ()) -> Any:
    try:
        return kind(**{k: v for k, v in values.items() if k not in left_out})
    except TypeError as error:
        raise BackendError(f"the file of fake cards: {error}") from error
