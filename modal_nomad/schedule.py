"""When a deployed Function is called by itself."""

from __future__ import annotations

import math
from typing import Any

from .exception import InvalidError
from .wire.spec import ScheduleSpec

LEAST_SECONDS = 1.0


class Schedule:
    """What ``@app.function(schedule=...)`` takes: a `Cron` or a `Period`.

    It is followed once the App is deployed, until it is stopped or deployed without it; ``modal-nomad run``
    and ``app.run()`` follow none.
    """

    __slots__ = ("_spec",)

    def __init__(self, spec: ScheduleSpec) -> None:
        if type(self) is Schedule:
            raise InvalidError(
                "Schedule has no constructor; say modal.Cron('0 6 * * *') or modal.Period(days=1)"
            )
        self._spec = spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._spec == other._spec

    def __hash__(self) -> int:
        return hash(self._spec)


class Cron(Schedule):
    """Calls a Function when the clock says so, in the five fields of a crontab.

    Args:
        cron_string: minute, hour, day of the month, month, day of the week: ``"0 9 * * 4"`` is every
            Thursday at nine.
        timezone: whose clock, as ``"Europe/Berlin"``.
        prohibit_overlap: leave a run out as long as the one before it has not ended.

    Raises:
        InvalidError: when the text is no crontab line, never comes true, or there is no such time zone.

    Example:
        >>> @app.function(schedule=Cron("0 6 * * *", timezone="Europe/Berlin"))
        ... def every_morning() -> None: ...
    """

    __slots__ = ()

    def __init__(self, cron_string: str, timezone: str = "UTC", *, prohibit_overlap: bool = False) -> None:
        for name, value in (("cron_string", cron_string), ("timezone", timezone)):
            if not isinstance(value, str) or not value.strip():
                raise InvalidError(f"{name} of Cron is {value!r}; give a text such as Cron('0 6 * * *')")
        spec = ScheduleSpec(
            cron=" ".join(cron_string.split()), timezone=timezone, prohibit_overlap=bool(prohibit_overlap)
        )
        _check_cron(spec)
        super().__init__(spec)

    def __repr__(self) -> str:
        zone = "" if self._spec.timezone == "UTC" else f", timezone={self._spec.timezone!r}"
        return f"Cron({self._spec.cron!r}{zone})"


class Period(Schedule):
    """Calls a Function again and again, after the same time; the first time one period after the deployment.

    Months and years follow the calendar: a period of a month keeps to the day of the month, or takes the
    month's last. Deploying again with the same period does not begin it anew.

    Args:
        years: calendar years.
        months: calendar months.
        weeks: weeks.
        days: days.
        hours: hours.
        minutes: minutes.
        seconds: seconds, also parts of them.
        prohibit_overlap: leave a run out as long as the one before it has not ended.

    Raises:
        InvalidError: when a number is negative or not whole, or all of it is less than a second.

    Example:
        >>> @app.function(schedule=Period(hours=4))
        ... def several_times_a_day() -> None: ...
    """

    __slots__ = ()

    def __init__(
        self,
        years: int = 0,
        months: int = 0,
        weeks: int = 0,
        days: int = 0,
        hours: int = 0,
        minutes: int = 0,
        seconds: float = 0,
        *,
        prohibit_overlap: bool = False,
    ) -> None:
        parts: dict[str, Any] = {
            "years": years,
            "months": months,
            "weeks": weeks,
            "days": days,
            "hours": hours,
            "minutes": minutes,
        }
        for name, value in parts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InvalidError(f"{name} of Period is {value!r}; give a whole number, 0 or more")
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not number or not math.isfinite(seconds) or seconds < 0:
            raise InvalidError(f"seconds of Period is {seconds!r}; give a number, 0 or more")
        spec = ScheduleSpec(
            months=years * 12 + months,
            days=weeks * 7 + days,
            seconds=hours * 3600 + minutes * 60 + float(seconds),
            prohibit_overlap=bool(prohibit_overlap),
        )
        if not (spec.months or spec.days) and spec.seconds < LEAST_SECONDS:
            raise InvalidError("the Period is shorter than a second; say Period(minutes=5)")
        if spec.months > 1200 or spec.days > 36525 or spec.seconds > 36525 * 86400:
            raise InvalidError("the Period is longer than a century; say Period(days=1)")
        super().__init__(spec)

    def __repr__(self) -> str:
        spec = self._spec
        parts = (("months", spec.months), ("days", spec.days), ("seconds", spec.seconds))
        return f"Period({', '.join(f'{name}={value:g}' for name, value in parts if value)})"


def _check_cron(spec: ScheduleSpec) -> None:
    from importlib.util import find_spec

    if find_spec("cronsim") is None:
        # In a container, which has nothing but the runtime: it was checked where it was published.
        return
    from ._schedule_times import next_run

    next_run(spec, 0.0, 0.0)


def schedule_spec(value: Any) -> ScheduleSpec | None:
    """Return what ``schedule=`` stands for. Raises InvalidError."""
    if value is None:
        return None
    if not isinstance(value, Schedule):
        raise InvalidError(f"schedule is {value!r}; give modal.Cron('0 6 * * *') or modal.Period(days=1)")
    return value._spec
