"""What operators ask a dispatcher over HTTP: whether it is well, and its numbers for Prometheus."""

from __future__ import annotations

import http.client
import socket
from collections import Counter
from pathlib import Path
from typing import Any

from conftest import Live, until
from prometheus_client.parser import text_string_to_metric_families

import modal_nomad as modal


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=100)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(100)
        self.sock.connect(str(self._path))


def get(live: Live, path: str) -> tuple[int, str, str]:
    """Return status, content type and body of an answer."""
    connection = _Unix(live.home / "daemon.sock")
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def samples(live: Live) -> list[Any]:
    status, kind, text = get(live, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=")
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(live: Live, name: str, **labels: str) -> float:
    found = [s.value for s in samples(live) if s.name == name and labels.items() <= s.labels.items()]
    return float(sum(found))


def test_healthz(live: Live) -> None:
    live.status()
    assert get(live, "/healthz")[0] == 200
    assert get(live, "/absent")[0] == 404


def test_the_numbers_move_with_the_work(live: Live) -> None:
    app = modal.App("measured")
    gate = live.folder / "gate"

    @app.function(serialized=True, name="held", max_containers=2)
    def held(x: int) -> int:
        import time

        while not gate.exists():
            time.sleep(0.01)
        return x

    with app.run():
        app_id = str(app.app_id)
        before = {
            name: value(live, name)
            for name in ("modal_nomad_inputs_accepted_total", "modal_nomad_outputs_delivered_total")
        }
        calls = [app["held"].spawn(x) for x in range(5)]
        until(lambda: value(live, "modal_nomad_running", app_id=app_id, function="held") == 2)
        assert value(live, "modal_nomad_backlog", app_id=app_id) == 3
        assert value(live, "modal_nomad_containers", app_id=app_id, state="busy") == 2
        assert value(live, "modal_nomad_clients") >= 1
        gate.touch()
        assert [call.get(timeout=100) for call in calls] == list(range(5))
        for name, was in before.items():
            until(lambda name=name, was=was: value(live, name) >= was + 5, what=name)
        until(lambda: value(live, "modal_nomad_running", app_id=app_id) == 0)


def test_each_series_is_said_once_whatever_variants_there_are(live: Live) -> None:
    app = modal.App("varied")

    @app.cls(serialized=True)
    class Model:
        size: int = modal.parameter(default=0)

        @modal.method()
        def get(self) -> int:
            return self.size

    with app.run():
        assert [Model(size=n).get.remote() for n in (1, 2)] == [1, 2]  # type: ignore[call-arg]
        series = Counter((s.name, *sorted(s.labels.items())) for s in samples(live))
        assert [name for name, count in series.items() if count > 1] == []
        up = value(live, "modal_nomad_containers", app_id=str(app.app_id), function="Model")
        assert up >= 2
