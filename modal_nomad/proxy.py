"""Proxies: egress with an address that stays the same, by the nodes that have it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from . import exception
from ._bridge import blocking
from .object import Object

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Proxy"]


class Proxy(Object):
    """An address that a Function's connections come from, for services that know their callers by it.

    The operator says under ``[proxies]`` which nodes have the address; containers are placed there.

    Example:
        >>> office = modal.Proxy.from_name("office")
        >>> @app.function(proxy=office)
        ... def ask_the_database():
        ...     return 1
    """

    kind = "proxy"
    label = "Proxy"

    @staticmethod
    def from_name(name: str, environment_name: str | None = None, *, client: Client | None = None) -> Proxy:
        """Refer to a proxy by name; nothing is asked of the server until it is used.

        Args:
            name: as the dispatcher's settings call it.
            environment_name: accepted; a cluster's proxies are the same for all environments.
            client: the connection, or the configured one.

        Raises:
            InvalidError: for a name that cannot be.
            NotFoundError: on first use, when the cluster has none of that name.

        Example:
            >>> modal.Proxy.from_name("office").name
            'office'
        """
        return Proxy._named(name, environment_name, client=client)

    async def _resolve(self, client: Client) -> None:
        assert self._name is not None
        known = client.server.render.get("proxies") or {}
        if self._name not in known:
            raise exception.NotFoundError(
                f"this cluster has no proxy {self._name!r} (it has {', '.join(sorted(known)) or 'none'}): say"
                f" which nodes have its address under [proxies.{self._name}] in the dispatcher's settings"
            )
        self._object_id = f"pr-{hashlib.sha256(self._name.encode()).hexdigest()[:22]}"

    if TYPE_CHECKING:

        @blocking
        async def hydrate(self, client: Client | None = None) -> Proxy:
            """Look now whether the cluster has it, and return it.

            Raises:
                NotFoundError: it has none of that name.

            Example:
                >>> modal.Proxy.from_name("no-such-proxy").hydrate()
                Traceback (most recent call last):
                ...
                modal_nomad.exception.NotFoundError: ...
            """
            return self
