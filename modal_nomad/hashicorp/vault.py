"""A thin adapter to Vault's and OpenBao's HTTP API: hvac in threads. No text of an error holds a value."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import hvac  # type: ignore[import-untyped]
import hvac.exceptions  # type: ignore[import-untyped]
import requests

T = TypeVar("T")
_THREADS = 8


class VaultError(Exception):
    """Vault refused or failed; the text is one line that names the remedy."""


class VaultUnavailable(VaultError):
    """No answer from Vault, or it is sealed."""


class VaultDenied(VaultError):
    """The token does not allow it."""


class VaultConflict(VaultError):
    """There is something at that path already."""


@dataclass(frozen=True)
class VaultSettings:
    """How to reach Vault.

    Attributes:
        address: ``http://…`` or ``https://…``.
        token: the token; empty takes that of ``token_file``.
        token_file: file with the token, read at every call: Nomad's ``vault`` block renews it there.
        namespace: Vault's namespace; empty for none.
        ca_file: CA bundle for https; empty uses the system's.
        mount: the KV version 2 engine.
        timeout: seconds a request may take.
    """

    address: str = ""
    token: str = field(default="", repr=False)
    token_file: str = ""
    namespace: str = ""
    ca_file: str = ""
    mount: str = "secret"
    timeout: float = 10.0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> VaultSettings:
        """Read the token and the authority that the ``vault`` command reads; never the address."""
        return cls(
            token=env.get("VAULT_TOKEN", ""),
            namespace=env.get("VAULT_NAMESPACE", ""),
            ca_file=env.get("VAULT_CACERT", ""),
        )


@dataclass(frozen=True)
class Lease:
    """What was read, and how long it may be used.

    Attributes:
        lease_id: for ``renew`` and ``revoke``; empty for what has no lease.
        seconds: how long it lasts from now.
        renewable: whether it can be made to last longer.
        data: the fields.
    """

    lease_id: str
    seconds: float
    renewable: bool
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)


class VaultClient:
    """One Vault. All methods raise VaultError.

    Args:
        settings: how to reach it.
    """

    def __init__(self, settings: VaultSettings) -> None:
        self.settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="vault")
        self._session = requests.Session()

    async def close(self) -> None:
        """Release its threads and connections."""
        await asyncio.to_thread(self._threads.shutdown)
        self._session.close()

    # --- KV version 2 -----------------------------------------------------------------------------

    async def kv_write(self, path: str, values: Mapping[str, str], *, new: bool = False) -> None:
        """Write a secret's next version; with ``new`` only where there is none, else VaultConflict."""
        body: dict[str, Any] = {"data": dict(values)}
        if new:
            body["options"] = {"cas": 0}
        if await self._call("post", self._kv("data", path), body) is None:
            mount = self.settings.mount
            raise VaultError(
                f"Vault has no KV engine {mount!r}: `vault secrets enable -path={mount} kv-v2`, or name"
                " another one in the dispatcher's [vault] settings"
            )

    async def kv_patch(self, path: str, values: Mapping[str, str]) -> bool:
        """Add fields to a secret without reading it; False where there is none."""

        def patch(client: hvac.Client) -> Any:
            return client.adapter.request(
                "patch",
                f"/v1/{self._kv('data', path)}",
                json={"data": dict(values)},
                headers={"Content-Type": "application/merge-patch+json"},
            )

        return await self._run(patch, self._kv("data", path)) is not None

    async def kv_read(self, path: str) -> dict[str, Any] | None:
        """Return the fields of a secret's last version, or None."""
        found = await self._call("get", self._kv("data", path))
        data = found["data"]["data"] if found else None
        return None if data is None else dict(data)

    async def kv_fields(self, path: str) -> set[str] | None:
        """Return the names of a secret's fields, without reading their values, or None."""
        found = await self._call("get", self._kv("subkeys", path))
        return set(found["data"]["subkeys"] or ()) if found else None

    async def kv_metadata(self, path: str) -> dict[str, Any] | None:
        """Return a secret's metadata, or None for one that is not there or whose last version was deleted."""
        found = await self._call("get", self._kv("metadata", path))
        if not found:
            return None
        data = dict(found["data"])
        last = (data.get("versions") or {}).get(str(data.get("current_version"))) or {}
        return None if not last or last.get("deletion_time") or last.get("destroyed") else data

    async def kv_describe(self, path: str, words: Mapping[str, str]) -> None:
        """Set a secret's custom metadata."""
        await self._call("post", self._kv("metadata", path), {"custom_metadata": dict(words)})

    async def kv_list(self, folder: str) -> list[str]:
        """Return the names in a folder; those of folders end in a slash."""
        found = await self._call("get", self._kv("metadata", folder) + "?list=true")
        return list(found["data"]["keys"]) if found else []

    async def kv_delete(self, path: str) -> None:
        """Remove a secret with all its versions."""
        await self._call("delete", self._kv("metadata", path))

    def kv_place(self, path: str) -> str:
        """Return the path of the API that a secret is read at."""
        return self._kv("data", path)

    def _kv(self, part: str, path: str) -> str:
        return f"{self.settings.mount}/{part}/{path}"

    # --- leases -----------------------------------------------------------------------------------

    async def read(self, path: str) -> Lease | None:
        """Read any path; one of a dynamic engine makes new credentials. None where there is nothing."""
        found = await self._call("get", path)
        return _lease(found) if found else None

    async def renew(self, lease_id: str) -> Lease:
        """Make a lease last longer."""
        return _lease(await self._call("put", "sys/leases/renew", {"lease_id": lease_id}) or {})

    async def revoke(self, lease_id: str) -> None:
        """End a lease now; what it gave is of no use after."""
        await self._call("put", "sys/leases/revoke", {"lease_id": lease_id})

    async def renew_own(self) -> float:
        """Make the token itself last longer; returns its seconds, 0 for one that does not end or renew."""
        found = await self._call("get", "auth/token/lookup-self")
        if not found or not found["data"].get("renewable"):
            return 0.0
        answer = await self._call("post", "auth/token/renew-self", {})
        return float(answer["auth"]["lease_duration"]) if answer else 0.0

    # --- PKI --------------------------------------------------------------------------------------

    async def issue(self, mount: str, role: str, name: str, ttl: str = "") -> tuple[str, str]:
        """Have a certificate issued; returns it with its chain, and its key, in PEM."""
        body = {"common_name": name, **({"ttl": ttl} if ttl else {})}
        found = await self._call("post", f"{mount}/issue/{role}", body)
        if not found:
            raise VaultError(
                f"Vault has no PKI engine {mount!r} with a role {role!r}: name both as they are called there"
            )
        data = found["data"]
        chain = [data["certificate"], *(data.get("ca_chain") or ())]
        return "\n".join(chain) + "\n", str(data["private_key"])

    # --- below ------------------------------------------------------------------------------------

    async def _call(self, verb: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        def request(client: hvac.Client) -> Any:
            options = {} if body is None else {"json": dict(body)}
            return client.adapter.request(verb, f"/v1/{path}", **options)

        return await self._run(request, path)

    async def _run(self, work: Callable[[hvac.Client], T], path: str) -> T | None:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._guarded, work, path)

    def _guarded(self, work: Callable[[hvac.Client], T], path: str) -> T | None:
        settings = self.settings
        path = path.partition("?")[0]
        try:
            return work(self._client())
        except hvac.exceptions.InvalidPath:
            return None
        except hvac.exceptions.Forbidden:
            raise VaultDenied(
                f"Vault refuses {path} to this dispatcher's token: widen the token's policy (docs/secrets.md)"
            ) from None
        except hvac.exceptions.InvalidRequest as error:
            if "check-and-set" in str(error):
                raise VaultConflict(f"{path} is in Vault already") from None
            raise VaultError(f"Vault cannot do this at {path}: {_words(error)}") from None
        except (hvac.exceptions.VaultDown, hvac.exceptions.InternalServerError) as error:
            raise VaultUnavailable(f"Vault at {settings.address} cannot answer: {_words(error)}") from None
        except (hvac.exceptions.VaultError, requests.RequestException, OSError) as error:
            raise VaultUnavailable(
                f"Vault at {settings.address} cannot be used ({type(error).__name__}): see that it runs, is"
                " unsealed, and that the dispatcher's [vault] settings name it"
            ) from None

    def _client(self) -> hvac.Client:
        settings = self.settings
        token = settings.token
        if not token and settings.token_file:
            token = Path(settings.token_file).read_text().strip()
        return hvac.Client(
            settings.address,
            # hvac would look for ~/.vault-token where it is given nothing.
            token=token or "none",
            namespace=settings.namespace or None,
            verify=settings.ca_file or True,
            timeout=settings.timeout,
            session=self._session,
        )


def _lease(found: Mapping[str, Any]) -> Lease:
    return Lease(
        lease_id=str(found.get("lease_id") or ""),
        seconds=float(found.get("lease_duration") or 0),
        renewable=bool(found.get("renewable")),
        data=dict(found.get("data") or {}),
    )


def _words(error: Exception) -> str:
    """Return Vault's own words about a refusal: they name paths and fields, and no values."""
    errors = getattr(error, "errors", None)
    text = "; ".join(map(str, errors)) if errors else type(error).__name__
    return " ".join(text.split())[:300]
