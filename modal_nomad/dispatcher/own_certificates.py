"""The certificates of the dispatcher's own web endpoints and tunnels: those of a gateway, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.web import Web

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import Certificates


async def open_certificates(
    web: Web, settings: Settings, stack: contextlib.AsyncExitStack
) -> Certificates | None:
    """Load what the settings name, and keep it fresh as long as the stack lives; None where they name none.

    Raises:
        SettingsError: one cannot be had.
    """
    if not (settings.tls or settings.pki or settings.tls_cert):
        return None
    # It takes as long to import as all else that a small dispatcher starts with.
    from modal_nomad.dispatcher.gateway.certificates import CertificateSource

    given = settings.tls_settings()
    if not given.given:
        return None
    source = CertificateSource(given, web.gateway.routes.domains)
    stack.push_async_callback(source.close)
    await source.open()
    task = asyncio.get_running_loop().create_task(source.run())

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)
    return source.certificates
