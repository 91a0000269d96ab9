"""Environments: each has its own Apps, Dicts, Queues, Secrets and Volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from . import exception
from ._bridge import blocking, blocking_function, io
from .object import _default_client, check_environment_name, environment

if TYPE_CHECKING:
    import builtins

    from .client import Client

__all__ = ["Environment"]


class Environment:
    """A part of the server whose names are its own.

    Which one is used is said by ``environment_name=``, else by ``MODAL_ENVIRONMENT``, else by the
    profile, else it is ``main``. One comes to be by ``Environment.objects.create``, or by the first thing
    that is put into it.

    Example:
        >>> modal.Environment.objects.create("staging")
        >>> staged = modal.Dict.from_name("d", environment_name="staging", create_if_missing=True).hydrate()
        >>> modal.Dict.from_name("d").hydrate()
        Traceback (most recent call last):
        ...
        modal_nomad.exception.NotFoundError: ...
        >>> modal.Environment.objects.delete("staging")
    """

    objects: ClassVar[EnvironmentManager]
    _name: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise exception.InvalidError("Environment has no constructor; use Environment.from_name()")

    @classmethod
    def _named(cls, name: str, create: bool, client: Client | None) -> Environment:
        made = object.__new__(cls)
        made._name, made._create, made._client = name, create, client
        return made

    _create: bool
    _client: Client | None

    def __repr__(self) -> str:
        return f"Environment({self._name!r})"

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @staticmethod
    def from_name(name: str, *, create_if_missing: bool = False, client: Client | None = None) -> Environment:
        """Refer to an environment by name; nothing is asked of the server until ``hydrate``.

        Example:
            >>> modal.Environment.from_name("main").hydrate().name
            'main'
        """
        return Environment._named(_checked(name), create_if_missing, client)

    @staticmethod
    def from_context() -> Environment:
        """Refer to the environment that is used where none is named.

        Example:
            >>> modal.Environment.from_context().name
            'main'
        """
        return Environment._named(environment(None) or "main", False, None)

    @blocking
    async def hydrate(self, client: Client | None = None) -> Environment:
        """Find the environment on the server now, or create it, and return it.

        Raises:
            NotFoundError: naming it.

        Example:
            >>> modal.Environment.from_name("nowhere").hydrate()
            Traceback (most recent call last):
            ...
            modal_nomad.exception.NotFoundError: ...
        """
        self._client = client = client or self._client or await _default_client()
        if self._create:
            await io(client._request("environment.create", {"name": self._name, "allow_existing": True}))
        else:
            await io(client._request("environment.find", {"name": self._name}))
        return self


class EnvironmentManager:
    """``Environment.objects``: creates, lists and deletes environments."""

    @staticmethod
    @blocking_function
    async def create(name: str, *, allow_existing: bool = False, client: Client | None = None) -> None:
        """Create an environment.

        Raises:
            AlreadyExistsError: there is one of that name, and ``allow_existing`` is false.

        Example:
            >>> modal.Environment.objects.create("main", allow_existing=True)
        """
        client = client or await _default_client()
        request = {"name": _checked(name), "allow_existing": allow_existing}
        await io(client._request("environment.create", request))

    @staticmethod
    @blocking_function
    async def list(*, client: Client | None = None) -> builtins.list[Environment]:
        """Return the environments that this token may see, by name.

        Example:
            >>> "main" in [found.name for found in modal.Environment.objects.list()]
            True
        """
        client = client or await _default_client()
        found = (await io(client._request("environment.list", {})))["environments"]
        return [Environment._named(x["name"], False, client) for x in found]

    @staticmethod
    @blocking_function
    async def delete(name: str, *, allow_missing: bool = False, client: Client | None = None) -> None:
        """Delete an environment with all that is in it; its Apps are stopped.

        Raises:
            NotFoundError: there is none of that name, and ``allow_missing`` is false.
            InvalidError: it is ``main``.

        Example:
            >>> modal.Environment.objects.delete("nowhere", allow_missing=True)
        """
        client = client or await _default_client()
        try:
            await io(client._request("environment.delete", {"name": _checked(name)}))
        except exception.NotFoundError:
            if not allow_missing:
                raise


Environment.objects = EnvironmentManager()


def _checked(name: Any) -> str:
    if not name or not isinstance(name, str):
        raise exception.InvalidError(f"Invalid environment name {name!r}; give text")
    check_environment_name(name)
    return name
