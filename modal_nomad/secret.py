"""Secrets: environment variables of containers whose values stand nowhere else."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import exception
from ._bridge import blocking, blocking_function, io
from ._options import check_object_name, warn_deprecated
from ._secret_values import check_values, read_dotenv
from .config import in_container
from .object import Object, _default_client, check_environment_name, environment
from .types import SecretInfo
from .wire.mounts import SecretRef
from .wire.secret_values import is_variable

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Secret"]

_DICT, _ENVIRON, _DOTENV, _VAULT = "from_dict", "from_local_environ", "from_dotenv", "from_vault"


class SecretObjects:
    """The stored Secrets, as ``Secret.objects``."""

    @staticmethod
    @blocking_function
    async def create(
        name: str,
        env_dict: Mapping[str, str | None],
        *,
        allow_existing: bool = False,
        environment_name: str | None = None,
        client: Client | None = None,
    ) -> None:
        """Store a Secret.

        Args:
            name: its name.
            env_dict: variables and their values; those that are None are left out.
            allow_existing: leave one of that name as it is, and say nothing.
            environment_name: the environment to store it in.
            client: the client to use.

        Raises:
            AlreadyExistsError: there is one of that name.
            InvalidError: a name or a value is none that a variable can have.

        Example:
            >>> Secret.objects.create("database", {"DB_PASSWORD": "hunter2"}, allow_existing=True)
        """
        exists = "keep" if allow_existing else "fail"
        await _store(name, env_dict, exists, environment_name, client)

    @staticmethod
    @blocking_function
    async def list(
        *,
        max_objects: int | None = None,
        created_before: datetime | str | None = None,
        environment_name: str | None = None,
        client: Client | None = None,
    ) -> builtins.list[Secret]:
        """Return the stored Secrets of an environment, newest first.

        Args:
            max_objects: at most so many.
            created_before: only those created before that time.
            environment_name: the environment.
            client: the client to use.

        Example:
            >>> Secret.objects.create("database", {"DB_PASSWORD": "hunter2"}, allow_existing=True)
            >>> "database" in [secret.name for secret in Secret.objects.list()]
            True
        """
        if max_objects is not None and max_objects < 0:
            raise exception.InvalidError(f"max_objects is {max_objects!r}; give a number of 0 or more")
        where = environment(check_environment_name(environment_name))
        client = client or await _default_client()
        found = (await io(client._request("secret.list", {"environment": where})))["secrets"]
        before = _time(created_before)
        found = sorted(found, key=lambda x: -x["created_at"])
        found = [x for x in found if before is None or x["created_at"] < before][:max_objects]
        return [_stored(client, x) for x in found]

    @staticmethod
    @blocking_function
    async def delete(
        name: str,
        *,
        allow_missing: bool = False,
        environment_name: str | None = None,
        client: Client | None = None,
    ) -> None:
        """Delete a stored Secret for good. Containers that run keep the variables they have.

        Raises:
            NotFoundError: there is none of that name, unless ``allow_missing``.

        Example:
            >>> Secret.objects.delete("no-such-secret", allow_missing=True)
        """
        check_object_name("Secret", name)
        client = client or await _default_client()
        where = environment(check_environment_name(environment_name))
        request = {"name": name, "environment": where, "allow_missing": allow_missing}
        await io(client._request("secret.delete", request))


class Secret(Object):
    """Environment variables for containers, such as passwords: ``@app.function(secrets=[...])``.

    Values are in no job, log or listing. Those of a stored Secret never come back out, but into containers.

    Example:
        >>> app = App("example")
        >>> @app.function(secrets=[Secret.from_dict({"API_KEY": "xyz"})])
        ... def length() -> int:
        ...     import os
        ...     return len(os.environ["API_KEY"])
        >>> with app.run():
        ...     length.remote()
        3
    """

    kind = "secret"
    label = "Secret"
    objects = SecretObjects()

    _source: str
    _given: Any
    _required: tuple[str, ...]
    _keys: Mapping[str, str]

    @classmethod
    def _made(cls, source: str, given: Any = None) -> Secret:
        made = cls._new()
        made._source, made._given, made._required, made._keys = source, given, (), {}
        return made

    def __repr__(self) -> str:
        if self._name is not None:
            return f"Secret.from_name({self._name!r})"
        shown = repr(self._given) if self._source == _VAULT else "..."
        return f"Secret.{self._source}({shown})"

    def __reduce__(self) -> Any:
        # Values do not travel in pickles, which are stored: such a Secret arrives without.
        given = self._given if self._source == _VAULT else None
        return _unpickled, (
            self._source,
            given,
            self._name,
            self._environment,
            self._required,
            dict(self._keys),
            self._object_id,
        )

    # --- where they come from ---------------------------------------------------------------------

    @staticmethod
    def from_dict(env_dict: Mapping[str, str | None] | None = None) -> Secret:
        """Return a Secret of these variables, which lives as long as the App that uses it.

        Args:
            env_dict: variables and their values; those that are None are left out.

        Raises:
            InvalidError: a value is no string.

        Example:
            >>> Secret.from_dict({"API_KEY": "xyz", "OPTIONAL": None})
            Secret.from_dict(...)
        """
        return Secret._made(_DICT, check_values("from_dict", env_dict))

    @staticmethod
    def from_local_environ(env_keys: Sequence[str]) -> Secret:
        """Return a Secret of variables that this process has; in a container it is empty.

        Raises:
            InvalidError: one of them is not set here.

        Example:
            >>> Secret.from_local_environ(["PATH"])
            Secret.from_local_environ(...)
        """
        if isinstance(env_keys, str) or not all(isinstance(x, str) for x in env_keys):
            raise exception.InvalidError("from_local_environ takes a list of names, as ['API_KEY']")
        if in_container():
            return Secret._made(_ENVIRON, {})
        missing = [name for name in env_keys if name not in os.environ]
        if missing:
            raise exception.InvalidError(
                f"the environment has no {', '.join(missing)}: set what from_local_environ is to take"
            )
        given = {name: os.environ[name] for name in env_keys}
        return Secret._made(_ENVIRON, check_values(_ENVIRON, given))

    @staticmethod
    def from_dotenv(path: str | os.PathLike[str] | None = None, *, filename: str = ".env") -> Secret:
        """Return a Secret of the variables in a ``.env`` file, which is read when the App is published.

        Args:
            path: a file or folder to look beside and above for the file, such as ``__file__``; the
                working directory by default.
            filename: the file's name.

        Example:
            >>> Secret.from_dotenv(filename=".env-dev")
            Secret.from_dotenv(...)
        """
        start = Path.cwd() if path is None else Path(path)
        return Secret._made(_DOTENV, (start.absolute(), filename))

    @staticmethod
    def from_name(
        name: str = "",
        namespace: Any = None,
        environment_name: str | None = None,
        required_keys: Sequence[str] = (),
        *,
        client: Client | None = None,
        label: str | None = None,
    ) -> Secret:
        """Refer to a stored Secret; nothing is asked of the server until it is used.

        Args:
            name: its name.
            namespace: ignored; older code passes it.
            environment_name: the environment it is in; by default the App's.
            required_keys: variables it must have; it is checked when the App is published.
            client: the client to use.
            label: the older name of ``name``.

        Raises:
            InvalidError: no Secret can have that name.

        Example:
            >>> Secret.from_name("database", required_keys=["DB_PASSWORD"])
            Secret.from_name('database')
        """
        if label is not None:
            warn_deprecated("'label' of Secret.from_name is now called 'name'")
            name = name or label
        if isinstance(required_keys, str) or not all(isinstance(x, str) for x in required_keys):
            raise exception.InvalidError("required_keys takes a list of names, as ['API_KEY']")
        made = Secret._named(name, environment_name, client=client)
        made._source, made._given, made._keys = "from_name", None, {}
        made._required = tuple(required_keys)
        return made

    @staticmethod
    def from_vault(path: str, keys: Mapping[str, str] | None = None) -> Secret:
        """Refer to what Vault makes for each container, such as a database user of its own.

        It is leased per container, renewed while the container lives, and revoked when it ends. It needs a
        Vault: on Nomad the allocation reads the path under its own identity, which its policy must allow.

        Args:
            path: what to read, as ``"database/creds/readonly"``.
            keys: variable to field, as ``{"DB_USER": "username"}``; every field by its own name by default.

        Raises:
            InvalidError: the path or the keys are none.

        Example:
            >>> Secret.from_vault("database/creds/readonly", keys={"DB_USER": "username"})
            Secret.from_vault('database/creds/readonly')
        """
        parts = path.split("/") if isinstance(path, str) else []
        if len(parts) < 2 or not all(x and x.strip(".") and x.isprintable() for x in parts):
            raise exception.InvalidError(
                f"from_vault got the path {path!r}; give one as 'database/creds/readonly'"
            )
        for variable, field in (keys or {}).items():
            if not isinstance(variable, str) or not isinstance(field, str) or not is_variable(variable):
                raise exception.InvalidError(
                    "keys of from_vault are variable to field, as {'DB_USER': 'username'}"
                )
        made = Secret._made(_VAULT, path)
        made._keys = dict(keys or {})
        return made

    # --- what can be done with a stored one -------------------------------------------------------

    @blocking
    async def hydrate(self, client: Client | None = None) -> Secret:
        """Find the stored Secret on the server now and return it.

        Raises:
            NotFoundError: there is none of that name.
            InvalidError: it lacks a required variable; or it is no stored one.

        Example:
            >>> Secret.objects.create("database", {"DB_PASSWORD": "hunter2"}, allow_existing=True)
            >>> Secret.from_name("database").hydrate().object_id
            'st-...'
        """
        await self._hydrate(client)
        return self

    @blocking
    async def info(self) -> SecretInfo:
        """Return what is known of the stored Secret.

        Example:
            >>> Secret.objects.create("database", {"DB_PASSWORD": "hunter2"}, allow_existing=True)
            >>> Secret.from_name("database").info().name
            'database'
        """
        client, _ = await self._target()
        await self._resolve(client)
        assert self._info is not None
        created = datetime.fromtimestamp(self._info["created_at"]).astimezone()
        return SecretInfo(self._info["name"], created, self._info["created_by"])

    @blocking
    async def update(self, env_dict: Mapping[str, str | None]) -> None:
        """Add variables to the stored Secret, or change them. Containers that start from now on have them.

        Raises:
            NotFoundError: there is none of that name.

        Example:
            >>> Secret.objects.create("database", {"DB_PASSWORD": "hunter2"}, allow_existing=True)
            >>> Secret.from_name("database").update({"DB_USER": "ann"})
        """
        values = check_values("update", env_dict)
        client, _ = await self._target()
        request = {"name": self._name, "environment": environment(self._environment), "env": values}
        await io(client._request("secret.update", request))

    async def _resolve(self, client: Client) -> None:
        if self._name is None:
            raise exception.InvalidError(
                f"{self!r} is not stored and has no id of its own: it is sent with the App that uses it"
            )
        request = {
            "name": self._name,
            "environment": environment(self._environment),
            "required": list(self._required),
        }
        found = await io(client._request("secret.get", request))
        self._object_id, self._info = found["secret_id"], found

    # --- what is published ------------------------------------------------------------------------

    def _reference(self) -> SecretRef:
        """Return where it is; of one that is sent with its App, that it is."""
        if self._source == _VAULT:
            return SecretRef(vault_path=self._given, keys=dict(self._keys))
        if self._name is None:
            return SecretRef(ephemeral=True)
        return SecretRef(self._name, self._environment or "", required=self._required)

    def _values(self) -> dict[str, str]:
        """Return the variables of one that is sent with its App."""
        if self._source == _DOTENV and self._given is not None:
            return check_values(_DOTENV, read_dotenv(*self._given))
        if self._given is None:
            raise exception.InvalidError(
                f"{self!r} came here in a pickle, without its values: make it anew, or use Secret.from_name"
            )
        return dict(self._given)


async def references(
    client: Client, secrets: Sequence[Secret], app: str, where: str | None, *, dry: bool = False
) -> dict[Secret, SecretRef]:
    """Return where each Secret is, having sent the values of those that live with the App.

    Args:
        client: the client to use.
        secrets: what to refer to.
        app: the App's name or description.
        where: its environment.
        dry: send what names are made of, but let the server keep nothing.
    """
    found = {secret: secret._reference() for secret in secrets}
    sent = [secret for secret, ref in found.items() if ref.ephemeral]
    if sent:
        envs = [secret._values() for secret in sent]
        request = {"app": app, "environment": where, "envs": envs, "dry": dry}
        names = (await client._request("secret.keep", request))["names"]
        for position, secret in enumerate(sent):
            found[secret] = replace(found[secret], name=names[position])
    return found


async def store(
    name: str, values: Mapping[str, str | None], *, force: bool, environment_name: str | None
) -> None:
    """Store a Secret for the command line; with ``force`` in the place of one of that name."""
    await _store(name, values, "replace" if force else "fail", environment_name, None)


async def _store(
    name: str,
    env_dict: Mapping[str, str | None],
    exists: str,
    environment_name: str | None,
    client: Client | None,
) -> None:
    check_object_name("Secret", name)
    request = {
        "name": name,
        "environment": environment(check_environment_name(environment_name)),
        "env": check_values("create", env_dict),
        "if_exists": exists,
    }
    client = client or await _default_client()
    await io(client._request("secret.create", request))


def check_secrets(where: str, secrets: Any) -> tuple[Secret, ...]:
    """Return the Secrets of a parameter.

    Raises:
        InvalidError: it is no list or tuple of Secrets.
    """
    if secrets is None:
        return ()
    if not isinstance(secrets, (list, tuple)) or not all(isinstance(x, Secret) for x in secrets):
        raise exception.InvalidError(
            f"secrets of {where} must be a list or tuple of Secrets, as [modal.Secret.from_name('my-secret')]"
        )
    return tuple(secrets)


def _time(value: datetime | str | None) -> float | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.timestamp()
    except (ValueError, AttributeError):
        raise exception.InvalidError(
            f"created_before is {value!r}; give a datetime, or text as '2026-01-31'"
        ) from None


def _stored(client: Client, found: Mapping[str, Any]) -> Secret:
    secret = Secret.from_name(found["name"], environment_name=found["environment"], client=client)
    secret._object_id, secret._info = found["secret_id"], found
    return secret


def _unpickled(
    source: str,
    given: Any,
    name: str | None,
    where: str | None,
    required: tuple[str, ...],
    keys: Mapping[str, str],
    object_id: str | None,
) -> Secret:
    made = Secret._made(source, given)
    made._name, made._environment, made._required, made._keys = name, where, required, keys
    made._object_id = object_id
    return made
