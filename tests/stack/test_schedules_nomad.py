"""A crontab line is a periodic job of a real Nomad, whose launches make the call and end as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import modal_nomad as modal
from modal_nomad._schedule_times import next_run
from modal_nomad.render import RenderSettings, render_function, schedule_job
from modal_nomad.wire.spec import FunctionSpec
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put

FILE = """
import modal

app = modal.App("timed")

@app.function(schedule=modal.Cron("0 6 1 1 *", timezone="Europe/Berlin"))
def yearly():
    print("called by the clock")

@app.function(schedule=modal.Cron("0 6 1 1 *", prohibit_overlap=True))
def fails():
    raise ValueError("no luck today")
"""
WITHOUT = FILE.replace('schedule=modal.Cron("0 6 1 1 *", timezone="Europe/Berlin")', "")
YEARLY, FAILS = "timed-yearly--schedule", "timed-fails--schedule"


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError("it did not come")


def launch(address: str, job: str) -> str:
    """Launch a periodic job by hand; return how its allocation ended."""
    put(address, f"/v1/job/{job}/periodic/force", {})

    def ended() -> str:
        for child in get(address, f"/v1/jobs?prefix={job}/periodic-"):
            for found in get(address, f"/v1/job/{child['ID'].replace('/', '%2F')}/allocations"):
                if found["ClientStatus"] in ("complete", "failed"):
                    return str(found["ClientStatus"])
        return ""

    return str(until(ended))


def test_a_periodic_job_makes_the_call(nomad_address: str, tmp_path: Path) -> None:
    with dispatcher(tmp_path, {"address": nomad_address}, auth="none") as url:
        planned = modal_nomad(tmp_path, url, "deploy", "app.py", "--plan", file=FILE)
        assert YEARLY in planned.stdout, planned.stderr
        done = modal_nomad(tmp_path, url, "deploy", "app.py", file=FILE)
        assert done.returncode == 0, done.stderr
        try:
            job = get(nomad_address, f"/v1/job/{YEARLY}")
            assert job["Periodic"]["TimeZone"] == "Europe/Berlin"
            assert get(nomad_address, f"/v1/job/{FAILS}")["Periodic"]["ProhibitOverlap"] is True
            assert launch(nomad_address, YEARLY) == "complete"
            assert launch(nomad_address, FAILS) == "failed"
            again = modal_nomad(tmp_path, url, "deploy", "app.py", "--plan", file=FILE)
            assert again.returncode == 0, again.stdout
            # Deployed without its schedule, a Function has no such job any more.
            done = modal_nomad(tmp_path, url, "deploy", "app.py", file=WITHOUT)
            assert done.returncode == 0, done.stderr
            assert get(nomad_address, f"/v1/job/{YEARLY}")["Stop"] is True
            assert get(nomad_address, f"/v1/job/{FAILS}")["Stop"] is False
        finally:
            modal_nomad(tmp_path, url, "app", "stop", "timed")
        assert get(nomad_address, f"/v1/job/{FAILS}")["Stop"] is True


def test_the_next_run_that_is_shown_is_nomads(nomad_address: str) -> None:
    days = "0 6 * * 5-7|0 0 */7 * 2|0 0 1 * */2|0 0 13 * */1|0 0 L * *|0 0 * * 5L|0 0 * * 1#2"
    settings = RenderSettings(server_url="http://127.0.0.1:1", runtime_sha="a" * 64)
    for line in ("*/60 * * * *", "1-30/70 * * * *", *days.split("|")):
        for zone in ("UTC", "America/New_York"):
            spec = modal.Cron(line, timezone=zone)._spec
            job = render_function(FunctionSpec("timed", "f"), settings)
            periodic = schedule_job(job, spec)
            assert periodic is not None
            answer = put(nomad_address, f"/v1/job/{periodic['ID']}/plan", {"Job": periodic})
            said = datetime.fromisoformat(answer["NextPeriodicLaunch"].replace("Z", "+00:00")).timestamp()
            # A minute may have begun in between.
            now = time.time()
            assert said in {next_run(spec, at, at) for at in (now - 60, now)}, (line, zone, answer)


def test_who_is_no_launched_job_is_refused(nomad_address: str, tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    with dispatcher(tmp_path, {"address": nomad_address}, auth="none") as url:
        for token in ("", "x", "ey.a.b"):
            request = urllib.request.Request(
                f"{url}/v1/schedules/launch", b"", {"Authorization": f"Bearer {token}"}, method="POST"
            )
            try:
                urllib.request.urlopen(request, timeout=100)
                raise AssertionError("it was let in")
            except urllib.error.HTTPError as error:
                assert error.code == 401
