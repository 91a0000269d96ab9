"""Children of parameterized jobs that are no containers of Functions."""

from __future__ import annotations

from typing import Any

from modal_nomad.engines.base import EngineError
from modal_nomad.hashicorp.nomad import NomadClient, NomadError, NomadNotFound

_ENDED = ("complete", "failed", "lost")


class NomadJobs:
    """Starts such children, and says what became of them.

    Args:
        client: the adapter.
        namespace: where their parents are.
    """

    def __init__(self, client: NomadClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def dispatch_job(self, job_id: str, meta: dict[str, str], key: str) -> str:
        """Start a child and return its id; the same ``key`` gives the same child.

        Raises:
            EngineError: there is no such job, or Nomad cannot be asked.
        """
        try:
            return await self._client.dispatch(job_id, namespace=self._namespace, meta=meta, key=key)
        except NomadError as error:
            raise EngineError(str(error)) from error

    async def takes_meta(self, job_id: str, key: str) -> bool:
        """Tell whether a parameterized job may be given a key of meta; not where it cannot be asked."""
        try:
            job = await self._client.job(job_id, namespace=self._namespace)
        except NomadError:
            return False
        return key in ((job.get("ParameterizedJob") or {}).get("MetaOptional") or ())

    async def stop_job(self, job_id: str) -> None:
        """End a child that nobody waits for any more. Raises EngineError."""
        try:
            await self._client.deregister(job_id, namespace=self._namespace)
        except NomadNotFound:
            return
        except NomadError as error:
            raise EngineError(str(error)) from error

    async def job_trouble(self, job_id: str) -> str | None:
        """Return in words why a child has ended or waits for a place; None while all is well."""
        try:
            found = await self._client.allocations(namespace=self._namespace, filter=f'JobID == "{job_id}"')
        except NomadError:
            # Asked again in a moment.
            return None
        if not found:
            return "waiting for a node: see `nomad job status " + job_id + "`"
        newest = max(found, key=lambda allocation: int(allocation.get("CreateIndex") or 0))
        status = str(newest.get("ClientStatus"))
        return f"ended ({status}): {_last_words(newest)}" if status in _ENDED else None


def _last_words(allocation: dict[str, Any]) -> str:
    events = [
        event
        for state in (allocation.get("TaskStates") or {}).values()
        for event in state.get("Events") or ()
        if event.get("DisplayMessage")
    ]
    said = "; ".join(str(event["DisplayMessage"]) for event in events[-2:])
    return said or str(allocation.get("ClientDescription") or "Nomad says no more")
