"""Which Nomad namespace each environment is, and which environments a Nomad token may touch therefore."""

from __future__ import annotations

import re
from collections.abc import Set

from modal_nomad.engines.base import Engine
from modal_nomad.exception import AuthError, InvalidError
from modal_nomad.render import RenderSettings

_NAME = re.compile(r"[A-Za-z0-9-]{1,128}")


class EnvironmentNamespaces:
    """The namespaces of environments, on an engine that has such.

    Args:
        engine: a started engine.
        render: how jobs are rendered.
    """

    def __init__(self, engine: Engine, render: RenderSettings) -> None:
        self._engine = engine
        self._render = render

    def of(self, environment: str) -> str:
        """Return an environment's namespace. Raises InvalidError where it can have none."""
        found = self._render.namespace_of(environment)
        if not self._render.namespaces:
            return found
        remedy = "choose another name, or name its namespace under [namespaces] in the dispatcher's settings"
        if not _NAME.fullmatch(found):
            raise InvalidError(
                f"environment {environment!r} cannot be a Nomad namespace, which has letters, digits and '-':"
                f" {remedy}"
            )
        if found == environment and any(
            namespace == found and name not in (environment, "*")
            for name, namespace in self._render.namespaces.items()
        ):
            raise InvalidError(
                f"environment {environment!r} would be the Nomad namespace that another one has: {remedy}"
            )
        return found

    async def make(self, environment: str, token: str | None) -> None:
        """Make an environment's namespace where there is none. Raises InvalidError, EngineDenied."""
        await self._engine.make_namespace(self.of(environment), environment, token=token)

    async def drop(self, environment: str, token: str | None) -> None:
        """Remove an environment's namespace, if it was made here."""
        await self._engine.drop_namespace(self.of(environment), environment, token=token)

    def environments(self, visible: Set[str] | None) -> tuple[str, ...]:
        """Return the only environments that who has rights in these namespaces may touch; none means all.

        Raises:
            AuthError: there are none that it may.
        """
        named = self._render.namespaces
        if visible is None or not named or "*" in named:
            # Where environments share a namespace, it says nothing of what may be touched.
            return ()
        found = {name for name, namespace in named.items() if namespace in visible}
        found |= {name for name in visible if name not in named and name not in named.values()}
        if not found:
            raise AuthError(
                "this Nomad token has no right in any environment's namespace: use one with a policy for it"
            )
        return tuple(sorted(found))
