"""The certificates that a gateway shows: from files and from Vault, changed while it serves.

A connection takes its certificate when it begins, by the name that its client asks for; what is loaded later
concerns later connections alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.hashicorp.vault import VaultClient, VaultError, VaultSettings

logger = logging.getLogger("modal_nomad.dispatcher")

_RENEW_AT = 2 / 3
_AGAIN_SECONDS = 5.0
_PKI_NAMES: Mapping[str, type] = {
    "address": str,
    "token": str,
    "token_file": str,
    "namespace": str,
    "ca_file": str,
    "mount": str,
    "role": str,
    "names": list,
    "custom_domains": bool,
    "ttl": str,
}


@dataclass(frozen=True)
class TlsSettings:
    """Where certificates come from.

    Attributes:
        files: certificates and their keys.
        interval: seconds between looks at them.
        vault: how to reach Vault; None for no certificates of its.
        mount: the PKI engine.
        role: what issues them.
        names: for these hosts.
        custom_domains: and for the custom domains of endpoints.
        ttl: how long they are to be good for.
    """

    files: tuple[tuple[str, str], ...] = ()
    interval: float = 5.0
    vault: VaultSettings | None = field(default=None, repr=False)
    mount: str = "pki"
    role: str = ""
    names: tuple[str, ...] = ()
    custom_domains: bool = False
    ttl: str = ""

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return bool(self.files) or self.vault is not None

    @classmethod
    def read(cls, tls: Mapping[str, Any], pki: Mapping[str, Any]) -> TlsSettings:
        """Read the tables ``[tls]`` and ``[pki]``. Raises SettingsError."""
        if unknown := sorted(set(tls) - {"certificates", "interval"}):
            raise SettingsError(f"[tls] has no setting {unknown[0]!r}; known are certificates, interval")
        files = []
        for pair in tls.get("certificates", []):
            if not isinstance(pair, dict) or set(pair) != {"cert", "key"}:
                raise SettingsError('[tls]: a certificate is { cert = "FILE", key = "FILE" }')
            files.append((str(pair["cert"]), str(pair["key"])))
        for name, value in pki.items():
            if name not in _PKI_NAMES:
                raise SettingsError(
                    f"[pki] has no setting {name!r}; known are {', '.join(sorted(_PKI_NAMES))}"
                )
            if type(value) is not _PKI_NAMES[name]:
                raise SettingsError(f"[pki]: {name} must be of type {_PKI_NAMES[name].__name__}")
        vault = None
        if pki.get("address"):
            if not pki.get("role") or not (pki.get("names") or pki.get("custom_domains")):
                raise SettingsError(
                    "[pki] needs a role and names: what issues certificates, and for which hosts"
                )
            given = {
                k: pki[k] for k in ("address", "token", "token_file", "namespace", "ca_file") if pki.get(k)
            }
            if given.get("token_file"):
                given.setdefault("token", "")
            vault = dataclasses.replace(VaultSettings.from_env(), **given)
        return cls(
            tuple(files),
            float(tls.get("interval", cls.interval)),
            vault,
            str(pki.get("mount") or cls.mount).strip("/"),
            str(pki.get("role", "")),
            tuple(map(str, pki.get("names", ()))),
            bool(pki.get("custom_domains", False)),
            str(pki.get("ttl", "")),
        )


class Certificate:
    """One certificate with its key, ready for connections.

    Attributes:
        names: the hosts it is for.
        ends: seconds since 1970.
        renew: when it is to be replaced, in the same seconds.

    Args:
        chain: it and what signed it, PEM.
        key: its key, PEM.

    Raises:
        ValueError: they are no such things, or do not belong together.
    """

    def __init__(self, chain: bytes, key: bytes) -> None:
        found = x509.load_pem_x509_certificate(chain)
        try:
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            self.names = [
                *(x.lower() for x in names.get_values_for_type(x509.DNSName)),
                *map(str, names.get_values_for_type(x509.IPAddress)),
            ]
        except x509.ExtensionNotFound:
            self.names = []
        begins = found.not_valid_before_utc.timestamp()
        self.ends = found.not_valid_after_utc.timestamp()
        self.renew = begins + (self.ends - begins) * _RENEW_AT
        self._contexts = {h2: _context(h2) for h2 in (False, True)}
        # The module loads files alone; in memory where that can be, for the key is Vault's, not the disk's.
        with _file(chain) as one, _file(key) as other:
            try:
                for context in self._contexts.values():
                    context.load_cert_chain(one, other)
            except (ssl.SSLError, OSError) as error:
                raise ValueError(f"certificate and key cannot be used together: {error}") from None

    def context(self, h2: bool = False) -> ssl.SSLContext:
        """Return what shows it; with HTTP/2 on offer or without."""
        return self._contexts[h2]


def _context(h2: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2", "http/1.1"] if h2 else ["http/1.1"])
    return context


@contextlib.contextmanager
def _file(data: bytes) -> Any:
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            os.write(number, data)
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            yield file.name


class Certificates:
    """Those of a gateway, or of a dispatcher, by host."""

    def __init__(self) -> None:
        self._sets: dict[str, Certificate] = {}
        self._by_name: dict[str, Certificate] = {}
        self._first: Certificate | None = None

    def put(self, place: str, certificate: Certificate) -> None:
        """Show a certificate from now on, in place of the one that was at this place."""
        self._sets[place] = certificate
        self._first = next(iter(self._sets.values()))
        self._by_name = {name: x for x in reversed(self._sets.values()) for name in x.names}

    def drop(self, place: str) -> None:
        """Show a certificate no more."""
        if self._sets.pop(place, None) is not None:
            self._first = next(iter(self._sets.values()), None)
            self._by_name = {name: x for x in reversed(self._sets.values()) for name in x.names}

    def choose(self, host: str | None) -> Certificate | None:
        """Return the certificate for a host: its own, its domain's, or the first there is."""
        if host:
            name = host.lower().rstrip(".")
            found = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
            if found is not None:
                return found
        return self._first

    def context(self, h2: bool = False) -> ssl.SSLContext:
        """Return a context for a listening socket: it chooses for each connection."""
        context = _context(h2)

        def chosen(connection: Any, host: str | None, _: ssl.SSLContext) -> int | None:
            return self.show(connection, host, h2)

        context.sni_callback = chosen
        return context

    def show(self, connection: Any, host: str | None, h2: bool = False) -> int | None:
        """Have a connection whose client names a host go on with the certificate for it.

        Returns:
            None, or the TLS alert that ends the handshake.
        """
        found = self.choose(host)
        if found is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = found.context(h2)
        return None


class CertificateSource:
    """Loads certificates and keeps them fresh.

    Args:
        settings: where they come from.
        domains: gives the custom domains of endpoints.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        settings: TlsSettings,
        domains: Callable[[], Iterable[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.certificates = Certificates()
        self._settings = settings
        self._domains = domains
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[Any, ...]] = {}
        self._renew: dict[str, float] = {}
        self._vault = VaultClient(settings.vault) if settings.vault is not None else None

    async def open(self) -> None:
        """Load all of them. Raises SettingsError: one cannot be had."""
        for pair in self._settings.files:
            try:
                self._load(pair)
            except (OSError, ValueError) as error:
                raise SettingsError(f"[tls]: {pair[0]} and {pair[1]}: {error}") from None
        for name in self._settings.names:
            try:
                await self._issue(name)
            except (VaultError, ValueError) as error:
                raise SettingsError(f"[pki]: no certificate for {name}: {error}") from None

    async def run(self) -> None:
        """Look for what is to be loaded again, for ever."""
        while True:
            await asyncio.sleep(self._settings.interval)
            await self.look()

    async def look(self) -> None:
        """Load what has changed, and have issued anew what is near its end. What fails is tried again."""
        for pair in self._settings.files:
            try:
                self._load(pair)
            except (OSError, ValueError) as error:
                # Half of a new pair, perhaps: the old one is shown meanwhile.
                logger.warning("%s and %s are not shown: %s", *pair, error)
        for name in self._wanted():
            if self._renew.get(name, 0.0) > self._clock():
                continue
            try:
                await self._issue(name)
            except (VaultError, ValueError) as error:
                self._renew[name] = self._clock() + _AGAIN_SECONDS
                logger.warning("no new certificate for %s: %s", name, error)

    async def close(self) -> None:
        """Release what it holds."""
        if self._vault is not None:
            await self._vault.close()

    def _wanted(self) -> list[str]:
        if self._vault is None:
            return []
        names = list(self._settings.names)
        if self._settings.custom_domains:
            custom = sorted(set(self._domains()) - set(names))
            for name in [x for x in self._renew if x not in names and x not in custom]:
                del self._renew[name]
                self.certificates.drop(f"pki:{name}")
            names += custom
        return names

    def _load(self, pair: tuple[str, str]) -> None:
        stamps = tuple((x.st_mtime_ns, x.st_size, x.st_ino) for x in map(os.stat, pair))
        if self._seen.get(pair) == stamps:
            return
        certificate = Certificate(Path(pair[0]).read_bytes(), Path(pair[1]).read_bytes())
        self.certificates.put(f"file:{pair[0]}", certificate)
        self._seen[pair] = stamps
        logger.info("certificate for %s from %s", ", ".join(certificate.names), pair[0])

    async def _issue(self, name: str) -> None:
        assert self._vault is not None
        settings = self._settings
        chain, key = await self._vault.issue(settings.mount, settings.role, name, settings.ttl)
        certificate = Certificate(chain.encode(), key.encode())
        self.certificates.put(f"pki:{name}", certificate)
        self._renew[name] = certificate.renew
        logger.info("certificate for %s from Vault", name)
