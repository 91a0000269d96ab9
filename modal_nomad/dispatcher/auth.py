"""Who is calling: callers by token, workers by what only their container can hold."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from modal_nomad.dispatcher.store import Store
from modal_nomad.dispatcher.store.base import hash_secret
from modal_nomad.exception import AuthError

_CACHE_SECONDS = 30.0


@dataclass(frozen=True)
class Identity:
    """Who a connection is.

    Attributes:
        name: for histories and logs.
        token: the Nomad token to act under, or None.
        container: the container it runs in; empty for callers outside.
        environments: the only ones it may touch; none means all.
        gateway: it is a web gateway, and may be nothing else.
    """

    name: str
    token: str | None = None
    container: str = ""
    environments: tuple[str, ...] = ()
    gateway: bool = False


class WorkerTokens:
    """Tokens of local containers: a MAC over the container's id under a key of this home.

    Attributes:
        key: the key, of which others are derived.
    """

    def __init__(self, home: Path) -> None:
        path = home / "worker.key"
        if not path.exists():
            temporary = home / f"worker.key.{secrets.token_hex(4)}"
            temporary.touch(mode=0o600)
            temporary.write_bytes(secrets.token_bytes(32))
            temporary.replace(path)
        self.key = path.read_bytes()

    def mint(self, container_id: str) -> str:
        """Return the token of a container."""
        return f"{container_id}.{hmac.new(self.key, container_id.encode(), hashlib.sha256).hexdigest()}"

    def check(self, token: str) -> str | None:
        """Return the container's id that a token proves, or None."""
        container_id, _, _ = token.partition(".")
        if container_id.startswith("ta-") and hmac.compare_digest(
            token.encode(), self.mint(container_id).encode()
        ):
            return container_id
        return None


class Authenticator:
    """Checks bearer tokens.

    Args:
        mode: ``none``, ``token`` or ``nomad``.
        store: where issued tokens are.
        workers: local containers' tokens.
        identify: asks Nomad who holds an ACL token (returns a name) or workload identity (returns
            ``container:<id>``); raises AuthError. None where the engine is local.
        launched: asks Nomad which launch of a periodic job holds a workload identity: its job's id and
            namespace; raises AuthError.
        scope_of: the only environments that a Nomad ACL token may touch, none for all; raises AuthError.
        gateway_token: what web gateways prove themselves with; empty where there are none.
    """

    def __init__(
        self,
        mode: str,
        store: Store,
        workers: WorkerTokens,
        identify: Callable[[str], Awaitable[str]] | None = None,
        launched: Callable[[str], Awaitable[tuple[str, str]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        scope_of: Callable[[str], Awaitable[tuple[str, ...]]] | None = None,
        gateway_token: str = "",
    ) -> None:
        self._gateway_token = gateway_token.encode()
        self._scope_of = scope_of
        self._mode = mode
        self._store = store
        self._workers = workers
        self._identify = identify
        self._launched = launched
        self._clock = clock
        self._cache: dict[str, tuple[float, Identity]] = {}

    async def check(self, token: str) -> Identity:
        """Return who holds a token. Raises AuthError."""
        cached = self._cache.get(token)
        if cached is not None and cached[0] > self._clock():
            return cached[1]
        identity = await self._check(token)
        if len(self._cache) > 10_000:
            self._cache.clear()
        self._cache[token] = (self._clock() + _CACHE_SECONDS, identity)
        return identity

    async def check_launch(self, token: str) -> tuple[str, str]:
        """Return id and namespace of the launched job that holds a workload identity. Raises AuthError."""
        if self._launched is None:
            raise AuthError("this dispatcher has no Nomad, whose periodic jobs could ask it for anything")
        return await self._launched(token)

    async def _check(self, token: str) -> Identity:
        if self._gateway_token and hmac.compare_digest(token.encode(), self._gateway_token):
            return Identity("gateway", gateway=True)
        container = self._workers.check(token) if token.startswith("ta-") else None
        if container is not None:
            return Identity(container, container=container)
        is_jwt = token.count(".") == 2 and token.startswith("ey")
        if self._identify is not None and (is_jwt or self._mode == "nomad"):
            name = await self._identify(token)
            if name.startswith("container:"):
                return Identity(name, container=name.partition(":")[2])
            allowed = await self._scope_of(token) if self._scope_of is not None else ()
            return Identity(name, token=token, environments=allowed)
        if self._mode == "none":
            return Identity("anonymous", token=token or None)
        token_id, _, secret = token.partition(":")
        # A proxy auth token opens endpoints, and nothing here.
        known = bool(secret) and not token_id.startswith("wk-")
        record = await self._store.token(token_id) if known else None
        if record is None or not hmac.compare_digest(record.secret_hash, hash_secret(secret)):
            raise AuthError(
                "the token is missing or unknown: `modal-nomad token set` stores one, or set MODAL_TOKEN_ID"
                " and MODAL_TOKEN_SECRET"
            )
        return Identity(record.label or token_id, environments=record.environments)
