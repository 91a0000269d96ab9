"""What the dispatcher does with Secrets: named ones, those that live with an App, those of a container."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import posixpath
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_nomad.dispatcher.secrets.base import (
    SecretInfo,
    SecretKey,
    SecretStore,
    SecretStoreError,
    SecretStoreUnavailable,
)
from modal_nomad.dispatcher.secrets.key import derive, load_key
from modal_nomad.exception import InvalidError, NotFoundError
from modal_nomad.wire.ids import id_from
from modal_nomad.wire.mounts import SecretRef
from modal_nomad.wire.secret_values import merge
from modal_nomad.wire.spec import FunctionSpec, canonical_json

if TYPE_CHECKING:
    from modal_nomad.dispatcher.secrets.leases import Leases
    from modal_nomad.dispatcher.settings import Settings
    from modal_nomad.dispatcher.store.leases import LeaseStore

logger = logging.getLogger("modal_nomad.dispatcher")

_MOST_LEASES = 100
PENDING_SECONDS = 600.0
"""How long an ephemeral Secret waits for the publication that it was sent for, once its client is gone."""
RETURN_SECONDS = 100.0
"""How long containers on Nomad may take to be known to a new dispatcher."""


class Secrets:
    """The Secrets of one dispatcher.

    Args:
        store: where the values are; opened and closed here.
        home: has the key.
        delivers: containers get their values from this dispatcher; else they read them themselves.
        leases: reads Vault for containers; None without a Vault, or where containers do it.
        vault: there is a Vault at all.
        kept_out: the path in Vault that no ``from_vault`` may read: other Secrets stand there.
        clock: the time in seconds.

    Attributes:
        connected: tells whether a client is here: it may be at an image that takes long to build.
    """

    def __init__(
        self,
        store: SecretStore,
        home: Path,
        *,
        delivers: bool = True,
        leases: Leases | None = None,
        vault: bool = False,
        kept_out: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._home = home
        self._delivers = delivers
        self._leases = leases
        self._vault = vault
        self._kept_out = kept_out
        self._clock = clock
        self._pending: dict[SecretKey, tuple[float, str]] = {}
        self.connected: Callable[[str], bool] = lambda owner: False
        self._ephemeral: set[SecretKey] = set()

    @classmethod
    def from_settings(cls, settings: Settings, book: LeaseStore) -> Secrets:
        """Return the Secrets that a configuration asks for; ``book`` keeps the ids of leases."""
        home, delivers = Path(settings.home), settings.engine == "local"
        vault = settings.vault_settings()
        if vault is None:
            from modal_nomad.dispatcher.secrets.file import FileSecretStore

            return cls(FileSecretStore(home), home, delivers=delivers)
        from modal_nomad.dispatcher.secrets.leases import Leases
        from modal_nomad.dispatcher.secrets.vault import VaultSecretStore
        from modal_nomad.hashicorp.vault import VaultClient

        client = VaultClient(vault)
        return cls(
            VaultSecretStore(client, settings.vault_prefix),
            home,
            delivers=delivers,
            leases=Leases(client, book=book),
            vault=True,
            kept_out=f"{vault.mount}/",
        )

    async def open(self) -> None:
        """Open the store."""
        await self.store.open()

    async def run(self, ending: Callable[[str], None]) -> None:
        """Keep leases alive, for ever.

        Args:
            ending: gets the container whose lease comes to its end.
        """
        if self._leases is not None:
            self._leases.ending = ending
            await self._leases.run()

    async def close(self) -> None:
        """Revoke what containers of this process had, then release the store."""
        if self._leases is not None and self._delivers:
            # Containers on Nomad live on, and name theirs to the next dispatcher.
            await self._leases.close()
        await self.store.close()

    # --- publishing -------------------------------------------------------------------------------

    async def check(self, specs: Iterable[FunctionSpec], environment: str) -> None:
        """Check that containers of these Functions will find their Secrets.

        Raises:
            NotFoundError: naming the one that is not there.
            InvalidError: one lacks a required variable, or there is no Vault here.
        """
        refs = {_identity(ref): ref for spec in specs for ref in spec.secret_refs}
        if refs and not self._delivers and not self._vault:
            raise InvalidError(
                "this dispatcher's cluster has no Vault for Secrets: set [vault] in its settings"
                " (docs/secrets.md)"
            )
        await asyncio.gather(*(self._check(ref, environment) for ref in refs.values()))

    async def _check(self, ref: SecretRef, environment: str) -> None:
        if ref.vault_path:
            if not self._vault:
                raise InvalidError(
                    f"Secret.from_vault({ref.vault_path!r}) needs a Vault: set [vault] in the dispatcher's"
                    " settings, or use Secret.from_name"
                )
            if self._delivers:
                self._check_path(ref)
            return
        key = key_of(ref, environment)
        fields = await self.store.fields(key)
        if fields is None:
            raise not_found(key)
        missing = sorted(set(ref.required) - fields)
        if missing:
            raise InvalidError(
                f"Secret {key.name!r} has no {', '.join(missing)}: add it with `modal-nomad secret create"
                f" {key.name} ... --force`"
            )

    # --- those that live with an App --------------------------------------------------------------

    async def keep(
        self,
        environment: str,
        app: str,
        given: Sequence[Mapping[str, str]],
        *,
        owner: str = "",
        dry: bool = False,
    ) -> list[str]:
        """Keep values that a program brings, until no published Function refers to them.

        Args:
            environment: of the App.
            app: its name or description. Equal values of one App get one name, so that publishing the
                same again changes nothing.
            given: variables of each Secret.
            owner: the client, in whose time they are kept before there is a publication.
            dry: only say what their names would be.

        Returns:
            The names for ``SecretRef``, in order.
        """
        key = await asyncio.to_thread(load_key, self._home)
        names = [self._ephemeral_name(key, environment, app, values) for values in given]
        if not dry:
            for name, values in zip(names, given, strict=True):
                place = SecretKey(environment, name, ephemeral=True)
                self._pending[place] = self._clock(), owner
                await self.store.put(place, values, replace=True, created_by=app)
                self._ephemeral.add(place)
        return names

    @staticmethod
    def _ephemeral_name(key: bytes, environment: str, app: str, values: Mapping[str, str]) -> str:
        # Under a key: whoever sees the name must not be able to try out what the values are.
        text = canonical_json([environment, app, dict(values)])
        digest = hmac.new(derive(key, "names"), text, hashlib.sha256).digest()
        return f"{_owner(key)}.{id_from('st', digest)}"

    async def resume(self) -> None:
        """Learn which ephemeral Secrets an earlier process of this home has left."""
        owner = _owner(await asyncio.to_thread(load_key, self._home))
        found = await self.store.ephemerals()
        # Other dispatchers may keep theirs in the same Vault.
        self._ephemeral |= {x.key for x in found if x.key.name.startswith(f"{owner}.")}

    async def collect(
        self,
        live: Iterable[tuple[FunctionSpec, str]],
        steps: Iterable[tuple[FunctionSpec, str]] = (),
    ) -> int:
        """Remove the ephemeral Secrets that no live Function refers to; gives their number.

        Args:
            live: specification and environment of each live Function.
            steps: the same of those that build an Image: who has it built has not published anything yet.
        """
        kept = _ephemeral(live)
        before = self._clock() - PENDING_SECONDS
        for key, (at, owner) in list(self._pending.items()):
            if key in kept or (at < before and not self.connected(owner)):
                del self._pending[key]
        kept |= _ephemeral(steps)
        gone = [key for key in self._ephemeral if key not in kept and key not in self._pending]
        for key in gone:
            self._ephemeral.discard(key)
            try:
                await self.store.delete(key)
            except SecretStoreError as error:
                self._ephemeral.add(key)
                logger.warning("a Secret of an ended App cannot be removed yet: %s", error)
        return len(gone)

    # --- containers -------------------------------------------------------------------------------

    async def variables(self, container_id: str, spec: FunctionSpec, environment: str) -> dict[str, str]:
        """Return what a container gets from its Secrets; nothing where it reads them itself.

        Raises:
            NotFoundError: one is not there any more.
            SecretStoreError: they cannot be read now.
        """
        if not spec.secret_refs or not self._delivers:
            return {}
        read = await asyncio.gather(*(self._read(container_id, ref, environment) for ref in spec.secret_refs))

        def complain(line: str) -> None:
            logger.warning("%s of app %s: %s", spec.name, spec.app, line)

        return merge(read, tuple(spec.env), complain)

    async def build_variables(
        self, build_id: str, refs: Sequence[SecretRef], environment: str
    ) -> dict[str, str]:
        """Return what a step of an image build gets from its Secrets; ``ended`` takes leases back.

        Raises:
            NotFoundError: one is not there.
            InvalidError: one lacks a required variable.
            SecretStoreError: they cannot be read now.
        """
        for ref in refs:
            await self._check(ref, environment)
            self._check_path(ref)
        read = await asyncio.gather(*(self._read(build_id, ref, environment) for ref in refs))
        return merge(read, (), lambda line: logger.warning("image build: %s", line))

    async def _read(self, container_id: str, ref: SecretRef, environment: str) -> dict[str, Any]:
        if not ref.vault_path:
            key = key_of(ref, environment)
            values = await self.store.values(key)
            if values is None:
                raise not_found(key)
            return {"values": values, "keys": dict(ref.keys), "prefix": ref.prefix}
        from modal_nomad.hashicorp.vault import VaultError, VaultUnavailable

        if self._leases is None:
            raise SecretStoreError("there is no Vault here any more: set [vault] in the settings")
        try:
            data = await self._leases.take(container_id, ref.vault_path)
        except VaultUnavailable as error:
            raise SecretStoreUnavailable(str(error)) from None
        except VaultError as error:
            raise SecretStoreError(str(error)) from None
        if data is None:
            raise NotFoundError(f"Vault has nothing at {ref.vault_path!r} of Secret.from_vault")
        return {"values": data, "keys": dict(ref.keys), "prefix": ref.prefix}

    @property
    def in_vault(self) -> bool:
        """Whether others than the dispatcher may read Secrets where they are."""
        return self._vault and not self._delivers

    async def places(self, refs: Sequence[SecretRef], environment: str) -> list[dict[str, Any]]:
        """Return where in Vault the job of an image build finds its Secrets, one place for each.

        Raises:
            NotFoundError: one is not there.
            InvalidError: one lacks a required variable, or is another's.
        """
        for ref in refs:
            await self._check(ref, environment)
            # That job may read every environment's, for whoever asks for the build.
            self._check_path(ref)
        return [
            {"path": ref.vault_path, "leased": True}
            if ref.vault_path
            else {"path": self.store.place(key_of(ref, environment)), "leased": False}
            for ref in refs
        ]

    def _check_path(self, ref: SecretRef) -> None:
        if ref.vault_path and f"{posixpath.normpath(ref.vault_path.strip('/'))}/".startswith(self._kept_out):
            raise InvalidError(
                f"{ref.vault_path!r} is where Secrets are kept: use Secret.from_name for one of those"
            )

    def adopt(self, container_id: str, refs: Iterable[SecretRef], leases: Any) -> None:
        """Take note of what a container has leased by itself, to end it together with the container.

        Args:
            container_id: the container.
            refs: its Secrets; what is leased under no path of these is not the container's.
            leases: the ids of the leases, as the container names them.
        """
        if self._leases is None or self._delivers or not isinstance(leases, list):
            return
        paths = tuple(f"{ref.vault_path.strip('/')}/" for ref in refs if ref.vault_path)
        for lease_id in leases[:_MOST_LEASES]:
            if isinstance(lease_id, str) and paths and lease_id.startswith(paths):
                self._leases.adopt(container_id, lease_id)

    async def take_back(self, lives: Callable[[str], bool]) -> None:
        """Revoke what containers had that ended while no dispatcher ran.

        Args:
            lives: tells whether a container is known.
        """
        if self._leases is None:
            return
        left = await self._leases.resume()
        if left and not self._delivers:
            # Containers on Nomad live on; those of this machine ended with the process that had them.
            await asyncio.sleep(RETURN_SECONDS)
        for container_id in left:
            if self._delivers or not lives(container_id):
                await self._leases.end(container_id)

    async def ended(self, container_id: str) -> None:
        """Take back what a container had for its life only."""
        if self._leases is not None:
            await self._leases.end(container_id)


def key_of(ref: SecretRef, environment: str) -> SecretKey:
    """Return which stored Secret is meant. Raises InvalidError for a name that none can have."""
    return SecretKey(ref.environment or environment, ref.name, ref.ephemeral)


def not_found(key: SecretKey) -> NotFoundError:
    """Return the error for a Secret that is not there."""
    if key.ephemeral:
        return NotFoundError("the values of a Secret in the program are gone: run or deploy its App again")
    return NotFoundError(
        f"there is no Secret {key.name!r} in environment {key.environment!r}: make it with `modal-nomad"
        f" secret create {key.name} KEY=VALUE`"
    )


def as_json(info: SecretInfo) -> dict[str, Any]:
    """Return what clients are told of a Secret."""
    return {
        "secret_id": info.secret_id,
        "name": info.key.name,
        "environment": info.key.environment,
        "created_at": info.created_at,
        "created_by": info.created_by,
    }


def _identity(ref: SecretRef) -> tuple[Any, ...]:
    return (ref.environment, ref.name, ref.ephemeral, ref.vault_path, ref.required)


def _owner(key: bytes) -> str:
    return derive(key, "owner").hex()[:8]


def _ephemeral(live: Iterable[tuple[FunctionSpec, str]]) -> set[SecretKey]:
    return {key_of(ref, env) for spec, env in live for ref in spec.secret_refs if ref.ephemeral}
