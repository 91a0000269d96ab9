"""What all named objects share: a name in an environment, an id on the server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from . import exception
from ._bridge import blocking, io
from ._older_names import Resolvable
from ._options import check_object_name, warn_deprecated
from ._publishing import is_publishing

if TYPE_CHECKING:
    from .client import Client

T = TypeVar("T", bound="Object")

__all__ = ["Object"]


class Object(Resolvable):
    """Base of everything that the server knows by an id; its subclasses are made by their factories.

    Attributes:
        kind: the word for it in requests and on the command line.
        label: its name in messages.
    """

    kind: ClassVar[str] = ""
    label: ClassVar[str] = "Object"

    _object_id: str | None
    _client: Client | None
    _name: str | None
    _environment: str | None
    _create: bool
    _info: Mapping[str, Any] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise exception.InvalidError(f"{self.label} has no constructor; use {self.label}.from_name()")

    @classmethod
    def _new(cls: type[T], client: Client | None = None, object_id: str | None = None) -> T:
        made = object.__new__(cls)
        made._object_id, made._client = object_id, client
        made._name = made._environment = made._info = None
        made._create = False
        return made

    @classmethod
    def _named(
        cls: type[T],
        name: str,
        environment_name: str | None = None,
        *,
        create_if_missing: bool = False,
        client: Client | None = None,
    ) -> T:
        made = cls._new(client)
        made._name = check_object_name(cls.label, name)
        made._environment = check_environment_name(environment_name)
        made._create = create_if_missing
        return made

    def __repr__(self) -> str:
        return f"{self.label}({self._name or 'no name'!r}, {self._object_id or 'not hydrated'})"

    def __reduce__(self) -> Any:
        if self._object_id is None:
            if is_publishing():
                # Looked for where the code runs, when it is first used there.
                return _unhydrated, (type(self), {**vars(self), "_client": None})
            raise exception.InvalidError(
                f"{self!r} cannot be passed on before it is hydrated: call .hydrate() on it first"
            )
        return _by_id, (type(self), self._object_id, self._name)

    @property
    def object_id(self) -> str:
        """The id on the server. Raises ExecutionError before the object is hydrated."""
        if self._object_id is None:
            raise exception.ExecutionError(f"{self!r} has no id before it is hydrated: call .hydrate() on it")
        return self._object_id

    @property
    def is_hydrated(self) -> bool:
        """Whether the object knows its id on the server."""
        return self._object_id is not None

    @property
    def name(self) -> str | None:
        """The name; None for one that is ephemeral or known by its id alone."""
        return self._name

    if not TYPE_CHECKING:
        # Typed by each kind: a checker would make nothing of this one.

        @blocking
        async def hydrate(self, client: Client | None = None) -> Any:
            """Find the object on the server now, or create it if it is to be created, and return it.

            Raises:
                NotFoundError: naming the object and the environment.

            Example:
                >>> modal.Dict.from_name("no-such-dict").hydrate()
                Traceback (most recent call last):
                ...
                modal_nomad.exception.NotFoundError: ...
            """
            await self._hydrate(client)
            return self

    # --- for subclasses ---------------------------------------------------------------------------

    async def _target(self) -> tuple[Client, str]:
        """Return a live client and the id, found or created on first use."""
        client = self._client
        if client is None or client.is_closed():
            client = self._client = await _default_client()
        if self._object_id is None:
            await self._resolve(client)
        return client, self.object_id

    async def _resolve(self, client: Client) -> None:
        if self._name is None:
            raise exception.ExecutionError(f"{self!r} has neither a name nor an id")
        found = await io(
            client._request(
                "object.get_or_create",
                {
                    "kind": self.kind,
                    "name": self._name,
                    "environment": environment(self._environment),
                    "create": "if_missing" if self._create else "never",
                },
            )
        )
        self._object_id, self._info = found["object_id"], found
        await self._found(client, bool(found["created"]))

    async def _found(self, client: Client, created: bool) -> None:
        """Do what a kind has to do once it is found."""

    async def _hydrate(self, client: Client | None) -> None:
        if client is not None:
            self._client = client
        await self._target()

    async def _hydrate_in(self, client: Client, environment_name: str | None) -> None:
        """Find it for a Function of an environment, which counts where the object names none."""
        if self._object_id is None and self._environment is None:
            self._environment = environment_name
        await self._hydrate(client)

    async def _described(self) -> Mapping[str, Any]:
        client, object_id = await self._target()
        if self._info is None:
            request = {"object_id": object_id, "kind": self.kind}
            self._info = dict(await io(client._request("object.info", request)))
            self._name = self._info["name"]
        return self._info

    @classmethod
    async def _ephemeral(
        cls: type[T], client: Client | None, environment_name: str | None
    ) -> AsyncIterator[T]:
        check_environment_name(environment_name)
        client = client or await _default_client()
        request = {"kind": cls.kind, "environment": environment(environment_name), "create": "ephemeral"}
        made = cls._new(client, (await io(client._request("object.get_or_create", request)))["object_id"])
        try:
            yield made
        finally:
            # It is gone with this client in any case.
            with contextlib.suppress(
                exception.ConnectionError, exception.ClientClosed, exception.NotFoundError
            ):
                await io(client._request("object.delete", {"object_id": made.object_id}))

    @classmethod
    def _deprecated_lookup(cls) -> None:
        warn_deprecated(
            f"{cls.label}.lookup is deprecated: use {cls.label}.from_name, and .hydrate() to check at once"
        )

    @classmethod
    async def _delete(
        cls,
        name: str,
        client: Client | None,
        environment_name: str | None,
        allow_missing: bool = False,
    ) -> None:
        check_object_name(cls.label, name)
        client = client or await _default_client()
        request = {
            "kind": cls.kind,
            "name": name,
            "environment": environment(check_environment_name(environment_name)),
            "allow_missing": allow_missing,
        }
        await io(client._request("object.delete", request))


async def _default_client() -> Client:
    from .client import Client

    return await Client.from_env.aio()


def environment(given: str | None) -> str | None:
    """Return the environment that is meant: the given one, else the configured one."""
    if given:
        return given
    from .config import config

    value = config.get("environment")
    return str(value) if value else None


def check_environment_name(name: str | None) -> str | None:
    """Return an environment's name as it was given.

    Raises:
        InvalidError: it cannot be one.
    """
    if name:
        check_object_name("environment", name)
        if not name[0].isalnum():
            raise exception.InvalidError(
                f"Invalid environment name {name!r}; its first character must be a letter or a digit"
            )
    return name


def _by_id(cls: type[T], object_id: str, name: str | None = None) -> T:
    made = cls._new(None, object_id)
    made._name = name
    return made


def _unhydrated(cls: type[T], state: Mapping[str, Any]) -> T:
    made = cls._new()
    vars(made).update(state)
    return made
