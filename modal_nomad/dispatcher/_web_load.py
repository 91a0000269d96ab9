"""Requests to web endpoints, as the call engine sees them: a load that containers are started for.

They never stand in a queue here: the gateway holds those that wait, and sends them to containers itself.
"""

from __future__ import annotations

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._streams import Streams
from modal_nomad.dispatcher.autoscaler import STALL_SECONDS


class WebLoad(Streams):
    """The part of the engine that takes the gateway's word."""

    def _web_load(self, event: ev.WebLoad) -> None:
        pool = self._pools.get(event.function_id)
        if pool is None or pool.removed is not None:
            return
        now = self._now
        if event.waiting and not pool.web_waiting and not pool.queue:
            pool.stall_from = now
            pool.stall_next = now + STALL_SECONDS
            if not pool.containers:
                pool.not_before = 0.0
        pool.web_waiting = event.waiting
        if event.finished:
            pool.learn(event.finished, event.seconds)
            pool.stall_from = now
        touched = []
        total = 0
        for container in pool.containers.values():
            count = event.running.get(container.container_id, 0)
            total += count
            if count == container.web:
                continue
            if container.web and not count:
                container.idle_since = now
                touched.append(container)
                if pool.policy.single_use and container.state == "ready":
                    self._drain(container, "a container of this Function ends after one request")
            container.web = count
        pool.web_running = total
        self._react(pool, touched)
