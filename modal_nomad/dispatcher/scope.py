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
_OPEN = frozenset({"blob.missing", "server.status", "server.stop"})
_OWN_CHECKS = "environment."


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


async def check_request(server: Dispatcher, identity: Identity, method: Any, args: Mapping[str, Any]) -> None:
    """Refuse a request that reaches beyond a token's environments. Raises AuthError, NotFoundError."""
    if not identity.environments or method in _OPEN or str(method).startswith(_OWN_CHECKS):
        return
    named = False
    for key in ("app_id", "app"):
        app = args.get(key)
        if isinstance(app, str) and app.startswith("ap-"):
            check(identity, (await server.apps.find(app)).environment)
            named = True
    if isinstance(function_id := args.get("function_id"), str):
        check_function(server, identity, function_id)
        named = True
    if isinstance(call_id := args.get("call_id"), str):
        call = await server.store.call(call_id)
        if call is not None:
            check_function(server, identity, call.function_id)
        named = True
    if isinstance(object_id := args.get("object_id"), str):
        check(identity, (await server.objects.find(object_id)).environment)
        named = True
    environment = args.get("environment")
    if isinstance(environment, str) and environment:
        check(identity, environment)
    elif not named:
        check(identity, DEFAULT_ENVIRONMENT)
