"""When a crontab line comes true, held against the clocks themselves, minute by minute, where they change."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modal_nomad._schedule_times import is_repeated, next_run
from modal_nomad.wire.spec import ScheduleSpec

WINDOW = 30 * 3600
MINUTES = ("*", "*/15", "*/7", "0", "30", "15,45", "5-10", "59")
HOURS = ("*", "*/2", "0", "1", "2", "1-3", "23", "0,12")
DAYS = ("*", "1", "25-31", "29")
WEEKDAYS = ("*", "0", "1-5")
LINES = st.tuples(*map(st.sampled_from, (MINUTES, HOURS, DAYS, ("*",), WEEKDAYS))).map(" ".join)
# Forth and back: by an hour and by half of one, in the night and at midnight; and a zone without any.
CHANGES = (
    ("Europe/Berlin", "2026-03-29T01:00"),
    ("Europe/Berlin", "2026-10-25T01:00"),
    ("America/New_York", "2026-11-01T06:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("America/Sao_Paulo", "2018-11-04T03:00"),
    ("America/Sao_Paulo", "2018-02-18T02:00"),
    ("Africa/Cairo", "2025-04-24T22:00"),
    ("Africa/Cairo", "2025-10-30T21:00"),
    ("UTC", "2026-03-29T01:00"),
)


def numbers(field: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        base, _, step = part.partition("/")
        first, _, last = (f"{low}-{high}" if base == "*" else base).partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def by_the_clocks(line: str, zone: ZoneInfo, after: float, until: float) -> int | None:
    """Look at each minute that passes.

    A line of fixed hours and minutes comes true once, at the first of two times that the clocks say alike,
    and right after what they leave out. One with a star goes by what the clocks say, as often as they say it.
    """
    minute, hour, day, _, weekday = line.split()
    minutes, hours = numbers(minute, 0, 59), numbers(hour, 0, 23)
    days, weekdays = numbers(day, 1, 31), numbers(weekday, 0, 6)
    fixed = "*" not in minute[0] + hour[0]

    def true_at(wall: datetime) -> bool:
        of_month, of_week = wall.day in days, wall.isoweekday() % 7 in weekdays
        either = day != "*" and weekday != "*"
        right_day = (of_month or of_week) if either else (of_month and of_week)
        return wall.minute in minutes and wall.hour in hours and right_day

    before = datetime.fromtimestamp(int(after) // 60 * 60, zone)
    for at in range((int(after) // 60 + 1) * 60, int(until) + 1, 60):
        now = datetime.fromtimestamp(at, zone)
        if true_at(now) and not (fixed and now.fold):
            return at
        left_out = before.replace(tzinfo=None) + timedelta(minutes=1)
        while fixed and left_out < now.replace(tzinfo=None):
            if true_at(left_out):
                return at
            left_out += timedelta(minutes=1)
        before = now
    return None


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


@given(LINES, st.sampled_from(CHANGES), st.integers(-200 * 60, 200 * 60))
# In the second of two like hours a time of the first one was given: the past.
@example("30 23 * * 1-5", ("Africa/Cairo", "2025-10-30T21:00"), 8 * 60 + 8)
# A line with a star came true at an hour that it does not name, the first one of a day that has no midnight.
@example("* 0,12 29 * 0", ("America/Sao_Paulo", "2018-11-04T03:00"), -28 * 60)
def test_a_line_comes_true_by_the_clocks(line: str, change: tuple[str, str], seconds: int) -> None:
    name, text = change
    after = moment(text) + seconds
    found = next_run(ScheduleSpec(cron=line, timezone=name), after, 0.0)
    expected = by_the_clocks(line, ZoneInfo(name), after, after + WINDOW)
    assert found == expected if expected is not None else found > after + WINDOW


@given(LINES, st.sampled_from(CHANGES), st.integers(-(10**5), 10**5), st.integers(0, 10**5))
def test_a_later_look_finds_no_earlier_run(
    line: str, change: tuple[str, str], seconds: int, later: int
) -> None:
    spec = ScheduleSpec(cron=line, timezone=change[0])
    after = moment(change[1]) + seconds
    assert after < next_run(spec, after, 0.0) <= next_run(spec, after + later, 0.0)


@pytest.mark.parametrize(
    ("line", "text", "repeated"),
    [
        ("30 2 * * *", "2026-10-25T00:30", False),
        ("30 2 * * *", "2026-10-25T01:30", True),
        # By hand, or of another time.
        ("30 2 * * *", "2026-10-25T01:30:01", False),
        ("30 2 * * *", "2026-10-25T01:31", False),
        ("30 2 * * *", "2026-10-26T01:30", False),
        ("*/30 * * * *", "2026-10-25T01:30", False),
    ],
)
def test_what_nomad_launches_twice_is_known(line: str, text: str, repeated: bool) -> None:
    assert is_repeated(ScheduleSpec(cron=line, timezone="Europe/Berlin"), moment(text)) is repeated
    assert not is_repeated(ScheduleSpec(days=1), moment(text))
