"""Where an Image starts that is no Python environment: an image of a registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._image_steps import LayerStep
from .exception import InvalidError
from .wire.spec import ImageSpec

if TYPE_CHECKING:
    from .image import Image
    from .secret import Secret


class Bases:
    """The part of ``Image`` that starts from images of other people."""

    __slots__ = ()

    @staticmethod
    def from_registry(
        tag: str,
        *,
        secret: Secret | None = None,
        setup_dockerfile_commands: Sequence[str] = (),
        force_build: bool = False,
        add_python: str | None = None,
        **kwargs: Any,
    ) -> Image:
        """Start from an image of a registry, such as Docker Hub.

        It must be of the platform linux/amd64, and have a CPython from 3.9 up unless ``add_python`` adds one.
        With nothing else asked of it, it is run just as it is, and nothing is built.

        Args:
            tag: the image, as ``docker pull`` takes it.
            secret: has ``REGISTRY_USERNAME`` and ``REGISTRY_PASSWORD``, for a private one.
            setup_dockerfile_commands: lines of a Dockerfile that come first.
            force_build: build this and the later steps anew.
            add_python: a version such as ``"3.11"`` to add to an image that has none.

        Raises:
            TypeError: for ``secrets=`` and other names that are no parameters.
            InvalidError: when the tag is no string.

        Example:
            >>> Image.from_registry("python:3.11-slim-bookworm")
            Image.from_registry('python:3.11-slim-bookworm')
        """
        _refuse("from_registry", kwargs)
        given = {"secret": secret, "add_python": add_python, "setup": list(setup_dockerfile_commands)}
        return _registry("from_registry", tag, given, force_build)


def _registry(name: str, tag: Any, given: dict[str, Any], force_build: bool) -> Image:
    from .image import _FACTORY, Image

    if not isinstance(tag, str) or not tag.strip() or tag.startswith("-") or len(tag.split()) != 1:
        raise InvalidError(f"the image of {name} is {tag!r}; give one such as 'python:3.11-slim-bookworm'")
    options = {key: value for key, value in given.items() if value}
    step = LayerStep(name, "base", (tag,), options)
    return Image(_FACTORY, ImageSpec(), (step,), (), force_build, "")


def _refuse(name: str, kwargs: dict[str, Any]) -> None:
    for key in kwargs:
        hint = ": it takes one secret=" if key == "secrets" else ""
        raise TypeError(f"{name} has no parameter {key!r}{hint}")
