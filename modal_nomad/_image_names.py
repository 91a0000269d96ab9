"""Images apart from Functions: built when asked to, published under names, found by them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ._bridge import blocking, blocking_function, io
from .config import config, in_container
from .exception import InvalidError, NotFoundError
from .wire.spec import ImageSpec

if TYPE_CHECKING:
    from .app import App
    from .client import Client
    from .image import Image

_NAME = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,64})(:(?P<tag>[A-Za-z0-9_.-]{1,64}))?")
_LATEST = "latest"


class Named:
    """The part of ``Image`` that is about Images as such."""

    __slots__ = ()

    def pipe(self, func: Callable[..., Image], *args: Any, **kwargs: Any) -> Image:
        """Return what a function of yours makes of the Image: steps that several Images share.

        Args:
            func: gets the Image, then the arguments; returns an Image.
            *args: its further arguments.
            **kwargs: its keyword arguments.

        Raises:
            InvalidError: when it is no function, or returns no Image.

        Example:
            >>> def with_tools(image, *names):
            ...     return image.apt_install(*names)
            >>> image = Image.debian_slim().pipe(with_tools, "git", "curl")
        """
        if not callable(func):
            raise InvalidError(f"pipe got {func!r}; give a function that takes an Image and returns one")
        made: Any = func(self, *args, **kwargs)
        if not isinstance(made, Named):
            raise InvalidError(f"the function of pipe returned {made!r}; it has to return the Image")
        return cast("Image", made)

    @blocking
    async def build(self, app: App) -> Image:
        """Build the Image now, and not when a Function that uses it is run or deployed; return it.

        A Python environment is built where containers run, so for those this only makes the Image known
        to the server.

        Args:
            app: the App that it is for; Secrets with their values in the program belong to it.

        Raises:
            ImageBuildError: a step failed, or nothing can build it.

        Example:
            >>> app = modal.App.lookup("images", create_if_missing=True)
            >>> image = Image.debian_slim().env({"LEVEL": "2"}).build(app)
            >>> image.object_id
            'im-...'
        """
        from .runner import _default_client, environment_of

        client = app._client
        if client is None or client.is_closed():
            client = await _default_client()
        await _build(cast("Image", self), client, app.name or "image", environment_of(None))
        return cast("Image", self)

    @blocking
    async def publish(
        self, name: str, *, environment_name: str | None = None, client: Client | None = None
    ) -> Image:
        """Build the Image and give it a name, by which other programs find it; return it.

        Args:
            name: a name, or a name and a tag: ``"base:2"``; the tag is ``latest`` by default. What had the
                name before keeps its id, and whoever uses it.
            environment_name: the environment that the name is in.
            client: the client to use.

        Raises:
            InvalidError: for what is no name.
            ImageBuildError: a step failed, or nothing can build it.

        Example:
            >>> image = Image.debian_slim().env({"LEVEL": "3"}).publish("doc-base:3")
            >>> Image.from_name("doc-base:3").object_id == image.object_id
            True
        """
        from .runner import _default_client, environment_of

        name, tag = _name_and_tag(name)
        client, environment = client or await _default_client(), environment_of(environment_name)
        image = cast("Image", self)
        spec = await _build(image, client, "image", environment)
        told = {"name": name, "tag": tag, "environment": environment, "spec": spec}
        await io(client._request("image.publish", told))
        return image

    @staticmethod
    @blocking_function
    async def from_name(
        name: str, *, environment_name: str | None = None, client: Client | None = None
    ) -> Image:
        """Find an Image that was published under a name.

        Args:
            name: as for `publish`.
            environment_name: the environment that the name is in.
            client: the client to use.

        Raises:
            InvalidError: for what is no name.
            NotFoundError: when nothing was published under it.

        Example:
            >>> Image.debian_slim().publish("doc-plain").object_id == Image.from_name("doc-plain").object_id
            True
        """
        from .image import _FACTORY, Image
        from .runner import _default_client, environment_of

        name, tag = _name_and_tag(name)
        spec = ImageSpec()
        # A container is of one Image already; its module need not ask for others.
        if not in_container():
            client = client or await _default_client()
            asked = {"name": name, "tag": tag, "environment": environment_of(environment_name)}
            found = (await io(client._request("image.find", asked)))["spec"]
            if found is None:
                raise NotFoundError(
                    f"no Image {name}:{tag} was published here: publish it with Image.publish({name!r})"
                )
            spec = ImageSpec.from_dict(found)
        image = Image(_FACTORY, spec, (), (), None, f"{name}:{tag}")
        image._object_id = None if in_container() else spec.image_id
        return image


def _name_and_tag(given: Any) -> tuple[str, str]:
    match = _NAME.fullmatch(given) if isinstance(given, str) else None
    if match is None or given.startswith("im-"):
        raise InvalidError(
            f"the name of an Image is {given!r}; give letters, digits, '_', '.' and '-', with or without a"
            " ':tag', and not 'im-' first, as ids have it"
        )
    return match["name"], match["tag"] or _LATEST


async def _build(image: Image, client: Client, app_name: str, environment: str | None) -> dict[str, Any]:
    """Have an Image built and known to the server; return its specification's JSON object."""
    from dataclasses import asdict

    from ._image_publish import PublishedImage, make_known
    from .secret import references

    for storage in image._storage():
        await storage._hydrate_in(client, environment)

    used = image._secrets()
    secrets = await io(references(client, list(used), app_name, environment)) if used else {}
    spec, contents = image._resolve(config["force_build"], secrets)
    await io(make_known(client, environment, PublishedImage(spec, contents, spec.registry_tag)))
    image._object_id = spec.image_id
    return asdict(spec)
