"""Images of an App as they are published: finished, sent, and built where they need a container runtime."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from . import _output
from ._bridge import io
from ._log import logger
from .config import config
from .exception import ImageBuildError, InvalidError
from .image import Image
from .wire.ids import new_id
from .wire.spec import CONTAINER_DRIVERS

if TYPE_CHECKING:
    from ._image_resolved import Contents
    from .app import App
    from .client import Client
    from .functions import Function
    from .secret import Secret
    from .wire.mounts import SecretRef
    from .wire.spec import ImageSpec


@dataclass(frozen=True)
class PublishedImage:
    """An Image as Functions are published with it.

    Attributes:
        spec: its finished specification.
        contents: what the server must have.
        reference: what containers are started from; empty for a Python environment on the node.
    """

    spec: ImageSpec
    contents: Contents
    reference: str = ""


def image_of(function: Function[..., Any]) -> Image:
    """Return a Function's Image. Of an App that was included, its own Functions keep its own."""
    assert function._options is not None
    return function._options.image or function.app.image or Image.debian_slim()


def resolved(app: App, secrets: Mapping[Secret, SecretRef] | None) -> dict[Image, PublishedImage]:
    """Finish every Image of an App; talks to no server.

    Args:
        app: the App.
        secrets: where each Secret is; None knows those alone that the server has anyway.

    Raises:
        FileNotFoundError: when a file that an Image adds is not there.
    """
    found: dict[Image, PublishedImage] = {}
    for function in app.registered_functions.values():
        image = image_of(function)
        if image not in found:
            spec, contents = image._resolve(config["force_build"], secrets)
            found[image] = PublishedImage(spec, contents, spec.registry_tag)
    return found


def check_built(image: Image, published: PublishedImage) -> None:
    """Refuse an Image that nobody has built. Raises InvalidError."""
    if published.spec.needs_container and not published.reference:
        raise InvalidError(f"{image!r} has to be built by a server: run or deploy its App with one first")


async def built(
    app: App,
    client: Client,
    environment: str | None,
    secrets: Mapping[Secret, SecretRef] | None,
    *,
    dry: bool = False,
) -> dict[Image, PublishedImage]:
    """Finish every Image of an App, and have those built that need it; their output goes to the terminal.

    Args:
        app: the App.
        client: the client to use.
        environment: the environment, or None for the server's.
        secrets: where each Secret is; None knows those alone that the server has anyway.
        dry: build nothing: what was never built is named as it is going to be.

    Raises:
        ImageBuildError: a step failed, or nothing can build it; the text names the step.
        FileNotFoundError: when a file that an Image adds is not there.
    """
    found = resolved(app, secrets)
    wanted = [image for image, x in found.items() if _is_built(x, client.server.render)]
    if not wanted:
        return found

    async def ensure_all() -> list[str]:
        return await asyncio.gather(*(_ensure(client, environment, found[x], dry) for x in wanted))

    references = await io(ensure_all())
    for image, reference in zip(wanted, references, strict=True):
        found[image] = PublishedImage(found[image].spec, found[image].contents, reference)
    return found


def named(app: App, render: Mapping[str, Any], repository: str = "") -> dict[Image, PublishedImage]:
    """Finish every Image of an App, those that need a build by the names that they are going to have.

    Talks to no server: the names are those that the default settings of images give.

    Args:
        app: the App.
        render: the settings for rendering jobs.
        repository: where built images lie, as the dispatcher's settings have it.

    Raises:
        InvalidError: for a repository that cannot be.
    """
    from .render.image import render_image
    from .render.image_settings import ImageSettings

    given = {"version": config["image_builder_version"], "repository": repository}
    try:
        settings = ImageSettings.from_dict(given)
    except ValueError as error:
        raise InvalidError(str(error)) from None
    found = resolved(app, None)
    for image, x in found.items():
        if _is_built(x, render):
            found[image] = replace(x, reference=settings.tag(render_image(x.spec, settings)[-1].key))
    return found


def _is_built(image: PublishedImage, render: Mapping[str, Any]) -> bool:
    """Tell whether a container image has to be built for an Image."""
    if image.reference:
        return False
    plain = render.get("build_plain_images") and render.get("driver") in CONTAINER_DRIVERS
    return image.spec.needs_container or bool(plain and image.spec.layers)


async def make_known(client: Client, environment: str | None, image: PublishedImage) -> None:
    """Have an Image built where it needs a container runtime, and the server have all that it refers to.

    Raises:
        ImageBuildError: a step failed, or nothing can build it.
    """
    from ._uploads import upload_missing

    if _is_built(image, client.server.render):
        await _ensure(client, environment, image, False)
    await upload_missing(client, image.contents)


async def _ensure(client: Client, environment: str | None, image: PublishedImage, dry: bool) -> str:
    from ._uploads import upload_missing

    image_id = image.spec.image_id
    args = {
        "spec": asdict(image.spec),
        "environment": environment,
        "version": config["image_builder_version"],
    }
    if dry:
        reply = await client._request("image.ensure", {**args, "dry": True})
        return str(reply["reference"])
    # Where nothing has changed the server need not even hear of the files.
    lists = [listed.sha for listed in image.contents.lists]
    asked = {**args, "contents": [*image.contents, *lists], "lists": lists}
    reply = await client._request("image.known", asked)
    if reply["reference"]:
        return str(reply["reference"])
    await upload_missing(client, await asyncio.to_thread(image.contents.whole))
    output, begun, seen = _output.current(), time.monotonic(), 0
    follow = new_id("ib")

    def line(header: dict[str, Any], payload: bytes) -> None:
        nonlocal seen
        # After a reconnect they come again from the first one on.
        if header.get("n", 0) < seen:
            return
        if not seen and output is not None:
            output.building(image_id)
        seen += 1
        text = payload.decode("utf-8", "replace")
        logger().debug("%s: %s", image_id[:11], text.rstrip("\n"))
        if output is not None:
            output.build_output(text)

    client._handlers.setdefault(follow, []).append(line)
    try:
        reply = await client._request("image.ensure", {**args, "follow": follow})
    except ImageBuildError as error:
        raise ImageBuildError(str(error), image_id) from None
    finally:
        client._handlers.pop(follow, None)
    if seen and output is not None:
        output.built_image(image_id, time.monotonic() - begun)
    return str(reply["reference"])
