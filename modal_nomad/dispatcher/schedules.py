"""Deployed Functions that are called by the clock.

Where the engine has periodic jobs (Nomad), a crontab line is one, which the operator sees and may launch by
hand: its allocation asks here for the call and waits for its end. Everything else is a timer of this
process, whose next time is in the store.

A run that was due while nobody was there to make it is made up for once, as soon as possible; how many were
missed makes no difference. Nomad does the same when its servers were away.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from modal_nomad._schedule_times import is_repeated, next_run
from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._containers import FunctionState
from modal_nomad.dispatcher._durable_calls import DurableCalls
from modal_nomad.dispatcher.store.base import Store, StoredOutput, StoreError
from modal_nomad.dispatcher.store.schedules import ScheduleRecord
from modal_nomad.engines.base import Engine, EngineError
from modal_nomad.exception import NotFoundError
from modal_nomad.render import schedule_job, schedule_job_id
from modal_nomad.wire import frames
from modal_nomad.wire.ids import timed_id
from modal_nomad.wire.serialization import dumps
from modal_nomad.wire.spec import ScheduleSpec, content_key

logger = logging.getLogger("modal_nomad.dispatcher")

_LONGEST_SLEEP = 30.0
"""The clock may be set: a sleep until a far time would not notice."""
_RETRY_SECONDS = 5.0
_SET_BACK = 3 * 3600.0
"""A clock that is set back by less repeats no run and delays one by as much; after more all begins anew."""


class _Submit(Protocol):
    def __call__(
        self, call_id: str, function_id: str, items: list[ev.SubmittedInput], num_inputs: int | None
    ) -> Coroutine[Any, Any, None]: ...


class Schedules:
    """Makes the calls of deployed Functions that have a schedule.

    Args:
        store: an open store.
        engine: a started engine.
        functions: the live Functions, by id.
        durable: the calls in progress.
        submit: takes the inputs of a spawned call.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        functions: Mapping[str, FunctionState],
        durable: DurableCalls,
        submit: _Submit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._engine = engine
        self._functions = functions
        self._durable = durable
        self._submit = submit
        self._clock = clock
        self._records: dict[str, ScheduleRecord] = {}
        self._changed = asyncio.Event()
        self._payload = dumps(((), {}))

    def job_of(self, job: Mapping[str, Any], spec: ScheduleSpec | None) -> dict[str, Any] | None:
        """Return the periodic job beside a Function's own, where the engine is to have one."""
        if spec is None or not self._engine.has_periodic_jobs:
            return None
        return schedule_job(job, spec)

    async def follow(
        self, state: FunctionState, job: Mapping[str, Any], before: FunctionState | None, token: str | None
    ) -> None:
        """Follow the schedule of a deployed Function, and no other that it had.

        Args:
            state: the Function.
            job: its job.
            before: the Function as it was deployed last.
            token: the deployer's.
        """
        spec = state.spec.schedule
        periodic = self.job_of(job, spec)
        if spec is None or periodic is not None:
            await self._forget_record(state.function_id)
        else:
            await self._keep(state.function_id, spec)
        if periodic is not None:
            await self._engine.submit(periodic, token=token)
        elif before is not None and self.job_of(job, before.spec.schedule) is not None:
            await self._stop_job(state, token)
        self._changed.set()

    async def forget(self, state: FunctionState, token: str | None) -> None:
        """Follow a Function's schedule no more."""
        await self._forget_record(state.function_id)
        if self._engine.has_periodic_jobs and state.spec.schedule is not None and state.spec.schedule.cron:
            await self._stop_job(state, token)
        self._changed.set()

    async def _stop_job(self, state: FunctionState, token: str | None) -> None:
        name = schedule_job_id(state.job_id)
        try:
            await self._engine.stop(name, namespace=state.namespace, token=token)
        except EngineError as error:
            logger.warning("job %s cannot be stopped: %s", name, error)

    async def _keep(self, function_id: str, spec: ScheduleSpec) -> None:
        known = self._records.get(function_id)
        if known is not None and known.spec == spec:
            return
        now = self._clock()
        last = known.last_call if known is not None else ""
        await self._write(ScheduleRecord(function_id, spec, now, next_run(spec, now, now), last), known)

    async def _write(self, record: ScheduleRecord, before: ScheduleRecord | None) -> None:
        # At once, so that what is written next follows from it, whoever writes it.
        self._records[record.function_id] = record
        try:
            await self._store.put_schedule(record)
        except BaseException:
            if self._records.get(record.function_id) is record:
                if before is None:
                    del self._records[record.function_id]
                else:
                    self._records[record.function_id] = before
            raise

    async def _forget_record(self, function_id: str) -> None:
        if self._records.pop(function_id, None) is not None:
            await self._store.remove_schedule(function_id)

    def next_of_app(self, app_id: str) -> float | None:
        """Return when an App's next run is due, or None where it has no schedule."""
        now = self._clock()
        times = []
        for state in self._functions.values():
            if state.app_id == app_id and state.spec.schedule is not None:
                record = self._records.get(state.function_id)
                if record is not None:
                    times.append(record.next_at)
                elif self._engine.has_periodic_jobs and state.spec.schedule.cron and state.deployed:
                    times.append(next_run(state.spec.schedule, now, now))
        return min(times, default=None)

    # --- the timer --------------------------------------------------------------------------------

    async def resume(self) -> None:
        """Take over what an earlier process followed."""
        for record in await self._store.schedules():
            if record.function_id in self._functions:
                self._records[record.function_id] = record
            else:
                await self._store.remove_schedule(record.function_id)

    async def run(self) -> None:
        """Make each call when it is due, for ever."""
        while True:
            self._changed.clear()
            wait = _LONGEST_SLEEP
            for record in list(self._records.values()):
                left = record.next_at - self._clock()
                if left <= 0 or self._was_set_back(record):
                    try:
                        await (self._due(record) if left <= 0 else self._begin_anew(record))
                        left = 0.0
                    except StoreError as error:
                        logger.error("a scheduled run waits for the store: %s", error)
                        left = _RETRY_SECONDS
                wait = min(wait, left)
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except asyncio.TimeoutError:
                continue

    def _was_set_back(self, record: ScheduleRecord) -> bool:
        """Say whether a run is further away than it can be: it was counted from a time that was none."""
        later = self._clock() + _SET_BACK
        return record.anchor > later or next_run(record.spec, later, record.anchor) < record.next_at

    async def _begin_anew(self, record: ScheduleRecord) -> None:
        if self._records.get(record.function_id) is not record:
            return
        now = self._clock()
        anchor = min(record.anchor, now)
        logger.warning(
            "the clock was set back by hours: the schedule of %s is counted anew", record.function_id
        )
        await self._write(
            dataclasses.replace(record, anchor=anchor, next_at=next_run(record.spec, now, anchor)), record
        )

    async def _due(self, record: ScheduleRecord) -> None:
        if self._records.get(record.function_id) is not record:
            return
        state = self._functions.get(record.function_id)
        if state is None:
            await self._forget_record(record.function_id)
            return
        last = record.last_call
        if record.spec.prohibit_overlap and last in self._durable.ids:
            logger.info("a run of %s is left out: the one before it has not ended", state.label)
        else:
            # Of the same id whoever makes it: after a crash in between it is made once.
            last = _call_id([record.function_id, repr(record.next_at)], record.next_at)
            await self._submit(last, record.function_id, [(0, self._payload, 0)], 1)
        now = self._clock()
        due = next_run(record.spec, now, record.anchor)
        following = dataclasses.replace(record, next_at=due, last_call=last)
        # Deployed anew meanwhile, its new schedule counts.
        if self._records.get(record.function_id) is record:
            await self._write(following, record)

    # --- periodic jobs ----------------------------------------------------------------------------

    async def launched(self, child: str, namespace: str, timeout: float) -> StoredOutput | None:
        """Make the call that a launch of a periodic job asks for, once, and wait for its output.

        Args:
            child: the id of the launched job.
            namespace: where it is.
            timeout: seconds to wait at most; then the answer is None.

        Raises:
            NotFoundError: it belongs to no Function that is deployed here.
        """
        parent = child.partition("/")[0]
        for state in self._functions.values():
            if state.namespace == namespace and parent == schedule_job_id(state.job_id) and state.deployed:
                break
        else:
            raise NotFoundError(f"job {parent} belongs to no deployed Function: stop it in Nomad")
        _, _, launch = child.rpartition("-")
        at = float(launch) if launch.isdecimal() else self._clock()
        if state.spec.schedule is not None and is_repeated(state.spec.schedule, at):
            logger.info(
                "a run of %s is left out: the clocks were set back, and it was made before", state.label
            )
            return StoredOutput(0, frames.SUCCESS, b"")
        call_id = _call_id([state.function_id, child], min(at, self._clock()))
        await self._submit(call_id, state.function_id, [(0, self._payload, 0)], 1)
        return await self._durable.result(call_id, 0, timeout)


def _call_id(parts: list[str], at: float) -> str:
    return timed_id("fc", int(at), hashlib.sha256(content_key(parts).encode()).digest())
