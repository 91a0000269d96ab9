"""When a schedule is due next: a pure function of the schedule and the time."""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from .exception import InvalidError
from .wire.crontab import plain
from .wire.spec import ScheduleSpec

_LONGEST_MONTH = 31
_DAY_SECONDS = 86400.0


def next_run(spec: ScheduleSpec, after: float, anchor: float) -> float:
    """Return the first time that comes after another one, in seconds since 1970.

    Args:
        spec: the schedule.
        after: seconds since 1970.
        anchor: what a period is counted from; a crontab line has none.

    Raises:
        InvalidError: the crontab line is none, never comes true, or there is no such time zone.
    """
    return _next_cron(spec, after) if spec.cron else _next_period(spec, after, anchor)


def _next_cron(spec: ScheduleSpec, after: float) -> float:
    # Here, for containers have none of it.
    from cronsim import CronSim, CronSimError

    try:
        zone = ZoneInfo(spec.timezone)
    except (OSError, ValueError, KeyError):
        raise InvalidError(
            f"there is no time zone {spec.timezone!r}: give a name such as 'Europe/Berlin' or 'UTC'"
        ) from None
    if len(spec.cron.split()) != 5:
        raise InvalidError(
            f"Cron {spec.cron!r} has not five fields: minute, hour, day of the month, month, day of the week"
        )
    try:
        return next(CronSim(plain(spec.cron), datetime.fromtimestamp(after, zone))).timestamp()
    except CronSimError as error:
        raise InvalidError(
            f"Cron {spec.cron!r} cannot be read ({error}): give minute, hour, day of the month, month, "
            "day of the week"
        ) from None
    except StopIteration:
        raise InvalidError(f"Cron {spec.cron!r} never comes true: no such date is in the calendar") from None


def _next_period(spec: ScheduleSpec, after: float, anchor: float) -> float:
    if after < anchor:
        after = anchor
    longest = (spec.months * _LONGEST_MONTH + spec.days) * _DAY_SECONDS + spec.seconds
    # Never too many; for calendar months at most a few too few.
    count = max(1, int((after - anchor) / longest))
    while (found := _moved(spec, anchor, count)) <= after:
        count += 1
    return found


def _moved(spec: ScheduleSpec, anchor: float, count: int) -> float:
    if not spec.months:
        return anchor + count * (spec.days * _DAY_SECONDS + spec.seconds)
    start = datetime.fromtimestamp(anchor, timezone.utc)
    years, month = divmod(start.month - 1 + spec.months * count, 12)
    year = start.year + years
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    moved = start.replace(year=year, month=month + 1, day=day)
    return (moved + count * timedelta(days=spec.days, seconds=spec.seconds)).timestamp()
