"""Telling how busy Functions are: at once where a request waits, else for all that changed in a while."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from modal_nomad.dispatcher.gateway.balancer import Service
from modal_nomad.dispatcher.gateway.state import Sink

_REPORT_SECONDS = 0.02


class LoadReports:
    """What is to be said of Functions whose load changed.

    Args:
        sink: is told.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[str, Service] = {}
        self._at: asyncio.Handle | None = None

    def touch(self, service: Service, soon: bool = False) -> None:
        """Note that a Function's load changed; ``soon``: in this round of the loop it is said."""
        self._dirty[service.function_id] = service
        if self._at is None:
            self._at = (
                self._loop.call_soon(self.report)
                if soon
                else self._loop.call_later(_REPORT_SECONDS, self.report)
            )
        elif soon and isinstance(self._at, asyncio.TimerHandle):
            self._at.cancel()
            self._at = self._loop.call_soon(self.report)

    def forget(self, function_id: str) -> None:
        """Say nothing of a Function that is served no more."""
        self._dirty.pop(function_id, None)

    def report_all(self, services: Collection[Service]) -> None:
        """Say the load of all that have any: somebody new is there to be told."""
        for service in services:
            if service.waiting or service.load():
                self.touch(service)
        self.report()

    def report(self) -> None:
        """Say the load of every Function whose load changed."""
        self.close()
        dirty, self._dirty = self._dirty, {}
        for function_id, service in dirty.items():
            finished, seconds = service.finished, service.seconds
            service.finished, service.seconds = 0, 0.0
            self._sink.web_load(function_id, len(service.waiting), service.load(), finished, seconds)

    def close(self) -> None:
        """Say nothing more by itself."""
        if self._at is not None:
            self._at.cancel()
            self._at = None
