"""Environments: created by name, or by the first thing that is put into them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Coroutine
from typing import Any

from modal_nomad.dispatcher._live_apps import LiveApps
from modal_nomad.dispatcher._namespaces import EnvironmentNamespaces
from modal_nomad.dispatcher.objects.registry import DEFAULT_ENVIRONMENT, ObjectRegistry, check_environment
from modal_nomad.dispatcher.secrets import SecretStore
from modal_nomad.dispatcher.store.base import Store
from modal_nomad.dispatcher.store.objects import EnvironmentRecord
from modal_nomad.exception import AlreadyExistsError, InvalidError, NotFoundError


class Environments:
    """What environments there are.

    Args:
        store: an open store.
        objects: the registry of what is in them.
        apps: the Apps that are in them.
        secrets: the Secrets that are in them.
        namespaces: where they are on the engine.
        background: runs a coroutine that nobody waits for.
        clock: the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        objects: ObjectRegistry,
        apps: LiveApps,
        secrets: SecretStore,
        namespaces: EnvironmentNamespaces,
        background: Callable[[Coroutine[Any, Any, None]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._objects = objects
        self._apps = apps
        self._secrets = secrets
        self._namespaces = namespaces
        self._background = background
        self._clock = clock

    async def list(self) -> list[EnvironmentRecord]:
        """Return them by name; the default one is always there."""
        found = await self._store.environments()
        if all(x.name != DEFAULT_ENVIRONMENT for x in found):
            found.append(EnvironmentRecord(DEFAULT_ENVIRONMENT, 0.0))
        return sorted(found, key=lambda x: x.name)

    async def find(self, name: str) -> EnvironmentRecord:
        """Return one by name. Raises NotFoundError."""
        for record in await self.list():
            if record.name == name:
                return record
        raise NotFoundError(
            f"there is no environment {name!r}: `modal-nomad environment list` shows what there is"
        )

    async def create(
        self, name: str, *, allow_existing: bool = False, token: str | None = None
    ) -> EnvironmentRecord:
        """Create one, and its namespace under the caller's token.

        Raises:
            AlreadyExistsError: there is one of that name.
            InvalidError: no environment can have that name.
            EngineDenied: the caller may not make its namespace.
        """
        check_environment(name)
        for record in await self.list():
            if record.name == name:
                if allow_existing:
                    return record
                raise AlreadyExistsError(f"environment {name!r} exists already: choose another name")
        await self._namespaces.make(name, token)
        record = EnvironmentRecord(name, self._clock())
        await self._store.add_environment(record)
        return record

    async def update(
        self,
        name: str,
        *,
        new_name: str | None = None,
        web_suffix: str | None = None,
        token: str | None = None,
    ) -> EnvironmentRecord:
        """Change one's name or the suffix of its web endpoints.

        Raises:
            NotFoundError: there is none of that name.
            AlreadyExistsError: there is one of the new name.
            InvalidError: it is the default one, or Apps run in it: their jobs carry its name.
        """
        record = await self.find(name)
        if web_suffix is not None:
            record = dataclasses.replace(record, web_suffix=web_suffix)
        if new_name is not None and new_name != name:
            check_environment(new_name)
            if name == DEFAULT_ENVIRONMENT:
                raise InvalidError(f"environment {name!r} is the default one and keeps its name")
            if any(x.name == new_name for x in await self.list()):
                raise AlreadyExistsError(f"environment {new_name!r} exists already: choose another name")
            live = [x.name or x.app_id for x in await self._store.apps(name) if x.state != "stopped"]
            if live:
                raise InvalidError(
                    f"environment {name!r} cannot be renamed while Apps are in it ({', '.join(live[:5])}):"
                    " stop them first, and deploy them again under the new name"
                )
            if await self._secrets.named(name):
                # Where they are is their environment, and their values need not be ours to read.
                raise InvalidError(
                    f"environment {name!r} cannot be renamed while it has Secrets: create them in"
                    f" {new_name!r} and delete them here first (`modal-nomad secret list --env {name}`)"
                )
            await self._namespaces.make(new_name, token)
        await self._store.add_environment(record)
        if new_name is not None and new_name != name:
            await self._store.rename_environment(name, new_name)
            self._objects.forget_all()
            self._background(self._namespaces.drop(name, token))
            record = dataclasses.replace(record, name=new_name)
        return record

    async def delete(self, name: str, token: str | None = None) -> None:
        """Delete one with all that is in it: its Apps are stopped, its objects are gone.

        Raises:
            NotFoundError: there is none of that name.
            InvalidError: it is the default one.
        """
        await self.find(name)
        if name == DEFAULT_ENVIRONMENT:
            raise InvalidError(f"environment {name!r} is the default one and stays")
        for app in await self._store.apps(name):
            if app.state != "stopped":
                await self._apps.stop(app.app_id, token)
        for ephemeral in (False, True):
            for record in await self._store.objects(environment=name, ephemeral=ephemeral):
                await self._objects.delete(record.object_id)
        for info in await self._secrets.named(name):
            await self._secrets.delete(info.key)
        await self._store.remove_environment(name)
        self._background(self._namespaces.drop(name, token))
