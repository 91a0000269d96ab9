"""Proxy auth tokens: what opens endpoints with ``requires_proxy_auth``. Kept hashed, like all tokens."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable

from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.dispatcher.store.base import Store, TokenRecord, hash_secret
from modal_nomad.exception import NotFoundError

PREFIX = "wk-"
"""What the ids of proxy auth tokens begin with; they open endpoints and nothing else."""
_CACHE_SECONDS = 30.0
_CACHE_SIZE = 10_000


class ProxyTokens:
    """The proxy auth tokens of a store.

    Args:
        store: where they are.
        clock: monotonic seconds.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, tuple[float, TokenRecord | None]] = {}

    async def opens(self, key: str, secret: str, route: Route) -> bool:
        """Say whether a token opens an endpoint."""
        if not key.startswith(PREFIX):
            return False
        record = await self._record(key)
        if record is None or not hmac.compare_digest(record.secret_hash, hash_secret(secret)):
            return False
        return not record.environments or route.environment in record.environments

    async def _record(self, key: str) -> TokenRecord | None:
        now = self._clock()
        known = self._known.get(key)
        if known is not None and known[0] > now:
            return known[1]
        record = await self._store.token(key)
        if len(self._known) >= _CACHE_SIZE:
            self._known.clear()
        if record is not None:
            # What is not there may be created in the next moment, and is asked for each time.
            self._known[key] = (now + _CACHE_SECONDS, record)
        return record

    async def create(self, environment: str, label: str = "") -> tuple[str, str]:
        """Make a token for the endpoints of an environment; gives its id and its secret."""
        token_id, secret = f"{PREFIX}{secrets.token_hex(11)}", f"ws-{secrets.token_urlsafe(32)}"
        await self._store.add_token(
            TokenRecord(token_id, hash_secret(secret), (environment,), label, time.time())
        )
        return token_id, secret

    async def list(self, environment: str) -> list[TokenRecord]:
        """Return the tokens of an environment, oldest first."""
        return [
            x
            for x in await self._store.tokens()
            if x.token_id.startswith(PREFIX) and environment in x.environments
        ]

    async def delete(self, token_id: str, environment: str) -> None:
        """Revoke a token; other gateways may take it for half a minute more. Raises NotFoundError."""
        if all(x.token_id != token_id for x in await self.list(environment)):
            raise NotFoundError(
                f"there is no proxy auth token {token_id!r} in environment {environment!r}: "
                "`modal-nomad proxy-token list` shows what there is"
            )
        await self._store.remove_token(token_id)
        self._known.pop(token_id, None)
