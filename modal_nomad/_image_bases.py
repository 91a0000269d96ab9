"""Where an Image starts that is no Python environment: a registry, a Dockerfile, micromamba."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._image_context import AUTO_DOCKERIGNORE, context
from ._image_steps import LayerStep, Step, step_options
from .exception import InvalidError
from .wire.spec import ImageSpec

if TYPE_CHECKING:
    from .gpu import GPU
    from .image import Image
    from .mount import Mount
    from .secret import Secret

_PYTHON_VERSION = re.compile(r"3\.\d+(\.\d+)?")


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

        It must be of the platform linux/amd64, and have a CPython from 3.9 up unless ``add_python`` adds one;
        steps that install Python packages call it ``python``. With nothing else asked of it, it is run just
        as it is, and nothing is built.

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
        return _registry(
            "from_registry", tag, secret, "", setup_dockerfile_commands, force_build, add_python, kwargs
        )

    @staticmethod
    def from_gcp_artifact_registry(
        tag: str,
        secret: Secret | None = None,
        *,
        setup_dockerfile_commands: Sequence[str] = (),
        force_build: bool = False,
        add_python: str | None = None,
        **kwargs: Any,
    ) -> Image:
        """Start from a private image of Google Cloud's Artifact Registry.

        Args:
            tag: the image.
            secret: has the key of a service account as ``SERVICE_ACCOUNT_JSON``.
            setup_dockerfile_commands: as for `from_registry`.
            force_build: as for `from_registry`.
            add_python: as for `from_registry`.

        Raises:
            TypeError: as `from_registry`.
            InvalidError: as `from_registry`.

        Example:
            >>> secret = Secret.from_name("my-gcp-secret", required_keys=["SERVICE_ACCOUNT_JSON"])
            >>> image = Image.from_gcp_artifact_registry("us-east1-docker.pkg.dev/mine/repo/image:1", secret)
        """
        name = "from_gcp_artifact_registry"
        return _registry(name, tag, secret, "gcp", setup_dockerfile_commands, force_build, add_python, kwargs)

    @staticmethod
    def from_aws_ecr(
        tag: str,
        secret: Secret | None = None,
        *,
        setup_dockerfile_commands: Sequence[str] = (),
        force_build: bool = False,
        add_python: str | None = None,
        **kwargs: Any,
    ) -> Image:
        """Start from a private image of AWS's Elastic Container Registry.

        Args:
            tag: the image.
            secret: has ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and ``AWS_REGION``.
            setup_dockerfile_commands: as for `from_registry`.
            force_build: as for `from_registry`.
            add_python: as for `from_registry`.

        Raises:
            TypeError: as `from_registry`.
            InvalidError: as `from_registry`.

        Example:
            >>> secret = Secret.from_name("aws", required_keys=["AWS_ACCESS_KEY_ID"])
            >>> image = Image.from_aws_ecr("000000000000.dkr.ecr.us-east-1.amazonaws.com/mine:1", secret)
        """
        name = "from_aws_ecr"
        return _registry(name, tag, secret, "aws", setup_dockerfile_commands, force_build, add_python, kwargs)

    @staticmethod
    def from_dockerfile(
        path: str | Path,
        context_mount: Mount | None = None,
        force_build: bool = False,
        *,
        context_dir: str | Path | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: GPU | Sequence[GPU] = None,
        add_python: str | None = None,
        build_args: Mapping[str, str] | None = None,
        ignore: Sequence[str] | Callable[[Path], bool] = AUTO_DOCKERIGNORE,
    ) -> Image:
        """Start from a local Dockerfile; it and what it copies are read when the App is run or deployed.

        Args:
            path: the Dockerfile.
            context_mount: deprecated: a Mount with the files to copy.
            force_build: build this and the later steps anew.
            context_dir: where ``COPY`` finds its sources; by default the working directory.
            env: environment variables of the build.
            secrets: whose variables its ``RUN`` instructions see.
            gpu: what its ``RUN`` instructions see.
            add_python: a version such as ``"3.11"`` to add to an image that has none.
            build_args: values of its ``ARG`` instructions.
            ignore: what of the context stays out, as in `add_local_dir`; by default what
                ``<Dockerfile>.dockerignore``, else ``.dockerignore`` says.

        Raises:
            InvalidError: naming the parameter that cannot be used.

        Example:
            >>> image = Image.from_dockerfile("./Dockerfile", add_python="3.12", ignore=["*.venv"])
        """
        name = "from_dockerfile"
        found = context(
            name, dockerfile=path, context_mount=context_mount, context_dir=context_dir, ignore=ignore
        )
        args = _arguments(name, build_args)
        options, used = step_options(name, env, secrets, gpu, base=True, build_args=args)
        steps: list[Step] = [LayerStep(name, "dockerfile", (), options, used, found)]
        return _start([*steps, *_python(name, add_python)], force_build)

    @staticmethod
    def from_scratch(force_build: bool = False) -> Image:
        """Start from an image with nothing in it.

        ``add_local_...(copy=True)`` and ``dockerfile_commands`` say what it is to have.

        Args:
            force_build: build this and the later steps anew.

        Example:
            >>> Image.from_scratch()
            Image.from_scratch()
        """
        step = LayerStep("from_scratch", "base", (), {"scratch": True})
        return _start([step], force_build)

    @staticmethod
    def micromamba(python_version: str | None = None, force_build: bool = False) -> Image:
        """Start from a small system with micromamba and a Python that it installed.

        Args:
            python_version: such as ``"3.11"``; by default this machine's series.
            force_build: build this and the later steps anew.

        Raises:
            TypeError: when the version is no string.
            InvalidError: when it is no version of Python 3.

        Example:
            >>> image = Image.micromamba("3.11").micromamba_install("numpy", channels=["conda-forge"])
        """
        check_python_version("python_version", python_version)
        step = LayerStep("micromamba", "micromamba", (python_version or _local_series(),))
        return _start([step], force_build)


def check_python_version(parameter: str, version: Any) -> None:
    """Refuse what is no version of Python. Raises TypeError or InvalidError."""
    if version is not None and not isinstance(version, str):
        raise TypeError(f"{parameter} is {version!r}; give a string such as '3.11'")
    if version is not None and not _PYTHON_VERSION.fullmatch(version):
        raise InvalidError(f"{parameter} is {version!r}; give '3.x' or '3.x.y', such as '3.11'")


def _local_series() -> str:
    import sys

    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _registry(
    name: str,
    tag: Any,
    secret: Secret | None,
    cloud: str,
    setup: Sequence[str],
    force_build: bool,
    add_python: str | None,
    kwargs: Mapping[str, Any],
) -> Image:
    for key in kwargs:
        hint = ": it takes one secret=" if key == "secrets" else ""
        raise TypeError(f"{name} has no parameter {key!r}{hint}")
    if not isinstance(tag, str) or not tag.strip() or tag.startswith("-") or len(tag.split()) != 1:
        raise InvalidError(f"the image of {name} is {tag!r}; give one such as 'python:3.11-slim-bookworm'")
    options, secrets = step_options(name, secrets=() if secret is None else (secret,), cloud=cloud)
    if cloud and not secrets:
        raise InvalidError(f"{name} needs secret=, a modal.Secret with the credentials")
    steps: list[Step] = [LayerStep(name, "base", (tag,), options, secrets)]
    lines = command_lines(name, setup)
    if lines:
        steps.append(LayerStep(name, "dockerfile", lines, {}, (), context(name)))
    return _start([*steps, *_python(name, add_python)], force_build)


def command_lines(name: str, commands: Sequence[Any]) -> tuple[str, ...]:
    """Return commands as one list: each is a string, or a list of strings.

    Raises:
        InvalidError: naming the step and the command.
    """
    if isinstance(commands, str):
        commands = [commands]
    flat: list[Any] = []
    for item in commands:
        flat.extend(item if isinstance(item, (list, tuple)) else [item])
    for item in flat:
        if not isinstance(item, str) or not item.strip():
            raise InvalidError(f"{name} got {item!r}; give commands as strings or lists of strings")
    return tuple(flat)


def _python(name: str, version: str | None) -> list[Step]:
    check_python_version(f"add_python of {name}", version)
    return [LayerStep(name, "python", (version,))] if version is not None else []


def _arguments(name: str, given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(x, str) for pair in given.items() for x in pair):
        raise InvalidError(f"build_args of {name} is {given!r}; give a dict of strings")
    return dict(given)


def _start(steps: Sequence[Step], force_build: bool) -> Image:
    from .image import _FACTORY, Image

    return Image(_FACTORY, ImageSpec(), tuple(steps), (), 0 if force_build else None, "")
