"""When a schedule is due next: a pure function of the schedule and the time."""

from __future__ import annotations

import calendar
import math
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from .exception import InvalidError
from .wire.crontab import plain
from .wire.spec import ScheduleSpec

_LONGEST_MONTH = 31
_DAY_SECONDS = 86400.0
_SET_BACK_WITHIN = 3 * 3600.0


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


def is_repeated(spec: ScheduleSpec, at: float) -> bool:
    """Say whether a crontab line came true an hour ago already, before the clocks were set back to now.

    Nomad launches a job at such a time once more; a line that names its hours and minutes is due once.

    Args:
        spec: the schedule.
        at: when it was launched, in seconds since 1970.
    """
    moment = datetime.fromtimestamp(at, ZoneInfo(spec.timezone))
    if not spec.cron or not moment.fold or moment.second or moment.microsecond or _goes_by_hours(spec.cron):
        return False
    first = moment.replace(fold=0).timestamp()
    return next_run(spec, first - 1, first) == first


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

    def after_on_the_wall(moment: datetime) -> Iterator[datetime]:
        return CronSim(plain(spec.cron), moment.replace(tzinfo=None, fold=0))

    moment = datetime.fromtimestamp(after, zone)
    try:
        if not _goes_by_hours(spec.cron):
            return next(t for x in after_on_the_wall(moment) if (t := _once(x, zone)) > after)
        found = next(t for x in after_on_the_wall(moment) for t in _all(x, zone) if t > after)
        set_back = _set_back(after, zone)
        if set_back is None:
            return found
        # The clocks say again what they have said; from there, too, something may be due before that.
        again = datetime.fromtimestamp(set_back, zone)
        wall = next(after_on_the_wall(again - timedelta(seconds=1)))
        return min(found, set_back + (wall - again.replace(tzinfo=None)).total_seconds())
    except CronSimError as error:
        raise InvalidError(
            f"Cron {spec.cron!r} cannot be read ({error}): give minute, hour, day of the month, month, "
            "day of the week"
        ) from None
    except StopIteration:
        raise InvalidError(f"Cron {spec.cron!r} never comes true: no such date is in the calendar") from None


def _goes_by_hours(line: str) -> bool:
    """Say whether a line means so many minutes or hours after one another, whatever the clocks say."""
    return any(field.startswith("*") for field in plain(line).split()[:2])


def _all(wall: datetime, zone: ZoneInfo) -> list[float]:
    """Return when the clocks say this: never, once, or twice."""
    found = sorted({wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1)})
    return [t for t in found if datetime.fromtimestamp(t, zone).replace(tzinfo=None) == wall]


def _once(wall: datetime, zone: ZoneInfo) -> float:
    """Return when the clocks say this for the first time, or when they leave it out."""
    found = _all(wall, zone)
    if found:
        return found[0]
    times = [wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1)]
    return _change(min(times), max(times), zone)


def _set_back(after: float, zone: ZoneInfo) -> float | None:
    """Return when the clocks are set back within hours, or None."""
    until = after + _SET_BACK_WITHIN
    return _change(after, until, zone) if _offset(until, zone) < _offset(after, zone) else None


def _change(low: float, high: float, zone: ZoneInfo) -> float:
    """Return the first second of another offset than the one before."""
    before = _offset(low, zone)
    first, last = int(low), math.ceil(high)
    while last - first > 1:
        middle = (first + last) // 2
        if _offset(middle, zone) == before:
            first = middle
        else:
            last = middle
    return float(last)


def _offset(at: float, zone: ZoneInfo) -> timedelta:
    return datetime.fromtimestamp(at, zone).utcoffset() or timedelta()


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
