"""The requests about Secrets. Values come in and never go out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modal_nomad.dispatcher._requests import Answer, method, optional, text
from modal_nomad.dispatcher.apps import DEFAULT_ENVIRONMENT
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.secrets import SecretExists, SecretKey
from modal_nomad.dispatcher.secrets.room import as_json, not_found
from modal_nomad.dispatcher.sessions import ClientSession
from modal_nomad.exception import AlreadyExistsError, InvalidError
from modal_nomad.wire.secret_values import RESERVED, is_variable

MAX_BYTES = 512 << 10
"""What a Secret may hold: Vault takes a little more in one request."""


def _environment(args: Mapping[str, Any]) -> str:
    # A key checks what its parts may be made of.
    return SecretKey(optional(args, "environment") or DEFAULT_ENVIRONMENT, "any").environment


def _key(args: Mapping[str, Any]) -> SecretKey:
    return SecretKey(_environment(args), text(args, "name"))


def _values(value: Any) -> dict[str, str]:
    """Check variables. No text of an error may hold a value."""
    if not isinstance(value, dict):
        raise InvalidError("the request needs env as an object of strings")
    for name, given in value.items():
        if not is_variable(name):
            raise InvalidError(f"a Secret has the variable {name!r}; give a non-empty name without '='")
        if name in RESERVED:
            raise InvalidError(f"the variable {name} is the container's own; give the Secret's another name")
        if not isinstance(given, str) or "\0" in given:
            raise InvalidError(f"the value of {name} must be a string without zero bytes")
    if sum(len(k) + len(v) for k, v in value.items()) > MAX_BYTES:
        raise InvalidError(f"a Secret can hold {MAX_BYTES >> 10} KiB; put more into a Volume or the image")
    return dict(value)


@method("secret.create")
async def _create(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    key, values, exists = _key(args), _values(args.get("env")), args.get("if_exists") or "fail"
    if exists not in ("fail", "replace", "keep"):
        raise InvalidError("if_exists must be 'fail', 'replace' or 'keep'")
    store = server.secrets.store
    try:
        info = await store.put(key, values, replace=exists == "replace", created_by=session.identity.name)
    except SecretExists:
        known = await store.info(key) if exists == "keep" else None
        if known is None:
            raise AlreadyExistsError(
                f"there is a Secret {key.name!r} in environment {key.environment!r} already: replace it"
                " with `modal-nomad secret create --force`, or use another name"
            ) from None
        info = known
    return as_json(info), []


@method("secret.get")
async def _get(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    from modal_nomad.wire.mounts import SecretRef
    from modal_nomad.wire.spec import FunctionSpec

    key, required = _key(args), args.get("required") or []
    if not isinstance(required, list) or not all(isinstance(x, str) for x in required):
        raise InvalidError("the request needs required as a list of strings")
    ref = SecretRef(key.name, key.environment, required=tuple(required))
    if required:
        await server.secrets.check([FunctionSpec("", "", secrets=(ref,))], key.environment)
    info = await server.secrets.store.info(key)
    if info is None:
        raise not_found(key)
    return as_json(info), []


@method("secret.update")
async def _update(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    key = _key(args)
    if not await server.secrets.store.merge(key, _values(args.get("env"))):
        raise not_found(key)
    return {}, []


@method("secret.list")
async def _list(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    found = await server.secrets.store.named(_environment(args))
    return {"secrets": [as_json(info) for info in found]}, []


@method("secret.delete")
async def _delete(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    key = _key(args)
    if not await server.secrets.store.delete(key) and not args.get("allow_missing"):
        raise not_found(key)
    return {}, []


@method("secret.keep")
async def _keep(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    given = args.get("envs")
    if not isinstance(given, list):
        raise InvalidError("the request needs envs as a list of objects")
    values = [_values(x) for x in given]
    names = await server.secrets.keep(
        _environment(args), text(args, "app"), values, owner=session.owner, dry=bool(args.get("dry"))
    )
    return {"names": names}, []
