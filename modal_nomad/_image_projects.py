"""The build steps of an Image that install what a local project locks: with Poetry, with uv."""

from __future__ import annotations

import os
import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._image_bases import command_lines
from ._image_steps import LOCK_FILE, UV_LOCK_FILE, FilesStep, Step, step_options
from .exception import InvalidError
from .wire.spec import ImageSpec

if TYPE_CHECKING:
    from .gpu import GPU
    from .image import Image
    from .secret import Secret


class Projects:
    """The part of ``Image`` that installs the dependencies of local projects."""

    __slots__ = ()

    _spec: ImageSpec

    @abstractmethod
    def _build_step(self, step: Step, name: str, force_build: bool = False) -> Image: ...

    def poetry_install_from_file(
        self,
        poetry_pyproject_toml: str,
        poetry_lockfile: str | None = None,
        ignore_lockfile: bool = False,
        old_installer: bool = False,
        force_build: bool = False,
        with_: Sequence[str] = (),
        without: Sequence[str] = (),
        only: Sequence[str] = (),
        *,
        poetry_version: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: GPU | Sequence[GPU] = None,
    ) -> Image:
        """Install the dependencies of a local Poetry project, but not the project itself.

        Args:
            poetry_pyproject_toml: its ``pyproject.toml``, read when the App is run or deployed.
            poetry_lockfile: its lock file; by default the ``poetry.lock`` beside it.
            ignore_lockfile: use no lock file.
            old_installer: use Poetry's old installer.
            force_build: build this and the later steps anew.
            with_: optional groups to install too.
            without: groups to leave out.
            only: the only groups to install.
            poetry_version: of Poetry; by default that of the image builder's version.
            env: environment variables of this step.
            secrets: whose variables the step sees.
            gpu: what the step sees.

        Raises:
            NotFoundError: when the App is run or deployed and a file is not there.
            InvalidError: naming the parameter that cannot be used.

        Example:
            >>> image = Image.debian_slim().poetry_install_from_file("pyproject.toml", without=["dev"])
        """
        name = "poetry_install_from_file"
        if not isinstance(poetry_pyproject_toml, (str, Path)) or not str(poetry_pyproject_toml):
            raise InvalidError(f"poetry_pyproject_toml of {name} is {poetry_pyproject_toml!r}; give a path")
        files = [("pyproject.toml", str(poetry_pyproject_toml))]
        if not ignore_lockfile:
            beside = os.path.join(os.path.dirname(str(poetry_pyproject_toml)), LOCK_FILE)
            files.append((LOCK_FILE, str(poetry_lockfile or beside)))
        groups = {
            "with": list(command_lines(name, with_)),
            "without": list(command_lines(name, without)),
            "only": list(command_lines(name, only)),
        }
        more = {**groups, "old_installer": old_installer, "poetry_version": poetry_version}
        options, used = step_options(name, env, secrets, gpu, **more)
        step = FilesStep(name, "poetry", tuple(files), (), options, used)
        return self._build_step(step, name, force_build)

    def uv_sync(
        self,
        uv_project_dir: str | Path = "./",
        *,
        force_build: bool = False,
        groups: Sequence[str] | None = None,
        extras: Sequence[str] | None = None,
        frozen: bool = True,
        extra_options: str = "",
        uv_version: str | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        gpu: GPU | Sequence[GPU] = None,
    ) -> Image:
        """Install the dependencies of a local uv project, as it locks them, but not the project itself.

        In a container image they are put into a virtual environment, ``/.uv/.venv``, whose Python containers
        use; else into the Image's Python environment, by the node's uv.

        Args:
            uv_project_dir: the directory with ``pyproject.toml`` and ``uv.lock``; they are read when the App
                is run or deployed.
            force_build: build this and the later steps anew.
            groups: dependency groups to install too.
            extras: optional dependencies to install too.
            frozen: use the lock file just as it is; False makes or updates one in the build.
            extra_options: further words for ``uv sync``, as on a command line.
            uv_version: of uv; it needs a container runtime then, where that of the image builder's version
                is the default.
            env: environment variables of this step.
            secrets: whose variables the step sees.
            gpu: what the step sees.

        Raises:
            NotFoundError: when the App is run or deployed and a file is not there.
            InvalidError: naming the parameter that cannot be used.

        Example:
            >>> image = Image.debian_slim().uv_sync(groups=["serving"])
        """
        name = "uv_sync"
        if not isinstance(uv_project_dir, (str, Path)) or not str(uv_project_dir):
            raise InvalidError(f"uv_project_dir of {name} is {uv_project_dir!r}; give a directory's path")
        if not isinstance(frozen, bool):
            raise InvalidError(f"frozen of {name} is {frozen!r}; give True or False")
        try:
            words = shlex.join(shlex.split(extra_options))
        except (ValueError, AttributeError, TypeError) as error:
            raise InvalidError(f"extra_options of {name} is {extra_options!r}: {error}") from None
        more = {
            "groups": list(command_lines(name, groups or ())),
            "extras": list(command_lines(name, extras or ())),
            "frozen": frozen,
            "extra_options": words,
            "uv_version": uv_version,
        }
        options, used = step_options(name, env, secrets, gpu, **more)
        # What the Image sets before a step holds in the step, as in a Dockerfile.
        if held := {**self._spec.env, **options.get("env", {})}:
            options["env"] = held
        files = [(x, os.path.join(str(uv_project_dir), x)) for x in ("pyproject.toml", UV_LOCK_FILE)]
        optional = () if frozen else (UV_LOCK_FILE,)
        step = FilesStep(name, "uv_sync", tuple(files), (), options, used, optional)
        return self._build_step(step, name, force_build)
