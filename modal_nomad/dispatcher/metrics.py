"""Prometheus metrics, computed when asked for: the hot path counts nothing for them."""

from __future__ import annotations

from collections import Counter
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
        # Variants of a Function have pools of their own and one name: a series must not be said twice.
        backlogs: Counter[tuple[str, ...]] = Counter()
        busy: Counter[tuple[str, ...]] = Counter()
        states: Counter[tuple[str, ...]] = Counter()
        functions = self._dispatcher.functions
        for pool in self._dispatcher.calls.pools():
            state = functions.get(pool.function_id)
            if state is None:
                continue
            where = (state.app_id, state.label)
            backlogs[where] += pool.backlog
            busy[where] += pool.running
            for name in ("starting", "idle", "busy", "draining"):
                key = (*where, name)
                states[key] += getattr(pool, name)
        labels = ["app_id", "function"]
        for name, values, words, more in (
            ("backlog", backlogs, "Inputs that wait for a container", ()),
            ("running", busy, "Inputs that run", ()),
            ("containers", states, "Containers", ("state",)),
        ):
            family = GaugeMetricFamily(f"modal_nomad_{name}", words, labels=[*labels, *more])
            for where_of, value in values.items():
                family.add_metric(list(where_of), value)
            yield family
