"""Prometheus metrics, computed when asked for: the hot path counts nothing for them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modal_nomad.dispatcher.core import Dispatcher


class DispatcherCollector(Collector):
    """Reads the call engine's own counters."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def collect(self) -> Iterator[Metric]:
        stats = self._dispatcher.calls.stats()
        for name, value, words in (
            ("inputs_accepted", stats.inputs_accepted, "Inputs accepted"),
            ("outputs_delivered", stats.outputs_delivered, "Outputs delivered"),
            ("input_retries", stats.retries, "Inputs run again by their retry policy"),
            ("input_losses", stats.losses, "Inputs whose container was lost under them"),
            ("containers_started", stats.containers_started, "Containers asked for"),
        ):
            yield CounterMetricFamily(f"modal_nomad_{name}", words, value=value)
        for name, value, words in (
            ("functions", stats.functions, "Functions that may be called"),
            ("calls", stats.calls, "Calls in progress"),
            ("clients", len(self._dispatcher.clients), "Connected clients"),
        ):
            yield GaugeMetricFamily(f"modal_nomad_{name}", words, value=value)
        yield from self._pools()

    def _pools(self) -> Iterator[Metric]:
        labels = ["app_id", "function"]
        backlog = GaugeMetricFamily("modal_nomad_backlog", "Inputs that wait for a container", labels=labels)
        running = GaugeMetricFamily("modal_nomad_running", "Inputs that run", labels=labels)
        containers = GaugeMetricFamily("modal_nomad_containers", "Containers", labels=[*labels, "state"])
        functions = self._dispatcher.functions
        for pool in self._dispatcher.calls.pools():
            state = functions.get(pool.function_id)
            if state is None:
                continue
            where = [state.app_id, state.name]
            backlog.add_metric(where, pool.backlog)
            running.add_metric(where, pool.running)
            for name in ("starting", "idle", "busy", "draining"):
                containers.add_metric([*where, name], getattr(pool, name))
        yield backlog
        yield running
        yield containers
