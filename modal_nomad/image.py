"""Container images, described step by step."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ._bridge import blocking, blocking_function, io
from ._image_bases import Bases, check_python_version
from ._image_builds import Builds
from ._image_copy import CopySteps
from ._image_files import (
    SOURCE_ROOT,
    LocalFiles,
    check_remote_path,
    mounted,
    remote_file_path,
)
from ._image_function import FunctionStep
from ._image_names import Named
from ._image_pip import PipInstalls
from ._image_projects import Projects
from ._image_resolved import Contents
from ._image_steps import CopyStep, LayerStep, Step
from ._older_names import Resolvable
from ._options import check_env
from ._secret_refs import reference_of
from .config import in_container
from .exception import ExecutionError, InvalidError, NotFoundError
from .file_pattern_matcher import FilePatternMatcher, as_matcher
from .wire.ids import new_id
from .wire.mounts import SecretRef
from .wire.spec import ENVIRONMENT_KINDS, ImageSpec, content_key

if TYPE_CHECKING:
    from .client import Client
    from .network_file_system import NetworkFileSystem
    from .secret import Secret
    from .volume import Volume

_IMAGE_ID = re.compile(r"im-([0-9a-f]{64})")
# Patterns of add_local_python_source: everything but Python sources is left out.
NON_PYTHON_FILES = ~FilePatternMatcher("**/*.py")
DEFINITION_VARIABLE = "MODAL_IMAGE_DEFINITION"
"""Tells a container which Image of the user's module it is of; ids are known on the caller's side only."""
_FACTORY = object()
_FACTORIES = (
    "from_scratch",
    "from_registry",
    "from_gcp_artifact_registry",
    "from_aws_ecr",
    "from_dockerfile",
    "micromamba",
)


class Image(Bases, Builds, Projects, PipInstalls, CopySteps, Named, Resolvable):
    """What a Function's containers have: a Python, its packages, environment variables and files.

    An Image never changes: each step returns a new one. Equal definitions are built once.

    Example:
        >>> image = Image.debian_slim().pip_install("requests").env({"LEVEL": "1"})
        >>> image == Image.debian_slim().pip_install("requests").env({"LEVEL": "1"})
        True
    """

    __slots__ = ("_base_id", "_force_build", "_object_id", "_spec", "_steps", "_wishes")

    _spec: ImageSpec
    _steps: tuple[Step, ...]
    _wishes: tuple[LocalFiles, ...]
    _force_build: int | None
    _base_id: str
    _object_id: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args[:1] != (_FACTORY,):
            raise InvalidError("Image has no constructor; start from a factory such as Image.debian_slim()")
        _, self._spec, self._steps, self._wishes, self._force_build, self._base_id = args
        self._object_id = None

    def _with(self, **changes: Any) -> Image:
        names = ("_spec", "_steps", "_wishes", "_force_build", "_base_id")
        return Image(_FACTORY, *(changes.get(name, getattr(self, name)) for name in names))

    def __repr__(self) -> str:
        steps = tuple(
            s for s in self._steps if not isinstance(s, LayerStep) or s.kind not in ("env", "workdir")
        )
        found = "from_id" if _IMAGE_ID.fullmatch(self._base_id) else "from_name"
        base = f"{found}({self._base_id!r})" if self._base_id else f"debian_slim({self._spec.python or ''})"
        if steps and isinstance(steps[0], LayerStep) and steps[0].step in _FACTORIES:
            base, steps = f"{steps[0].step}({', '.join(map(repr, steps[0].args))})", steps[1:]
        names = ("add_local" if isinstance(s, CopyStep) else s.step for s in steps)
        return f"Image.{base}{''.join(f'.{name}(...)' for name in names)}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("_spec", "_steps", "_wishes", "_force_build", "_base_id")
        )

    def __hash__(self) -> int:
        return hash((self._definition, self._wishes))

    @staticmethod
    def debian_slim(python_version: str | None = None, force_build: bool = False) -> Image:
        """Start from a small system with Python.

        Args:
            python_version: such as ``"3.11"`` or ``"3.11.7"``; by default this machine's series.
            force_build: build this and the later steps anew.

        Raises:
            TypeError: when the version is no string (``3.10`` the number is ``3.1``).
            InvalidError: when it is no version of Python 3.

        Example:
            >>> Image.debian_slim("3.11")
            Image.debian_slim(3.11)
        """
        check_python_version("python_version", python_version)
        return Image(_FACTORY, ImageSpec(python=python_version), (), (), 0 if force_build else None, "")

    @staticmethod
    @blocking_function
    async def from_id(image_id: str, client: Client | None = None) -> Image:
        """Find an Image that an App was run or deployed with, by its id.

        Args:
            image_id: an ``object_id`` of another Image, ``im-…``.
            client: the client to use.

        Raises:
            InvalidError: when it has not the form of an id.
            NotFoundError: when the server knows no such Image.

        Example:
            >>> with app.run():
            ...     same = Image.from_id(image.object_id)
            ...     same.object_id == image.object_id
            True
        """
        import json

        match = _IMAGE_ID.fullmatch(image_id) if isinstance(image_id, str) else None
        if match is None:
            raise InvalidError(f"{image_id!r} is no id of an Image, which is 'im-' and 64 hex digits")
        spec = ImageSpec()
        # A container is of one Image already; its module need not ask for others.
        if not in_container():
            from .client import Client

            client = client or await Client.from_env.aio()
            try:
                spec = ImageSpec.from_dict(json.loads(await io(client._get_blob(match.group(1)))))
            except NotFoundError:
                raise NotFoundError(
                    f"there is no Image {image_id} on this server; run or deploy an App with it first"
                ) from None
        image = Image(_FACTORY, spec, (), (), None, image_id)
        image._object_id = image_id
        return image

    @property
    def object_id(self) -> str:
        """The id, ``im-…``: the content of the Image says what it is.

        Raises:
            ExecutionError: before an App that uses the Image was run or deployed.
        """
        if self._object_id is None:
            raise ExecutionError(f"{self!r} has no id before an App that uses it is run or deployed")
        return self._object_id

    def _build_step(self, step: Step, name: str, force_build: bool = False) -> Image:
        if self._wishes:
            raise InvalidError(
                f"{name} is a build step after add_local_..., whose files are added at container start: "
                "move it before that, or add the files with copy=True"
            )
        steps, first = (*self._steps, step), self._force_build
        if force_build and first is None:
            first = len(self._steps)
        return self._with(_steps=steps, _force_build=first)

    def env(self, vars: Mapping[str, str]) -> Image:
        """Set environment variables, of containers and of the build steps that follow; later ones win.

        Raises:
            InvalidError: when a value is no string.

        Example:
            >>> image = Image.debian_slim().env({"HF_HUB_OFFLINE": "1"})
        """
        checked = check_env("Image.env", vars)
        spec = replace(self._spec, env={**self._spec.env, **checked})
        # A step, too: in a container image it holds from here on.
        return self._with(_spec=spec, _steps=(*self._steps, LayerStep("env", "env", (), checked)))

    def workdir(self, path: str | PurePosixPath) -> Image:
        """Set the working directory of containers; it is made where there is none.

        Args:
            path: an absolute path.

        Raises:
            InvalidError: when the path is not absolute.

        Example:
            >>> image = Image.debian_slim().workdir("/app")
        """
        check_remote_path("workdir", str(path))
        spec = replace(self._spec, workdir=str(path))
        return self._with(_spec=spec, _steps=(*self._steps, LayerStep("workdir", "workdir", (str(path),))))

    def _add_local(self, name: str, wishes: list[LocalFiles], copy: bool) -> Image:
        if not copy:
            return self._with(_wishes=(*self._wishes, *wishes))
        image = self
        for wish in wishes:
            image = image._build_step(CopyStep(wish), f"{name}(copy=True)")
        return image

    def add_local_file(self, local_path: str | Path, remote_path: str, *, copy: bool = False) -> Image:
        """Add a local file.

        Args:
            local_path: the file; looked at when the App is run or deployed.
            remote_path: an absolute path; with a trailing slash the file keeps its name.
            copy: make it part of the Image, so that build steps may follow and see it; other content
                builds them anew. By default it is added at container start, which builds nothing.

        Raises:
            InvalidError: when the remote path is not absolute.

        Example:
            >>> image = Image.debian_slim().add_local_file("model.json", "/assets/")
        """
        local = str(local_path)
        wish = LocalFiles("file", local, remote_file_path(local, remote_path))
        return self._add_local("add_local_file", [wish], copy)

    def add_local_dir(
        self,
        local_path: str | Path,
        remote_path: str,
        *,
        copy: bool = False,
        ignore: Sequence[str] | Callable[[Path], bool] = (),
    ) -> Image:
        """Add the content of a local directory.

        Args:
            local_path: the directory; looked at when the App is run or deployed.
            remote_path: an absolute path.
            copy: as for `add_local_file`.
            ignore: what to leave out: patterns as in a ``.dockerignore``, or a callable that gets each
                path relative to the directory.

        Raises:
            InvalidError: when the remote path is not absolute.

        Example:
            >>> image = Image.debian_slim().add_local_dir("~/assets", "/assets", ignore=["*.venv"])
        """
        check_remote_path("add_local_dir", remote_path)
        wish = LocalFiles("dir", str(local_path), remote_path, as_matcher(ignore))
        return self._add_local("add_local_dir", [wish], copy)

    def add_local_python_source(
        self,
        *modules: str,
        copy: bool = False,
        ignore: Sequence[str] | Callable[[Path], bool] = NON_PYTHON_FILES,
    ) -> Image:
        """Add local Python packages or modules to ``/root``, where containers import them from.

        Args:
            *modules: names to import, such as ``"mypackage"``.
            copy: as for `add_local_file`.
            ignore: what to leave out; by default all but ``.py`` files. Dot-prefixed and compiled files
                always stay out.

        Raises:
            InvalidError: when a name is no string.

        Example:
            >>> image = Image.debian_slim().add_local_python_source("mypackage", ignore=["data.json"])
        """
        for module in modules:
            if not isinstance(module, str):
                raise InvalidError(
                    f"add_local_python_source got {module!r}; give names of modules as strings"
                )
        matcher = as_matcher(ignore)
        wishes = [LocalFiles("python", name, SOURCE_ROOT, matcher) for name in modules]
        return self._add_local("add_local_python_source", wishes, copy)

    @contextlib.contextmanager
    def imports(self) -> Iterator[None]:
        """Import packages that only containers of this Image have.

        On the caller's machine, and in containers of other Images, an ImportError inside is swallowed.

        Example:
            >>> with Image.debian_slim().pip_install("torch").imports():
            ...     import torch
        """
        try:
            yield
        except ImportError:
            if in_container() and os.environ.get(DEFINITION_VARIABLE) == self._definition:
                raise

    @property
    def is_hydrated(self) -> bool:
        """Whether the Image has its id."""
        return self._object_id is not None

    @blocking
    async def hydrate(self, client: Client | None = None) -> Image:
        """Return an Image that has its id already; raise for others.

        Raises:
            ExecutionError: an Image is built when a Function that uses it is run or deployed.

        Example:
            >>> with app.run():
            ...     image.hydrate().object_id
            'im-...'
        """
        if self._object_id is None:
            raise ExecutionError(
                "Images cannot currently be hydrated on demand; they are built with the App that uses them"
            )
        return self

    @property
    def _python(self) -> str:
        return self._spec.python or f"{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def _definition(self) -> str:
        """A key that the user's module comes to on every machine, with the local files and without."""
        steps = [x.definition() for x in self._steps if getattr(x, "kind", "") not in ("env", "workdir")]
        wishes = [(wish.kind, wish.remote) for wish in self._wishes]
        rest = [] if self._base_id else [self._spec.python, dict(self._spec.env), self._spec.workdir]
        return content_key([self._base_id, steps, wishes, rest])[:32]

    def _secrets(self) -> tuple[Secret, ...]:
        """The Secrets of the build steps."""
        return tuple(dict.fromkeys(x for step in self._steps for x in getattr(step, "secrets", ())))

    def _storage(self) -> list[Volume | NetworkFileSystem]:
        """The Volumes and NetworkFileSystems of the build steps."""
        return [x for step in self._steps if isinstance(step, FunctionStep) for x in step.storage]

    def _resolve(
        self, force_build: bool = False, secrets: Mapping[Secret, SecretRef] | None = None
    ) -> tuple[ImageSpec, Contents]:
        """Return the finished specification, and the contents that it refers to.

        Args:
            force_build: build every step anew.
            secrets: where each Secret is; None knows those alone that the server has anyway.
        """
        files = {file.path: file for file in self._spec.files}
        layers = list(self._spec.layers)
        first = 0 if force_build else self._force_build
        if first is not None and not force_build:
            first += len(layers)
        contents = Contents()
        for step in self._steps:
            of_function = isinstance(step, FunctionStep)
            layer, found, listed = step.resolve(secrets) if isinstance(step, FunctionStep) else step.resolve()
            if not of_function and (used := getattr(step, "secrets", ())):
                refs = [asdict(reference_of(secret, secrets)) for secret in used]
                layer = replace(layer, options={**layer.options, "secrets": refs})
            layers.append(layer)
            contents.update(found)
            if listed is not None:
                contents.lists.append(listed)
        # Of an image for a container runtime they are part of the image itself.
        if not any(layer.needs_container for layer in layers) and layers:
            for listed in contents.lists:
                files.update((file.path, file) for file in listed.files())
            contents = Contents(contents.whole())
            layers = [layer for layer in layers if layer.kind in ENVIRONMENT_KINDS]
            # The environment is one whole.
            first = first and 0
        added, places = mounted(self._wishes)
        files.update((file.path, file) for file in added)
        contents.update(places)
        if first is not None and first < len(layers):
            # A word that was never there before makes a content key that was never built before.
            forced = layers[first]
            layers[first] = replace(forced, options={**forced.options, "build": new_id("im")})
        spec = replace(
            self._spec,
            # What an image of a registry has, only its containers know.
            python=self._spec.python if layers and layers[0].is_base else self._python,
            layers=tuple(layers),
            files=tuple(files[path] for path in sorted(files)),
        )
        # The specification under its own hash: what Image.from_id asks for.
        contents[spec.image_id[3:]] = spec.canonical()
        return spec, contents
