"""``Dict.objects``, ``Queue.objects``, ...: the named objects of a kind, as a whole."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._bridge import blocking, io
from ._options import check_object_name
from .exception import InvalidError
from .object import Object, _default_client, check_environment_name, environment

if TYPE_CHECKING:
    import builtins

    from .client import Client

T = TypeVar("T", bound=Object)


class ObjectManager(Generic[T]):
    """Creates, lists and deletes the named objects of a kind.

    Example:
        >>> modal.Dict.objects.create("jobs", allow_existing=True)
        >>> "jobs" in [found.name for found in modal.Dict.objects.list()]
        True
        >>> modal.Dict.objects.delete("jobs")
    """

    def __init__(self, of: type[T]) -> None:
        self._of = of

    @blocking
    async def create(
        self,
        name: str,
        *,
        allow_existing: bool = False,
        environment_name: str | None = None,
        client: Client | None = None,
    ) -> None:
        """Create a named object.

        Raises:
            AlreadyExistsError: there is one of that name, and ``allow_existing`` is false.
            InvalidError: for a name that cannot be.

        Example:
            >>> modal.Dict.objects.create("settings")
            >>> modal.Dict.objects.create("settings")
            Traceback (most recent call last):
            ...
            modal_nomad.exception.AlreadyExistsError: ...
            >>> modal.Dict.objects.delete("settings")
        """
        check_object_name(self._of.label, name)
        client = client or await _default_client()
        request = {
            "kind": self._of.kind,
            "name": name,
            "environment": environment(check_environment_name(environment_name)),
            "create": "if_missing" if allow_existing else "always",
        }
        await io(client._request("object.get_or_create", request))

    @blocking
    async def list(
        self,
        *,
        max_objects: int | None = None,
        created_before: datetime.datetime | str | None = None,
        environment_name: str | None = None,
        client: Client | None = None,
    ) -> builtins.list[T]:
        """Return the named objects of an environment, newest first, hydrated.

        Args:
            max_objects: at most so many.
            created_before: only those made before this moment; text is read as ISO 8601.
            environment_name: the environment, or the configured one.
            client: the connection, or the configured one.

        Example:
            >>> modal.Dict.objects.list(max_objects=0)
            []
        """
        if max_objects is not None and (type(max_objects) is not int or max_objects < 0):
            raise InvalidError(f"max_objects is {max_objects!r}; give a whole number of at least 0")
        client = client or await _default_client()
        request = {
            "kind": self._of.kind,
            "environment": environment(check_environment_name(environment_name)),
            "limit": max_objects,
            "created_before": _seconds(created_before),
        }
        found = (await io(client._request("object.list", request)))["objects"]
        return [self._made(client, entry) for entry in found]

    @blocking
    async def delete(
        self,
        name: str,
        *,
        allow_missing: bool = False,
        environment_name: str | None = None,
        client: Client | None = None,
    ) -> None:
        """Delete a named object with all that is in it.

        Raises:
            NotFoundError: there is none of that name, and ``allow_missing`` is false.

        Example:
            >>> modal.Dict.objects.delete("no-such-dict", allow_missing=True)
        """
        await self._of._delete(name, client, environment_name, allow_missing)

    def _made(self, client: Client, entry: dict[str, Any]) -> T:
        made = self._of._new(client, entry["object_id"])
        made._name, made._environment, made._info = entry["name"], entry["environment"], entry
        return made


def _seconds(moment: datetime.datetime | str | None) -> float | None:
    if moment is None:
        return None
    if isinstance(moment, str):
        try:
            moment = datetime.datetime.fromisoformat(moment)
        except ValueError:
            raise InvalidError(
                f"created_before is {moment!r}; give a datetime, or text such as '2026-01-31T12:00:00'"
            ) from None
    return moment.timestamp()
