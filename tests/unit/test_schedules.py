"""Schedules: what may be written, when they are due, and that no run is lost or made twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modal_nomad as modal
from modal_nomad._schedule_times import next_run
from modal_nomad.dispatcher._containers import FunctionState
from modal_nomad.dispatcher.schedules import Schedules
from modal_nomad.dispatcher.store import FunctionRecord, SqliteStore, StoreError
from modal_nomad.dispatcher.store.base import StoredOutput
from modal_nomad.engines.base import Engine
from modal_nomad.exception import InvalidError
from modal_nomad.render import RenderSettings, render_function, schedule_job, schedule_job_id
from modal_nomad.schedule import Schedule
from modal_nomad.wire.crontab import plain
from modal_nomad.wire.frames import SUCCESS
from modal_nomad.wire.spec import FunctionSpec, ScheduleSpec

DAY = 86400.0


def spec(schedule: Schedule) -> ScheduleSpec:
    return schedule._spec


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def told(moment: float, zone: str = "UTC") -> str:
    return datetime.fromtimestamp(moment, ZoneInfo(zone)).isoformat(sep=" ")[:16]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: modal.Cron("x"), "five fields"),
        (lambda: modal.Cron("* * * * * *"), "five fields"),
        (lambda: modal.Cron("61 * * * *"), "Bad minute"),
        (lambda: modal.Cron("0 0 30 2 *"), "Bad day-of-month"),
        (lambda: modal.Cron(""), "text"),
        (lambda: modal.Cron(5), "text"),
        (lambda: modal.Cron("* * * * *", "Mars/Olympus"), "time zone"),
        (lambda: modal.Cron("* * * * *", "../../etc/passwd"), "time zone"),
        (lambda: modal.Period(), "shorter than a second"),
        (lambda: modal.Period(seconds=0.2), "shorter than a second"),
        (lambda: modal.Period(days=1.5), "whole number"),
        (lambda: modal.Period(hours=-1), "whole number"),
        (lambda: modal.Period(seconds=float("nan")), "number"),
        (lambda: modal.Period(years=2000), "century"),
        (lambda: Schedule(ScheduleSpec()), "no constructor"),
    ],
)
def test_what_is_no_schedule_is_refused(make: Any, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        make()


def test_a_scheduled_function_needs_no_arguments() -> None:
    app = modal.App("a")

    @app.function(schedule=modal.Period(days=1), serialized=True)
    def fine(x: int = 1, *more: int, **others: int) -> None: ...

    with pytest.raises(InvalidError, match="give each a default"):

        @app.function(schedule=modal.Period(days=1), serialized=True)
        def needs(x: int) -> None: ...

    with pytest.raises(InvalidError, match="yields"):

        @app.function(schedule=modal.Cron("* * * * *"), serialized=True)
        def yields():  # type: ignore[no-untyped-def]
            yield 1

    with pytest.raises(InvalidError, match=r"modal\.Cron"):
        app.function(schedule="* * * * *")(fine.get_raw_f())


def test_positions_and_equality() -> None:
    assert modal.Period(1, 2, 3, 4, 5, 6, 7.5) == modal.Period(
        years=1, months=2, weeks=3, days=4, hours=5, minutes=6, seconds=7.5
    )
    assert modal.Period(days=7) == modal.Period(weeks=1) != modal.Period(days=8)
    assert repr(modal.Cron(" 0  6 * * * ", timezone="Europe/Berlin")) == (
        "Cron('0 6 * * *', timezone='Europe/Berlin')"
    )


@pytest.mark.parametrize(
    ("line", "zone", "after", "due"),
    [
        ("5 4 * * *", "UTC", "2024-01-01 00:00", "2024-01-01 04:05"),
        ("0 9 * * 4", "UTC", "2024-01-01 00:00", "2024-01-04 09:00"),
        ("0 6 * * *", "America/New_York", "2024-07-01 06:00", "2024-07-02 06:00"),
        # The clock goes from 2 to 3: what was to be at half past two comes at three.
        ("30 2 * * *", "Europe/Berlin", "2024-03-31 00:00", "2024-03-31 03:00"),
        ("0 0 29 2 *", "UTC", "2023-01-01 00:00", "2024-02-29 00:00"),
    ],
)
def test_when_a_crontab_line_comes_true(line: str, zone: str, after: str, due: str) -> None:
    assert told(next_run(spec(modal.Cron(line, zone)), at(after, zone), 0.0), zone) == due


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("0 6 * * *", "0 6 * * *"),
        ("*/60 */24 * * *", "0 0 * * *"),
        ("5/61,1-10/70 * * * *", "5,1 * * * *"),
        ("0 0 */2 * MON", "0 0 1-31/2 * MON"),
        ("0 0 1 */13 */2", "0 0 1 1 0-6/2"),
        ("0 0 13 * */1", "0 0 13 * *"),
        ("0 0 * * 1,5-7", "0 0 * * 1,0,5,6"),
        ("0 0 * * 0-7/2", "0 0 * * 0,2,4,6"),
        ("*/0 0 * * 5-7/0", "*/0 0 * * 5-7/0"),
    ],
)
def test_lines_that_are_read_in_two_ways_are_said_in_one(line: str, same: str) -> None:
    assert plain(line) == same == plain(same)


def test_either_of_two_days_will_do() -> None:
    # 2026-11-22 is a Sunday; the next Tuesday is before the next 1st.
    after = datetime(2026, 11, 22, tzinfo=ZoneInfo("UTC")).timestamp()
    due = next_run(ScheduleSpec(cron="0 0 1 * */2"), after, after)
    assert datetime.fromtimestamp(due, ZoneInfo("UTC")).isoformat() == "2026-11-24T00:00:00+00:00"


def test_months_keep_to_their_day_or_take_the_last_one() -> None:
    anchor = moment = at("2024-01-31 12:00")
    found = []
    for _ in range(5):
        moment = next_run(spec(modal.Period(months=1)), moment, anchor)
        found.append(told(moment)[:10])
    assert found == ["2024-02-29", "2024-03-31", "2024-04-30", "2024-05-31", "2024-06-30"]


PERIODS = st.builds(
    ScheduleSpec,
    months=st.integers(0, 30),
    days=st.integers(0, 40),
    seconds=st.floats(0, 10**6, allow_subnormal=False),
).filter(lambda p: p.months or p.days or p.seconds >= 1)


@given(PERIODS, st.floats(0, 2e9), st.floats(-1e8, 1e9))
def test_the_next_run_is_after_now_and_within_one_period(
    period: ScheduleSpec, anchor: float, later: float
) -> None:
    now = anchor + later
    due = next_run(period, now, anchor)
    longest = (period.months * 31 + period.days) * DAY + period.seconds
    assert max(now, anchor) < due <= max(now, anchor) + longest + 31 * DAY * bool(period.months) + 1e-3
    assert next_run(period, due, anchor) > due


# --- the rim ----------------------------------------------------------------------------------------


class _Engine:
    has_periodic_jobs = False


class _Durable:
    def __init__(self) -> None:
        self.ids: set[str] = set()

    async def result(self, call_id: str, index: int, timeout: float) -> StoredOutput:
        return StoredOutput(index, SUCCESS, b"")


class Rig:
    """Schedules with a clock that the test sets, and calls that it sees."""

    def __init__(self, folder: Path) -> None:
        self.now = at("2024-01-01 00:00")
        self.store = SqliteStore(folder / "store.db")
        self.functions: dict[str, FunctionState] = {}
        self.durable = _Durable()
        self.calls: list[str] = []
        self.news = asyncio.Event()
        self.failures = 0
        self.schedules = self.made()

    def made(self) -> Schedules:
        engine: Engine = _Engine()  # type: ignore[assignment]
        durable: Any = self.durable
        return Schedules(self.store, engine, self.functions, durable, self.submit, lambda: self.now)

    def submit(
        self, call_id: str, function_id: str, items: Any, num_inputs: int | None
    ) -> Coroutine[Any, Any, None]:
        async def take() -> None:
            if self.failures:
                self.failures -= 1
                raise StoreError("the disk is full")
            assert [tuple(item) for item in items] == [(0, items[0][1], 0)] and num_inputs == 1
            if call_id not in self.calls:
                self.calls.append(call_id)
                self.news.set()

        return take()

    async def deploy(self, schedule: Schedule | None, function_id: str = "fu-1") -> FunctionState:
        function = FunctionSpec("a", "f", schedule=spec(schedule) if schedule else None)
        record = FunctionRecord(function_id, "ap-1", "f", "main", 1, function.to_dict(), {"ID": "a-f"})
        before = self.functions.get(function_id)
        state = self.functions[function_id] = FunctionState(record, deployed=True)
        await self.schedules.follow(state, record.job, before, None)
        return state

    async def made_calls(self, count: int) -> None:
        while len(self.calls) < count:
            self.news.clear()
            await self.news.wait()

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for record in list(self.schedules._records.values()):
            if record.next_at <= self.now:
                await self.schedules._due(record)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    await made.store.open()
    yield made
    await made.store.close()


async def test_a_run_at_each_period(rig: Rig) -> None:
    await rig.deploy(modal.Period(minutes=5))
    for _ in range(10):
        await rig.pass_time(60)
    assert len(rig.calls) == 2 == len(set(rig.calls))
    assert rig.schedules.next_of_app("ap-1") == rig.now + 300


async def test_runs_missed_while_nobody_was_there_are_made_up_for_once(rig: Rig) -> None:
    await rig.deploy(modal.Cron("0 * * * *"))
    rig.schedules = rig.made()
    await rig.schedules.resume()
    await rig.pass_time(10 * 3600 + 60)
    assert len(rig.calls) == 1
    assert told(rig.schedules.next_of_app("ap-1") or 0) == "2024-01-01 11:00"


async def test_a_run_that_a_crash_cut_off_is_made_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.deploy(modal.Period(hours=1))
    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "put_schedule", _refuses)
        with pytest.raises(StoreError):
            await rig.pass_time(3600)
    assert len(rig.calls) == 1
    rig.schedules = rig.made()
    await rig.schedules.resume()
    await rig.pass_time(1)
    await rig.pass_time(1)
    assert len(rig.calls) == 1


async def _refuses(*_: Any) -> None:
    raise StoreError("the disk is full")


async def test_a_store_that_fails_delays_a_run_and_loses_none(rig: Rig) -> None:
    await rig.deploy(modal.Period(hours=1))
    rig.failures = 1
    with pytest.raises(StoreError):
        await rig.pass_time(3600)
    await rig.pass_time(5)
    assert len(rig.calls) == 1


async def test_deploying_again_keeps_the_next_run_and_a_changed_schedule_begins_anew(rig: Rig) -> None:
    await rig.deploy(modal.Period(days=1))
    first = rig.schedules.next_of_app("ap-1")
    await rig.pass_time(3600)
    await rig.deploy(modal.Period(days=1))
    assert rig.schedules.next_of_app("ap-1") == first
    await rig.deploy(modal.Period(days=2))
    assert rig.schedules.next_of_app("ap-1") == rig.now + 2 * DAY
    await rig.deploy(None)
    assert rig.schedules.next_of_app("ap-1") is None and await rig.store.schedules() == []


async def test_an_overlap_is_left_out_where_it_is_prohibited(rig: Rig) -> None:
    await rig.deploy(modal.Period(minutes=1, prohibit_overlap=True))
    await rig.pass_time(60)
    rig.durable.ids.add(rig.calls[0])
    await rig.pass_time(60)
    assert len(rig.calls) == 1
    rig.durable.ids.clear()
    await rig.pass_time(60)
    assert len(rig.calls) == 2


async def test_a_stopped_function_is_called_no_more(rig: Rig) -> None:
    state = await rig.deploy(modal.Period(minutes=1))
    del rig.functions["fu-1"]
    await rig.schedules.forget(state, None)
    await rig.pass_time(600)
    assert rig.calls == [] and await rig.store.schedules() == []


@pytest.mark.parametrize("schedule", [None, modal.Period(days=2)])
async def test_what_is_deployed_while_a_run_is_noted_counts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, schedule: Schedule | None
) -> None:
    await rig.deploy(modal.Period(hours=1))
    reached, go = asyncio.Event(), asyncio.Event()
    put = rig.store.put_schedule

    async def slowly(record: Any) -> None:
        # Written in this order; whoever asked hears of it later.
        await put(record)
        reached.set()
        await go.wait()

    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "put_schedule", slowly)
        running = asyncio.ensure_future(rig.pass_time(3600))
        await reached.wait()
    await rig.deploy(schedule)
    go.set()
    await running
    assert len(rig.calls) == 1
    expected = None if schedule is None else rig.now + 2 * DAY
    assert rig.schedules.next_of_app("ap-1") == expected
    assert len(rig.schedules._records) == (schedule is not None)
    assert [x.next_at for x in await rig.store.schedules()] == ([] if expected is None else [expected])


async def test_a_function_that_is_gone_holds_nothing_up(rig: Rig) -> None:
    await rig.deploy(modal.Period(minutes=1))
    del rig.functions["fu-1"]
    await rig.pass_time(600)
    assert rig.calls == [] and rig.schedules._records == {} and await rig.store.schedules() == []


async def test_the_timer_makes_what_is_due(rig: Rig) -> None:
    await rig.deploy(modal.Period(hours=1))
    rig.now += 3600
    timer = asyncio.ensure_future(rig.schedules.run())
    await rig.made_calls(1)
    rig.now += 3600
    await rig.deploy(modal.Period(hours=1))
    await rig.made_calls(2)
    timer.cancel()


async def test_a_clock_that_is_set_back_by_hours_silences_no_schedule(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a machine that woke up in the wrong year and was told the time."""
    away = 10 * 366 * DAY
    rig.now += away
    await rig.deploy(modal.Cron("0 * * * *"))
    await rig.deploy(modal.Period(days=1), "fu-2")
    rig.now -= away
    anew, put, seen = asyncio.Event(), rig.store.put_schedule, []

    async def noted(record: Any) -> None:
        await put(record)
        seen.append(record.function_id)
        if len(seen) == 2:
            anew.set()

    monkeypatch.setattr(rig.store, "put_schedule", noted)
    timer = asyncio.ensure_future(rig.schedules.run())
    await anew.wait()
    timer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await timer
    assert {x.function_id: x.next_at - rig.now for x in await rig.store.schedules()} == {
        "fu-1": 3600.0,
        "fu-2": DAY,
    }


async def test_a_clock_that_is_set_back_a_little_repeats_no_run(rig: Rig) -> None:
    await rig.deploy(modal.Cron("0 6 * * *"))
    await rig.pass_time(6 * 3600 + 1)
    (record,) = rig.schedules._records.values()
    rig.now -= 2 * 3600
    assert not rig.schedules._was_set_back(record)
    rig.now -= 2 * 3600
    assert rig.schedules._was_set_back(record)


async def test_a_launch_of_an_hour_that_the_clocks_repeat_makes_no_second_run(rig: Rig) -> None:
    state = await rig.deploy(modal.Cron("30 2 * * *", timezone="Europe/Berlin"))
    first = int(at("2026-10-25 00:30"))
    rig.now = first + 7200.0
    name = schedule_job_id(state.job_id)
    for launch in (first, first + 3600):
        output = await rig.schedules.launched(f"{name}/periodic-{launch}", state.namespace, 0.0)
        assert output is not None and output.status == SUCCESS
    assert len(rig.calls) == 1


# --- Nomad ------------------------------------------------------------------------------------------


def test_a_crontab_line_is_a_periodic_job_and_a_period_is_none() -> None:
    function = FunctionSpec("a", "f", code_bundle="c" * 64)
    job = render_function(function, RenderSettings(server_url="http://d:1", runtime_sha="r" * 64))
    assert schedule_job(job, spec(modal.Period(days=1))) is None
    made = schedule_job(job, spec(modal.Cron("0 6 * * *", "Europe/Berlin", prohibit_overlap=True)))
    assert made is not None and made["ID"] == "a-f--schedule" and "ParameterizedJob" not in made
    assert made["Periodic"] == {
        "Enabled": True,
        "Specs": ["0 6 * * *"],
        "SpecType": "cron",
        "TimeZone": "Europe/Berlin",
        "ProhibitOverlap": True,
    }
    (task,) = made["TaskGroups"][0]["Tasks"]
    # The runtime, and not the user's code.
    assert [a["RelativeDest"] for a in task["Artifacts"]] == ["local/runtime"]
    assert task["Config"]["args"][-1] == "--launch"
