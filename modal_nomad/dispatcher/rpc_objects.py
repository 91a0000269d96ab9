"""Requests that all kinds of named objects share, and those for environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modal_nomad.dispatcher import scope
from modal_nomad.dispatcher._requests import Answer, method, optional, text
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.sessions import ClientSession
from modal_nomad.dispatcher.store.objects import EnvironmentRecord, ObjectRecord
from modal_nomad.exception import AuthError, InvalidError, NotFoundError


def _described(record: ObjectRecord) -> dict[str, Any]:
    return {
        "object_id": record.object_id,
        "name": record.name,
        "environment": record.environment,
        "created_at": record.created_at,
        "created_by": record.created_by,
        "detail": dict(record.detail),
    }


@method("object.get_or_create")
async def _get_or_create(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    """``create`` is ``never``, ``if_missing``, ``always`` or ``ephemeral``."""
    kind, create, environment = text(args, "kind"), args.get("create", "never"), optional(args, "environment")
    by = session.identity.name
    created = False
    if create == "ephemeral":
        record, created = await server.objects.ephemeral(kind, environment, session.owner, by), True
    elif create in ("if_missing", "always"):
        record, created = await server.objects.create(
            kind, text(args, "name"), environment, allow_existing=create == "if_missing", created_by=by
        )
    elif create == "never":
        record = await server.objects.named(kind, text(args, "name"), environment)
    else:
        raise InvalidError("create is one of never, if_missing, always and ephemeral")
    return {**_described(record), "created": created}, []


@method("object.info")
async def _info(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    return _described(await server.objects.find(text(args, "object_id"), optional(args, "kind"))), []


@method("object.list")
async def _list(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    limit, before = args.get("limit"), args.get("created_before")
    if limit is not None and (type(limit) is not int or not 0 <= limit < 1 << 53):
        raise InvalidError("limit must be a whole number of 0 or more")
    if before is not None and not isinstance(before, (int, float)):
        raise InvalidError("created_before must be a number of seconds")
    found = await server.objects.list(
        text(args, "kind"),
        optional(args, "environment"),
        limit=limit,
        created_before=None if before is None else float(before),
    )
    return {"objects": [_described(x) for x in found]}, []


@method("object.delete")
async def _delete(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    object_id = optional(args, "object_id")
    if object_id is None:
        try:
            record = await server.objects.named(
                text(args, "kind"), text(args, "name"), optional(args, "environment")
            )
        except NotFoundError:
            if not args.get("allow_missing"):
                raise
            return {"deleted": False}, []
        object_id = record.object_id
    await server.objects.delete(object_id)
    return {"deleted": True}, []


@method("object.rename")
async def _rename(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    object_id = optional(args, "object_id")
    if object_id is None:
        record = await server.objects.named(
            text(args, "kind"), text(args, "name"), optional(args, "environment")
        )
        object_id = record.object_id
    return _described(await server.objects.rename(object_id, text(args, "new_name"))), []


# --- environments


def _environment(record: EnvironmentRecord) -> dict[str, Any]:
    return {"name": record.name, "created_at": record.created_at, "web_suffix": record.web_suffix}


def _unscoped(session: ClientSession) -> None:
    if session.identity.environments:
        raise AuthError(
            f"this token is for the environments {', '.join(session.identity.environments)}, and may not"
            " create, change or delete any: use a token without --env"
        )


@method("environment.list")
async def _environments(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    allowed = session.identity.environments
    found = [x for x in await server.environments.list() if not allowed or x.name in allowed]
    return {"environments": [_environment(x) for x in found]}, []


@method("environment.create")
async def _create_environment(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    _unscoped(session)
    allow = bool(args.get("allow_existing"))
    token = session.identity.token
    made = await server.environments.create(text(args, "name"), allow_existing=allow, token=token)
    return _environment(made), []


@method("environment.find")
async def _find_environment(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    name = text(args, "name")
    scope.check(session.identity, name)
    return _environment(await server.environments.find(name)), []


@method("environment.update")
async def _update_environment(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    _unscoped(session)
    suffix = args.get("web_suffix")
    if suffix is not None and not isinstance(suffix, str):
        raise InvalidError("web_suffix must be a string")
    changed = await server.environments.update(
        text(args, "name"),
        new_name=optional(args, "new_name"),
        web_suffix=suffix,
        token=session.identity.token,
    )
    await server.web.read_suffixes()
    return _environment(changed), []


@method("environment.delete")
async def _delete_environment(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    _unscoped(session)
    await server.environments.delete(text(args, "name"), session.identity.token)
    return {}, []
