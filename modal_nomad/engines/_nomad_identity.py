"""Who holds a token, by Nomad's own word: workload identities by its keys, ACL tokens by asking."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jwt

from modal_nomad.engines._nomad_words import container_of
from modal_nomad.exception import AuthError
from modal_nomad.hashicorp.nomad import NomadClient, NomadDenied, NomadError

AUDIENCE = "modal-nomad"
_KEYS_SECONDS = 300.0


class NomadIdentities:
    """Checks tokens against one Nomad.

    Args:
        client: the adapter.
        placed: the container of an allocation that the event stream has told of, or None. It spares a
            starting container a question to Nomad.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        client: NomadClient,
        placed: Callable[[str], str | None] = lambda allocation_id: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._placed = placed
        self._clock = clock
        self._keys: dict[str, Any] = {}
        self._read_at = -_KEYS_SECONDS

    async def identify(self, token: str) -> str:
        """Return ``container:<id>`` for a worker's identity, else the name of an ACL token.

        Raises:
            AuthError: Nomad does not vouch for the token.
        """
        if token.count(".") == 2 and token.startswith("ey"):
            return await self._container(token)
        if not await self._client.acls_enabled():
            # Such a Nomad lets everybody do everything, and so do we.
            return "anonymous"
        if not token:
            raise AuthError("no token came: set MODAL_TOKEN_SECRET to a valid Nomad ACL token")
        try:
            known = await self._client.token_self(token)
        except NomadDenied:
            raise AuthError(
                "Nomad refused the token: set MODAL_TOKEN_SECRET to a valid Nomad ACL token"
            ) from None
        except NomadError as error:
            raise AuthError(f"the token cannot be checked now: {error}") from error
        return str(known.get("Name") or known.get("AccessorID") or "nomad")

    async def namespaces(self, token: str) -> frozenset[str] | None:
        """Return the namespaces that an ACL token has any right in; None for one that may do everything.

        Raises:
            AuthError: Nomad cannot be asked.
        """
        if not await self._client.acls_enabled():
            return None
        try:
            if (await self._client.token_self(token)).get("Type") == "management":
                return None
            return frozenset(await self._client.visible_namespaces(token))
        except NomadError as error:
            raise AuthError(f"the token cannot be checked now: {error}") from error

    async def launched(self, token: str) -> tuple[str, str]:
        """Return id and namespace of the launched periodic job that holds a workload identity.

        Raises:
            AuthError: Nomad does not vouch for the token.
        """
        allocation = await self._allocation(await self._claims(token))
        return str(allocation.get("JobID", "")), str(allocation.get("Namespace", ""))

    async def _container(self, token: str) -> str:
        claims = await self._claims(token)
        # The claims name the parent job; which child it is, only the allocation tells.
        known = self._placed(str(claims.get("nomad_allocation_id", "")))
        if known is not None:
            return f"container:{known}"
        job_id = str((await self._allocation(claims)).get("JobID", ""))
        container = container_of(job_id)
        if container is None:
            raise AuthError(f"job {job_id!r} is no container of this dispatcher")
        return f"container:{container}"

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            key = await self._key(str(jwt.get_unverified_header(token).get("kid")))
            claims: dict[str, Any] = jwt.decode(token, key, algorithms=["RS256", "EdDSA"], audience=AUDIENCE)
        except (jwt.PyJWTError, NomadError) as error:
            raise AuthError(f"the workload identity is not valid: {error}") from error
        return claims

    async def _allocation(self, claims: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return await self._client.allocation(str(claims.get("nomad_allocation_id", "")))
        except NomadError as error:
            raise AuthError(f"the workload identity is not valid: {error}") from error

    async def _key(self, kid: str) -> Any:
        age = self._clock() - self._read_at
        # Unknown keys are looked up at most once a second: anybody can invent one.
        if age > _KEYS_SECONDS or (kid not in self._keys and age > 1.0):
            keys = jwt.PyJWKSet.from_dict(await self._client.jwks()).keys
            self._keys = {str(k.key_id): k.key for k in keys}
            self._read_at = self._clock()
        if kid not in self._keys:
            raise AuthError(f"Nomad has no key {kid!r}")
        return self._keys[kid]
