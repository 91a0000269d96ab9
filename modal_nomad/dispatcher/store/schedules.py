"""The contract of a store for schedules: what is due next, so that a restart forgets none."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from modal_nomad.wire.spec import ScheduleSpec


@dataclass(frozen=True)
class ScheduleRecord:
    """A schedule that is followed.

    Attributes:
        function_id: what it calls.
        spec: when.
        anchor: seconds since 1970 that a period is counted from.
        next_at: when it is due.
        last_call: the id of the call that it made last, or empty.
    """

    function_id: str
    spec: ScheduleSpec
    anchor: float
    next_at: float
    last_call: str = ""


class ScheduleStore(abc.ABC):
    """Durable schedules. All methods raise StoreError when the medium fails them."""

    @abc.abstractmethod
    async def schedules(self) -> list[ScheduleRecord]:
        """Return every schedule that is followed."""

    @abc.abstractmethod
    async def put_schedule(self, record: ScheduleRecord) -> None:
        """Write a schedule, in place of the Function's one before."""

    @abc.abstractmethod
    async def remove_schedule(self, function_id: str) -> None:
        """Forget a Function's schedule; none is no error."""
