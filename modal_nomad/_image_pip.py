"""The steps of an Image that install Python packages: parameters checked, files read later."""

from __future__ import annotations

import re
import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ._image_steps import PipStep, Step, step_options
from ._options import check_env
from .exception import InvalidError
from .wire.spec import ImageSpec

if TYPE_CHECKING:
    from .image import Image
    from .secret import Secret

_SPECIFIER = re.compile(r"[A-Za-z0-9./~@:]")


class PipInstalls:
    """The part of ``Image`` that installs Python packages."""

    __slots__ = ()

    _spec: ImageSpec

    @abstractmethod
    def _build_step(self, step: Step, name: str, force_build: bool = False) -> Image: ...

    def _pip(
        self,
        name: str,
        packages: tuple[str, ...],
        options: dict[str, Any],
        *,
        force_build: bool,
        requirements: tuple[str, ...] = (),
        pyproject: str = "",
        extras: tuple[str, ...] = (),
    ) -> Image:
        options, secrets = pip_options(name, image_env=self._spec.env, **options)
        if not (packages or requirements or pyproject):
            return cast("Image", self)
        step = PipStep(name, packages, options, requirements, pyproject, extras, secrets)
        return self._build_step(step, name, force_build)

    def pip_install(
        self,
        *packages: str | list[str],
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Any] = (),
        gpu: Any = None,
    ) -> Image:
        """Install Python packages.

        Args:
            *packages: requirement specifiers, or lists of them: ``"numpy>=2"``.
            find_links: a page or directory with distributions.
            index_url: the package index to use in place of the default.
            extra_index_url: one more package index.
            pre: allow pre-releases.
            extra_options: further words for the installer, as on a command line.
            force_build: build this and the later steps anew.
            env: environment variables of this step.
            secrets: whose variables the step sees; it needs a container runtime then.
            gpu: what the step sees; it needs a container runtime then.

        Raises:
            InvalidError: when a package is no string, or is a flag; for a build step after files that
                are added at container start.

        Example:
            >>> image = Image.debian_slim().pip_install("click", "httpx~=0.27")
        """
        given = {
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
            "env": env,
            "secrets": secrets,
            "gpu": gpu,
        }
        found = packages_of("pip_install", packages)
        return self._pip("pip_install", found, given, force_build=force_build)

    def uv_pip_install(
        self,
        *packages: str | list[str],
        requirements: Sequence[str] | None = None,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        uv_version: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Any] = (),
        gpu: Any = None,
    ) -> Image:
        """Install Python packages with uv; as `pip_install`, which uses uv here too.

        Args:
            *packages: requirement specifiers, or lists of them.
            requirements: local requirements files, read when the App is run or deployed.
            find_links: a page or directory with distributions.
            index_url: the package index to use in place of the default.
            extra_index_url: one more package index.
            pre: allow pre-releases.
            extra_options: further words for uv, as on a command line.
            force_build: build this and the later steps anew.
            uv_version: of uv; it needs a container runtime then, else the node's own is used.
            env: environment variables of this step.
            secrets: whose variables the step sees; it needs a container runtime then.
            gpu: what the step sees; it needs a container runtime then.

        Raises:
            InvalidError: as `pip_install`.

        Example:
            >>> image = Image.debian_slim().uv_pip_install("click", requirements=["requirements.txt"])
        """
        given = {
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
            "env": env,
            "secrets": secrets,
            "gpu": gpu,
            "uv_version": uv_version,
        }
        found = packages_of("uv_pip_install", packages)
        files = _paths("uv_pip_install", "requirements", requirements or ())
        return self._pip("uv_pip_install", found, given, requirements=files, force_build=force_build)

    def pip_install_from_requirements(
        self,
        requirements_txt: str | Path,
        find_links: str | None = None,
        *,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Any] = (),
        gpu: Any = None,
    ) -> Image:
        """Install what a local ``requirements.txt`` lists; it is read when the App is run or deployed.

        Args:
            requirements_txt: the file.
            find_links: a page or directory with distributions.
            index_url: the package index to use in place of the default.
            extra_index_url: one more package index.
            pre: allow pre-releases.
            extra_options: further words for the installer, as on a command line.
            force_build: build this and the later steps anew.
            env: environment variables of this step.
            secrets: whose variables the step sees; it needs a container runtime then.
            gpu: what the step sees; it needs a container runtime then.

        Raises:
            InvalidError: as `pip_install`.

        Example:
            >>> image = Image.debian_slim().pip_install_from_requirements("requirements.txt")
        """
        given = {
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
            "env": env,
            "secrets": secrets,
            "gpu": gpu,
        }
        name = "pip_install_from_requirements"
        files = _paths(name, "requirements_txt", [requirements_txt])
        return self._pip(name, (), given, requirements=files, force_build=force_build)

    def pip_install_from_pyproject(
        self,
        pyproject_toml: str | Path,
        optional_dependencies: Sequence[str] = (),
        *,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Any] = (),
        gpu: Any = None,
    ) -> Image:
        """Install the dependencies that a local ``pyproject.toml`` lists, but not the project itself.

        Args:
            pyproject_toml: the file; read when the App is run or deployed.
            optional_dependencies: keys of its ``[project.optional-dependencies]`` to install too.
            find_links: a page or directory with distributions.
            index_url: the package index to use in place of the default.
            extra_index_url: one more package index.
            pre: allow pre-releases.
            extra_options: further words for the installer, as on a command line.
            force_build: build this and the later steps anew.
            env: environment variables of this step.
            secrets: whose variables the step sees; it needs a container runtime then.
            gpu: what the step sees; it needs a container runtime then.

        Raises:
            InvalidError: as `pip_install`.

        Example:
            >>> image = Image.debian_slim().pip_install_from_pyproject("pyproject.toml", ["test"])
        """
        given = {
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": extra_options,
            "env": env,
            "secrets": secrets,
            "gpu": gpu,
        }
        name = "pip_install_from_pyproject"
        (path,) = _paths(name, "pyproject_toml", [pyproject_toml])
        extras = packages_of(name, list(optional_dependencies))
        return self._pip(name, (), given, pyproject=path, extras=extras, force_build=force_build)


def packages_of(step: str, packages: Sequence[str | list[str]]) -> tuple[str, ...]:
    """Return the requirement specifiers of a step, lists laid flat.

    Raises:
        InvalidError: when one is no string, no specifier, or a flag.
    """
    flat: list[Any] = []
    for item in packages:
        flat.extend(item if isinstance(item, (list, tuple)) else [item])
    for item in flat:
        if not isinstance(item, str) or not item:
            raise InvalidError(f"{step} got {item!r}; give packages as strings or lists of strings")
        if item.startswith("-"):
            raise InvalidError(f"{step} got the flag {item!r} among the packages; give it as extra_options=")
        if not _SPECIFIER.match(item):
            raise InvalidError(f"{step} got {item!r}, which is no requirement specifier such as 'numpy>=2'")
    return tuple(flat)


def pip_options(
    step: str,
    *,
    find_links: str | None,
    index_url: str | None,
    extra_index_url: str | None,
    pre: bool,
    extra_options: str,
    env: Mapping[str, str | None] | None,
    image_env: Mapping[str, str],
    secrets: Sequence[Secret],
    gpu: Any,
    uv_version: str | None = None,
) -> tuple[dict[str, Any], tuple[Secret, ...]]:
    """Return the options of a step that installs packages, only those that were given, and its Secrets.

    Raises:
        InvalidError: when one is of the wrong type.
    """
    for name, value in (
        ("find_links", find_links),
        ("index_url", index_url),
        ("extra_index_url", extra_index_url),
        ("uv_version", uv_version),
    ):
        if value is not None and not isinstance(value, str):
            raise InvalidError(f"{name} of {step} is {value!r}; give a string")
    if not isinstance(pre, bool):
        raise InvalidError(f"pre of {step} is {pre!r}; give True or False")
    try:
        words = shlex.join(shlex.split(extra_options))
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidError(f"extra_options of {step} is {extra_options!r}: {error}") from None
    options = {
        "find_links": find_links,
        "index_url": index_url,
        "extra_index_url": extra_index_url,
        "pre": pre,
        "extra_options": words,
        # What the Image sets before a step holds in the step, as in a Dockerfile.
        "env": {**image_env, **check_env(f"env of {step}", env)},
        "uv_version": uv_version,
    }
    more, found = step_options(step, secrets=secrets, gpu=gpu)
    return {**{key: value for key, value in options.items() if value}, **more}, found


def _paths(step: str, parameter: str, paths: Any) -> tuple[str, ...]:
    if isinstance(paths, (str, Path)) or not isinstance(paths, Sequence):
        raise InvalidError(f"{parameter} of {step} is {paths!r}; give a list of paths")
    for path in paths:
        if not isinstance(path, (str, Path)) or not str(path):
            raise InvalidError(f"{parameter} of {step} is {path!r}; give a path")
    return tuple(map(str, paths))
