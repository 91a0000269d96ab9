"""The requests about images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from modal_nomad.dispatcher import scope
from modal_nomad.dispatcher._peer import NORMAL
from modal_nomad.dispatcher._requests import Answer, method, optional, text
from modal_nomad.dispatcher.apps import DEFAULT_ENVIRONMENT
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.garbage import manifests_in
from modal_nomad.dispatcher.images.room import secret_refs
from modal_nomad.dispatcher.sessions import ClientSession
from modal_nomad.exception import InvalidError
from modal_nomad.wire.spec import ImageSpec, canonical_json


@method("image.ensure")
async def _ensure(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    """Build an image; its lines go out as log frames of the App ``follow``, numbered by ``n``."""
    spec, environment, version = _asked(session, args)
    await server.rights.check_values(session.identity.environments, args.get("spec"))
    if args.get("dry"):
        return {"reference": await server.images.name_of(spec, version)}, []
    told = msgspec.to_builtins(spec)
    await server.garbage.spare(told)
    # So that they are known to be here the next time; it takes a while.
    server.background(server.copied.are_here(manifests_in({"image": told})))
    name = text(args, "follow")

    def follow(number: int, line: str) -> None:
        header = {"t": "log", "a": name, "f": "", "k": "", "s": 1, "ts": time.time(), "n": number}
        session.send_frame(header, [f"{line}\n".encode()])

    built = asyncio.ensure_future(server.images.ensure(spec, environment, version, follow, session.identity))
    either: tuple[asyncio.Future[Any], ...] = (built, session.peer.closed)
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not built.done():
        # Gone for good at once when it said so; else it may ask again over another connection.
        grace = 0.0 if session.peer.close_code == NORMAL else server.settings.client_grace
        await asyncio.wait({built}, timeout=grace)
        built.cancel()
    return {"reference": await built}, []


@method("image.known")
async def _known(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    """Return the reference of an image that was built, an empty one of others.

    One is known only where all is here that another build would need: it may be gone when it is to run.
    """
    spec, _, version = _asked(session, args)
    names, lists = args.get("contents") or [], args.get("lists") or []
    if not all(isinstance(x, str) for x in (*names, *lists)):
        raise InvalidError("the request needs contents and lists as lists of strings")
    reference = await server.images.known(spec, version)
    # The specification comes with what is published.
    wanted = [name for name in names if name != spec.image_id[3:]]
    here = reference and not await server.rights.missing(session.identity.environments, wanted)
    if not here or not await server.copied.are_here(lists):
        return {"reference": ""}, []
    try:
        await server.rights.check_values(session.identity.environments, args.get("spec"))
    except InvalidError:
        # Others sent the same files: they have to come with this token as well.
        reference = ""
    return {"reference": reference}, []


@method("image.publish")
async def _publish(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    """Give an image a name, in place of what had it before."""
    environment = optional(args, "environment") or DEFAULT_ENVIRONMENT
    scope.check(session.identity, environment)
    spec = canonical_json(msgspec.to_builtins(_spec_of(args))).decode()
    await server.rights.check_values(session.identity.environments, args.get("spec"))
    await server.store.put_image_name(environment, text(args, "name"), text(args, "tag"), spec)
    return {}, []


@method("image.find")
async def _find(server: Dispatcher, session: ClientSession, args: Mapping[str, Any]) -> Answer:
    """Return the specification of the image that has a name; null where none has."""
    environment = optional(args, "environment") or DEFAULT_ENVIRONMENT
    scope.check(session.identity, environment)
    found = await server.store.named_image(environment, text(args, "name"), text(args, "tag"))
    spec = None if found is None else msgspec.json.decode(found)
    await server.rights.show_values(session.identity.environments, spec)
    return {"spec": spec}, []


def _asked(session: ClientSession, args: Mapping[str, Any]) -> tuple[ImageSpec, str, str]:
    """Return an image, the environment of its Secrets, which may be seen, and the builder's version."""
    environment = optional(args, "environment") or DEFAULT_ENVIRONMENT
    spec = _spec_of(args)
    for ref in secret_refs(spec):
        scope.check(session.identity, ref.environment or environment)
    return spec, environment, optional(args, "version") or ""


def _spec_of(args: Mapping[str, Any]) -> ImageSpec:
    try:
        return ImageSpec.from_dict(msgspec.to_builtins(msgspec.convert(args.get("spec"), ImageSpec)))
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidError(f"the image's specification is malformed: {error}") from None
