"""Deployed Functions that the clock calls, on the embedded engine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Live, until

FILE = """
    import modal

    app = modal.App("timed")

    @app.function(schedule=modal.Period(seconds=1))
    def often(name: str = "nobody"):
        print("called for", name)

    @app.function(schedule=modal.Period(seconds=1))
    def fails():
        raise ValueError("no luck today")

    @app.function(schedule=modal.Cron("0 6 1 1 *", timezone="Europe/Berlin"))
    def yearly():
        pass

    @app.local_entrypoint()
    def main():
        print("ran")
"""


def logs_until(live: Live, *wanted: str) -> str:
    """Follow the logs until all is there."""
    started = live.start("-m", "modal_nomad", "app", "logs", "-f", "timed", stderr=subprocess.STDOUT)
    text = ""
    try:
        assert started.stdout is not None
        while not all(x in text for x in wanted):
            line = started.stdout.readline()
            assert line, f"the logs ended after {text!r}"
            text += line
    finally:
        started.kill()
        started.communicate()
    return text


@pytest.fixture
def deployed(own: Live) -> Iterator[Path]:
    path = own.write("timed.py", FILE)
    done = own.cli("deploy", str(path))
    assert done.returncode == 0, done.stderr
    yield path
    own.cli("app", "stop", "timed")


def next_run(live: Live) -> float | None:
    (app,) = (x for x in live.request("app.list")["apps"] if x["name"] == "timed")
    found: float | None = app["next_run"]
    return found


def test_a_deployed_function_is_called_and_its_failures_are_in_the_log(own: Live, deployed: Path) -> None:
    text = logs_until(own, "called for nobody", "ValueError: no luck today")
    # Nothing of the runtime: the frame is the user's.
    assert "/modal_nomad/worker/" not in text


def test_a_restarted_dispatcher_goes_on(own: Live, deployed: Path) -> None:
    first = next_run(own)
    assert first is not None
    own.kill()
    assert until(lambda: (next_run(own) or 0) > first, 60, "the next run")
    logs_until(own, "called for nobody")


def test_app_list_shows_the_next_run(own: Live, deployed: Path) -> None:
    done = own.cli("app", "list")
    assert "Next run" in done.stdout, done.stderr
    (row,) = json.loads(own.cli("app", "list", "--json").stdout)
    assert row["Next run"].startswith("20")


def test_a_stopped_app_is_called_no_more(own: Live, deployed: Path) -> None:
    assert own.cli("app", "stop", "timed").returncode == 0
    assert next_run(own) is None
    assert "Next run" not in own.cli("app", "list").stdout


def test_a_run_follows_no_schedule(live: Live) -> None:
    path = live.write(
        "untimed.py",
        """
        import modal

        app = modal.App("untimed")

        @app.function(schedule=modal.Period(seconds=1))
        def often():
            print("called")

        @app.local_entrypoint()
        def main():
            print("ran", often.remote())
        """,
    )
    done = live.cli("run", str(path))
    assert done.returncode == 0, done.stderr
    assert "ran None" in done.stdout
    assert all(app["next_run"] is None for app in live.request("app.list")["apps"])
