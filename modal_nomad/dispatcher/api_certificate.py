"""The certificate of the dispatcher's API: its files are looked at while it serves."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl

from modal_nomad.dispatcher.settings_files import SettingsError

logger = logging.getLogger("modal_nomad.dispatcher")

_LOOK_SECONDS = 5.0
_Stamps = tuple[tuple[int, int, int], ...]


class ApiCertificate:
    """A certificate and its key, shown as they are now.

    Attributes:
        context: what connections are made with; each has the certificate that it began with.

    Args:
        cert: file with the certificate and its chain (PEM).
        key: file with its key (PEM).

    Raises:
        SettingsError: they cannot be used.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._files = (cert, key)
        try:
            self._seen = self._stamps()
            self._shown = self._loaded()
        except OSError as error:
            raise SettingsError(f"tls_cert and tls_key cannot be used: {error}") from None
        self.context = self._loaded()
        self.context.sni_callback = self._show

    async def run(self) -> None:
        """Look at the files, for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Load what has changed; what does not fit together is not shown, and looked at again."""
        try:
            stamps = self._stamps()
            if stamps == self._seen:
                return
            self._shown = self._loaded()
        except OSError as error:
            logger.warning("tls_cert and tls_key cannot be used now: %s", error)
            return
        self._seen = stamps
        logger.info("the certificate in %s was loaded", self._files[0])

    def _stamps(self) -> _Stamps:
        return tuple((x.st_mtime_ns, x.st_size, x.st_ino) for x in map(os.stat, self._files))

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self._files)
        return context

    def _show(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        connection.context = self._shown
