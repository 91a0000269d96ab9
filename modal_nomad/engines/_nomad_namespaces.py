"""The Nomad namespaces of environments: made where they are missing, removed when they were made here."""

from __future__ import annotations

import asyncio
import logging

from modal_nomad.engines.base import EngineDenied
from modal_nomad.hashicorp.nomad import NomadClient, NomadDenied, NomadError, NomadNotFound

logger = logging.getLogger("modal_nomad.dispatcher")

_META = "modal_environment"
_ATTEMPTS = 30
_PAUSE = 1.0


class Namespaces:
    """The namespaces of one Nomad.

    Args:
        client: the adapter.
    """

    def __init__(self, client: NomadClient) -> None:
        self._client = client
        self._known: set[str] = set()

    async def make(self, name: str, environment: str, token: str | None) -> None:
        """Make a namespace where there is none. Raises EngineDenied, NomadError."""
        if name in self._known:
            return
        try:
            await self._client.namespace(name)
        except NomadNotFound:
            await self._create(name, environment, token)
        except NomadDenied:
            # What we may not see the caller may be allowed to use: its registration shows.
            return
        self._known.add(name)

    async def _create(self, name: str, environment: str, token: str | None) -> None:
        made = {
            "Name": name,
            "Description": f"Environment {environment} of modal-nomad",
            "Meta": {_META: environment},
        }
        try:
            await self._client.create_namespace(made, token=token)
        except NomadDenied:
            raise EngineDenied(
                f"environment {environment!r} needs the Nomad namespace {name!r}, and this token may not make"
                f" it: run `nomad namespace apply {name}`, or name another under [namespaces] in the"
                " dispatcher's settings"
            ) from None

    async def drop(self, name: str, environment: str, token: str | None) -> None:
        """Remove a namespace that was made here, when its last containers have ended."""
        self._known.discard(name)
        for attempt in range(_ATTEMPTS):
            try:
                found = await self._client.namespace(name)
                if (found.get("Meta") or {}).get(_META) != environment:
                    return
                await self._client.delete_namespace(name, token=token)
                return
            except NomadNotFound:
                return
            except NomadError as error:
                if isinstance(error, NomadDenied) or attempt == _ATTEMPTS - 1:
                    logger.warning("namespace %s stays, though its environment is gone: %s", name, error)
                    return
            await asyncio.sleep(_PAUSE)
