"""Variants: Functions that callers make from live ones, with constructor parameters or other options.

One with parameters alone shares its parent's job and follows it at a deployment. One with options has a
job of its own, rendered by the caller, and keeps the code it was made of: after a deployment it goes when
nobody asked for it again, as callers do who use it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher import _views as views
from modal_nomad.dispatcher._containers import FunctionState
from modal_nomad.dispatcher._graces import Graces
from modal_nomad.dispatcher._publication import check_publication
from modal_nomad.dispatcher.store.base import FunctionRecord, Store, VariantRecord
from modal_nomad.engines.base import Engine, EngineError
from modal_nomad.exception import InvalidError, NotFoundError
from modal_nomad.wire.ids import id_from
from modal_nomad.wire.spec import canonical_json

logger = logging.getLogger("modal_nomad.dispatcher")

RETIRE_SECONDS = 300.0
"""Well above the time after which a caller who uses a variant asks for it again."""


class Variants:
    """The variants of live Functions, which live as long as their parents.

    Args:
        store: an open store.
        engine: a started engine.
        functions: the live Functions, by id; variants are added and removed here.
        handle: gives the call engine an event.
        pool: tells the queue and the containers of a Function.
        background: runs a coroutine that nobody waits for.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        functions: dict[str, FunctionState],
        handle: Callable[[ev.Event], None],
        pool: Callable[[str], views.PoolView | None],
        background: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self._store = store
        self._engine = engine
        self._functions = functions
        self._handle = handle
        self._pool = pool
        self._background = background
        self._graces = Graces()
        self._records: dict[str, VariantRecord] = {}
        self._children: dict[str, set[str]] = {}

    def close(self) -> None:
        """Let no variant's time run out any more."""
        self._graces.close()

    async def resume(self) -> None:
        """Make the variants callable again whose parents are live; others are forgotten."""
        gone = []
        for record in await self._store.variants():
            if record.parent_id not in self._functions:
                gone.append(record.function_id)
                continue
            if record.job is not None:
                try:
                    await self._engine.submit(record.job)
                except EngineError as error:
                    logger.warning("variant %s cannot be resumed: %s", record.function_id, error)
            self._add(record)
        if gone:
            await self._store.remove_variants(gone)

    async def bind(
        self, parent_id: str, params: bytes | None, options: Mapping[str, Any], token: str | None
    ) -> str:
        """Return the id of a variant, made when there is none; the same for the same arguments.

        Args:
            parent_id: what it is made from.
            params: serialized constructor parameters, or None.
            options: nothing, or ``spec`` and ``job`` of a variant with other options.
            token: the caller's, under which a job is submitted.

        Raises:
            NotFoundError: there is no such Function.
            InvalidError: the options are not those of this Function.
        """
        parent = self._functions.get(parent_id)
        if parent is None:
            raise NotFoundError(f"Function {parent_id} is not known here: deploy its app again")
        spec, job = _checked(parent, params, options)
        digest = hashlib.sha256(
            b"\0".join((parent_id.encode(), canonical_json(spec), b"-" if params is None else b"+" + params))
        ).digest()
        function_id = id_from("fu", digest)
        self._graces.end(function_id)
        if function_id not in self._functions:
            if job is not None:
                await self._engine.submit(job, token=token)
            record = VariantRecord(function_id, parent_id, parent.app_id, params, spec, job)
            await self._store.add_variant(record)
            if parent_id not in self._functions:
                raise NotFoundError(f"Function {parent_id} was removed meanwhile: deploy its app again")
            if function_id not in self._functions:
                self._add(record)
        return function_id

    def follow(self, parent_id: str) -> None:
        """Give the variants of a Function that was published again its new version."""
        for function_id in self._children.get(parent_id, ()):
            record = self._records[function_id]
            if record.job is None:
                self._add(record)
                self.follow(function_id)
            else:
                self._graces.begin(function_id, RETIRE_SECONDS, self._retire, function_id)

    async def remove(self, parent_id: str, reason: str, token: str | None) -> None:
        """Remove what was made from a Function."""
        for function_id in list(self._children.get(parent_id, ())):
            await self._remove(function_id, reason, token)

    async def _remove(self, function_id: str, reason: str, token: str | None) -> None:
        record = self._records.pop(function_id, None)
        if record is None:
            return
        self._graces.end(function_id)
        self._children[record.parent_id].discard(function_id)
        await self.remove(function_id, reason, token)
        self._children.pop(function_id, None)
        state = self._functions.pop(function_id)
        self._handle(ev.FunctionRemoved(function_id, reason))
        if record.job is not None:
            try:
                await self._engine.stop(state.job_id, namespace=state.namespace, token=token)
            except EngineError as error:
                logger.warning("job %s cannot be stopped: %s", state.job_id, error)
        await self._store.remove_variants([function_id])

    def _retire(self, function_id: str) -> None:
        if function_id not in self._records:
            return
        if self._works(function_id):
            self._graces.begin(function_id, RETIRE_SECONDS, self._retire, function_id)
        else:
            self._background(self._remove(function_id, "its app was deployed anew", None))

    def _works(self, function_id: str) -> bool:
        pool = self._pool(function_id)
        busy = pool is not None and bool(pool.backlog or pool.running or pool.prefetched)
        return busy or any(self._works(child) for child in self._children.get(function_id, ()))

    def _add(self, record: VariantRecord) -> None:
        parent = self._functions[record.parent_id]
        state = FunctionState(
            FunctionRecord(
                function_id=record.function_id,
                app_id=parent.app_id,
                name=parent.name,
                environment=parent.environment,
                version=0,
                spec=record.spec or parent.spec_dict,
                job=record.job or {"ID": parent.job_id, "Namespace": parent.namespace},
                autoscaler=record.autoscaler,
            )
        )
        state.parent_id = record.parent_id
        if record.job is None:
            state.snapshot_job = parent.snapshot_job
        # What has options of its own still has no parameters: those come with what is made from it.
        state.params = record.params
        self._functions[record.function_id] = state
        self._records[record.function_id] = record
        self._children.setdefault(record.parent_id, set()).add(record.function_id)
        self._handle(ev.FunctionAdded(record.function_id, state.policy()))


def _checked(
    parent: FunctionState, params: bytes | None, options: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    spec, job = options.get("spec"), options.get("job")
    if params is not None and not parent.spec.is_class:
        raise InvalidError(f"{parent.name} is no class, and takes no parameters")
    if params is not None and parent.params is not None:
        raise InvalidError(f"this variant of {parent.name} has its parameters already")
    if spec is None and job is None:
        if params is None:
            raise InvalidError("a variant needs parameters or options: update the client")
        return None, None
    if not isinstance(spec, dict) or not isinstance(job, dict) or spec.get("name") != parent.name:
        raise InvalidError(f"the options are not those of {parent.name}: update the client")
    check_publication({"functions": [{"spec": spec, "job": job}]})
    named = str(job.get("ID", "")).startswith(f"{parent.job_id}--")
    if not named or (job.get("Namespace") or "default") != parent.namespace:
        # Else a caller could put a job of its own in the place of another's.
        raise InvalidError(f"the job of a variant is named after {parent.job_id}: update the client")
    return spec, job
