"""What a token that is scoped to environments may touch; one without a scope sees all.

Code in a container may touch what the token that deployed it may. A call's and an App's environment never
change, so each is looked up where a request names one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modal_nomad.dispatcher.apps import DEFAULT_ENVIRONMENT
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.exception import AuthError

if TYPE_CHECKING:
    from modal_nomad.dispatcher.core import Dispatcher

# Requests about the server as a whole, which name no environment, and those that check by themselves.
OPEN = frozenset({"blob.missing", "server.status", "server.stop"})
_OWN_CHECKS = "environment."
# What has its environment by an id. All other requests are about the environment that they name, or the
# default one, whatever ids stand beside it.
_SUBJECTS = {
    "app.history": "app",
    "app.resolve": "app",
    "app.stop": "app_id",
    "app.subscribe": "app_id",
    "call": "call_id",
    "dict": "object_id",
    "function": "function_id",
    "function.lookup": "app",
    "object": "object_id",
    "queue": "object_id",
}


def check(identity: Identity, environment: str) -> None:
    """Refuse an environment that a token is not for.

    Raises:
        AuthError: naming the environments that it is for.
    """
    if identity.environments and environment not in identity.environments:
        allowed = ", ".join(identity.environments)
        raise AuthError(
            f"this token is for the environments {allowed}, not for {environment!r}:"
            " give --env, or set MODAL_ENVIRONMENT"
        )


def check_unscoped(identity: Identity, volume: str) -> None:
    """Refuse a volume of the cluster to a token of some environments: it is in none.

    Raises:
        AuthError: the token is for some environments alone.
    """
    if identity.environments:
        raise AuthError(
            f"this token is for the environments {', '.join(identity.environments)}, and Nomad's volume"
            f" {volume!r} is in none: use a token that is for all, or a Volume without backend="
        )


def narrowed(one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    """Return what two scopes both allow; an empty one allows all."""
    if not one or not other:
        return tuple(one or other)
    # Both allow the environment that they meet in, so this is never empty.
    return tuple(x for x in one if x in other)


def of_caller(server: Dispatcher, identity: Identity) -> Identity | None:
    """Return an identity with its scope; None for a container that this dispatcher does not know by now."""
    if not identity.container:
        return identity
    of_build = server.images.scopes.get(identity.container)
    if of_build is not None:
        return replace(identity, environments=of_build)
    info = server.containers.infos.get(identity.container)
    return None if info is None else replace(identity, environments=info.function.spec.scope)


def check_function(server: Dispatcher, identity: Identity, function_id: str) -> None:
    """Refuse a Function of an environment that a token is not for. Raises AuthError."""
    state = server.functions.get(function_id)
    if state is not None:
        check(identity, state.environment)


def check_live_call(server: Dispatcher, identity: Identity, call_id: str) -> None:
    """Refuse a call in progress of an environment that a token is not for. Raises AuthError."""
    function_id = server.calls.function_of(call_id)
    if function_id is not None:
        check_function(server, identity, function_id)


async def check_call(server: Dispatcher, identity: Identity, call_id: str) -> None:
    """Refuse a call of an environment that a token is not for. Raises AuthError."""
    function_id = server.calls.function_of(call_id) or server.graph.function_of(call_id)
    if function_id in server.functions:
        check_function(server, identity, function_id)
        return
    # Its Function is gone, and its results are kept.
    call = await server.store.call(call_id)
    if call is not None:
        check(identity, call.environment)
    elif function_id is not None and (function := await server.store.function(function_id)) is not None:
        check(identity, function.environment)


async def check_request(server: Dispatcher, identity: Identity, method: Any, args: Mapping[str, Any]) -> None:
    """Refuse a request that reaches beyond a token's environments. Raises AuthError, NotFoundError."""
    if not identity.environments or method in OPEN or str(method).startswith(_OWN_CHECKS):
        return
    named, environment = set(), args.get("environment")
    if not isinstance(environment, str):
        # What is none of a request is refused where it is read.
        environment = ""
    for key in ("app_id", "app"):
        app = args.get(key)
        if isinstance(app, str) and app.startswith("ap-"):
            check(identity, (await server.apps.find(app, environment or None)).environment)
            named.add(key)
    if isinstance(function_id := args.get("function_id"), str):
        check_function(server, identity, function_id)
        named.add("function_id")
    if isinstance(call_id := args.get("call_id"), str):
        await check_call(server, identity, call_id)
        named.add("call_id")
    if isinstance(object_id := args.get("object_id"), str) and object_id:
        check(identity, (await server.objects.find(object_id)).environment)
        named.add("object_id")
    if environment:
        check(identity, environment)
    elif _subject(str(method)) not in named:
        check(identity, DEFAULT_ENVIRONMENT)


def _subject(method: str) -> str | None:
    return _SUBJECTS.get(method) or _SUBJECTS.get(method.partition(".")[0])
