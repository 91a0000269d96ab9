"""Where a Function is served on the web, asked of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._bridge import blocking, io
from ._web_names import usable
from .exception import InvalidError

if TYPE_CHECKING:
    from .client import Client
    from .wire.spec import WebSpec


class WebUrls:
    """The part of ``Function`` that is about the web."""

    _method: str

    async def _target(self) -> tuple[Client, str]:
        raise NotImplementedError

    def _web(self) -> WebSpec | None:
        """Return how it is served, as far as that is known here."""
        raise NotImplementedError

    def _check_not_web(self, verb: str) -> None:
        if self._web() is not None:
            raise InvalidError(
                f"A webhook function cannot be called with `.{verb}(...)`: {self!r} answers requests at its "
                "get_web_url(); use .local(...) to call it here"
            )

    @blocking
    async def get_web_url(self) -> str | None:
        """Return the URL that the Function is served at, or None where it is not served on the web.

        Of the embedded dispatcher's two forms it is the one that this machine resolves:
        ``http://<label>.localhost:PORT``, else ``http://localhost:PORT/<label>``.

        Raises:
            ExecutionError: the Function is not hydrated, and was not looked up by name.
            NotFoundError: its App was stopped.

        Example:
            >>> with app.run():
            ...     print(square.get_web_url())
            None
        """
        client, function_id = await self._target()
        found = await io(client._request("function.web_urls", {"function_id": function_id}))
        url = found["urls"].get(self._method)
        return (await io(usable({"": url})))[""] if url else None

    @property
    def web_url(self) -> str | None:
        """Deprecated form of ``get_web_url()``."""
        from ._options import warn_deprecated

        warn_deprecated("'Function.web_url' is now called 'Function.get_web_url()'")
        return self.get_web_url()
