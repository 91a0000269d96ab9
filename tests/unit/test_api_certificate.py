"""The API's certificate, changed while it serves."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from modal_nomad.dispatcher.api_certificate import ApiCertificate
from modal_nomad.dispatcher.settings_files import SettingsError
from tests._certificates import write
from tests._loops import serving


async def test_a_new_certificate_is_shown_and_half_of_one_is_not(tmp_path: Path) -> None:
    cert, key = write(tmp_path, "127.0.0.1")
    own = ApiCertificate(cert, key)

    def text() -> str:
        return Path(cert).read_text()

    def spoil() -> None:
        Path(key).write_bytes(b"no key")

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    async def shown() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        # The server's end is behind its handshake, which ends after ours.
        assert await reader.read() == b""
        writer.transport.abort()
        return ssl.DER_cert_to_PEM_cert(found)

    async with serving(served, ssl=own.context) as port:
        first = text()
        assert await shown() == first
        spoil()
        own.look()
        assert await shown() == first
        write(tmp_path, "127.0.0.1")
        own.look()
        assert await shown() == text() != first


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tls_cert and tls_key cannot be used"):
        ApiCertificate(str(tmp_path / "none.pem"), str(tmp_path / "none.key"))
