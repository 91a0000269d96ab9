"""Names of methods from before the reference's age: they still work, and warn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._bridge import blocking

if TYPE_CHECKING:
    from .client import Client


class Resolvable:
    """Gives what has ``hydrate`` its older name."""

    @blocking
    async def resolve(self, client: Client | None = None) -> Any:
        """Deprecated form of ``hydrate()``."""
        from ._options import warn_deprecated

        warn_deprecated(f"{type(self).__name__}.resolve() is now called .hydrate()")
        mine: Any = self
        return await mine.hydrate.aio(client)


class Called:
    """Gives what has ``remote`` its older name."""

    @blocking
    async def call(self, /, *args: Any, **kwargs: Any) -> Any:
        """Deprecated form of ``remote(...)``."""
        from ._options import warn_deprecated

        warn_deprecated(f"{type(self).__name__}.call(...) is now called .remote(...)")
        mine: Any = self
        return await mine.remote.aio(*args, **kwargs)
