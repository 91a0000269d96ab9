"""Container images, described step by step."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._image_files import (
    SOURCE_ROOT,
    LocalFiles,
    check_remote_path,
    mounted,
    remote_file_path,
)
from ._options import check_env
from .exception import ExecutionError, InvalidError
from .file_pattern_matcher import FilePatternMatcher, as_matcher
from .wire.ids import new_id
from .wire.spec import ImageLayer, ImageSpec

_PYTHON_VERSION = re.compile(r"3\.\d+(\.\d+)?")
_SPECIFIER = re.compile(r"[A-Za-z0-9./~@:]")
# Patterns of add_local_python_source: everything but Python sources is left out.
NON_PYTHON_FILES = ~FilePatternMatcher("**/*.py")
_FACTORY = object()


class Image:
    """What a Function's containers have: a Python, its packages, environment variables and files.

    An Image never changes: each step returns a new one. Equal definitions are built once.

    Example:
        >>> image = Image.debian_slim().pip_install("requests").env({"LEVEL": "1"})
    """

    __slots__ = ("_force_build", "_spec", "_wishes")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args[:1] != (_FACTORY,):
            raise InvalidError("Image has no constructor; start from a factory such as Image.debian_slim()")
        _, self._spec, self._wishes, self._force_build = args

    @staticmethod
    def _make(spec: ImageSpec, wishes: tuple[LocalFiles, ...] = (), force_build: bool = False) -> Image:
        return Image(_FACTORY, spec, wishes, force_build)

    def __repr__(self) -> str:
        steps = "".join(f".{layer.kind}_install(...)" for layer in self._spec.layers)
        return f"Image.debian_slim({self._spec.python or ''}){steps}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (self._spec, self._wishes) == (other._spec, other._wishes)

    def __hash__(self) -> int:
        return hash((self._spec.environment_key, self._wishes))

    @staticmethod
    def debian_slim(python_version: str | None = None, force_build: bool = False) -> Image:
        """Start from a small system with Python.

        Args:
            python_version: such as ``"3.11"`` or ``"3.11.7"``; by default this machine's series.
            force_build: build this and the later steps anew.

        Raises:
            TypeError: when the version is no string (``3.10`` the number is ``3.1``).
            InvalidError: when it is no version of Python 3.
        """
        if python_version is not None and not isinstance(python_version, str):
            raise TypeError(f"python_version is {python_version!r}; give a string such as '3.11'")
        if python_version is not None and not _PYTHON_VERSION.fullmatch(python_version):
            raise InvalidError(f"python_version is {python_version!r}; give '3.x' or '3.x.y', such as '3.11'")
        return Image._make(ImageSpec(python=python_version), force_build=force_build)

    def _replace(self, **changes: Any) -> ImageSpec:
        spec = self._spec
        fields = {"python": spec.python, "layers": spec.layers, "env": spec.env, "workdir": spec.workdir}
        return ImageSpec(**{**fields, **changes})

    def _build_step(self, layer: ImageLayer, force_build: bool) -> Image:
        self._no_files_yet(f"{layer.kind}_install")
        spec = self._replace(layers=(*self._spec.layers, layer))
        return Image._make(spec, self._wishes, self._force_build or force_build)

    def _no_files_yet(self, step: str) -> None:
        if self._wishes:
            raise InvalidError(
                f"{step} cannot follow an add_local_... step, whose files are added at container start: "
                "move the build steps before it"
            )

    def pip_install(
        self,
        *packages: str | list[str],
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
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

        Raises:
            InvalidError: when a package is no string, or is a flag.
        """
        args = _packages("pip_install", packages)
        if not args:
            return self
        options: dict[str, Any] = {
            "find_links": find_links,
            "index_url": index_url,
            "extra_index_url": extra_index_url,
            "pre": pre,
            "extra_options": shlex.join(shlex.split(extra_options)),
        }
        return self._build_step(ImageLayer("pip", args, _given(options)), force_build)

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
    ) -> Image:
        """Install Python packages with uv; as `pip_install`, which uses uv here too.

        Args:
            *packages: requirement specifiers, or lists of them.
            requirements: local requirements files, read when the step is defined.
            find_links: a page or directory with distributions.
            index_url: the package index to use in place of the default.
            extra_index_url: one more package index.
            pre: allow pre-releases.
            extra_options: further words for uv, as on a command line.
            force_build: build this and the later steps anew.
        """
        listed: list[str] = []
        for name in requirements or ():
            text = Path(name).expanduser().read_text(encoding="utf-8")
            lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
            listed.extend(line for line in lines if line)
        return self.pip_install(
            *packages,
            listed,
            find_links=find_links,
            index_url=index_url,
            extra_index_url=extra_index_url,
            pre=pre,
            extra_options=extra_options,
            force_build=force_build,
        )

    def env(self, vars: Mapping[str, str]) -> Image:
        """Set environment variables; later ones win.

        Raises:
            InvalidError: when a value is no string.
        """
        checked = check_env("Image.env", vars)
        merged = {**self._spec.env, **checked}
        return Image._make(self._replace(env=merged), self._wishes, self._force_build)

    def workdir(self, path: str | Path) -> Image:
        """Set the working directory of containers; an absolute path."""
        check_remote_path("workdir", str(path))
        return Image._make(self._replace(workdir=str(path)), self._wishes, self._force_build)

    def _with_files(self, wishes: list[LocalFiles]) -> Image:
        return Image._make(self._spec, (*self._wishes, *wishes), self._force_build)

    def add_local_file(self, local_path: str | Path, remote_path: str) -> Image:
        """Add a local file, at container start.

        Args:
            local_path: the file; looked at when the App is run or deployed.
            remote_path: an absolute path; with a trailing slash the file keeps its name.
        """
        local = str(local_path)
        return self._with_files([LocalFiles("file", local, remote_file_path(local, remote_path))])

    def add_local_dir(
        self,
        local_path: str | Path,
        remote_path: str,
        *,
        ignore: Sequence[str] | Callable[[Path], bool] = (),
    ) -> Image:
        """Add the content of a local directory, at container start.

        Args:
            local_path: the directory; looked at when the App is run or deployed.
            remote_path: an absolute path.
            ignore: what to leave out: patterns as in a ``.dockerignore``, or a callable that gets each
                path relative to the directory.
        """
        check_remote_path("add_local_dir", remote_path)
        return self._with_files([LocalFiles("dir", str(local_path), remote_path, as_matcher(ignore))])

    def add_local_python_source(
        self, *modules: str, ignore: Sequence[str] | Callable[[Path], bool] = NON_PYTHON_FILES
    ) -> Image:
        """Add local Python packages or modules to ``/root``, where containers import them from.

        Args:
            *modules: names to import, such as ``"mypackage"``.
            ignore: what to leave out; by default all but ``.py`` files. Dot-prefixed and compiled files
                always stay out.

        Raises:
            InvalidError: when a name is no string.
        """
        for module in modules:
            if not isinstance(module, str):
                raise InvalidError(
                    f"add_local_python_source got {module!r}; give names of modules as strings"
                )
        matcher = as_matcher(ignore)
        return self._with_files([LocalFiles("python", name, SOURCE_ROOT, matcher) for name in modules])

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
            own = os.environ.get("MODAL_IMAGE_ID") == self._image_id
            if os.environ.get("MODAL_IS_REMOTE") == "1" and own:
                raise

    def hydrate(self, client: Any = None) -> Image:
        """Raise: an Image is built when a Function that uses it is run or deployed."""
        raise ExecutionError("Images cannot currently be hydrated on demand; they are built with the App")

    @property
    def _python(self) -> str:
        return self._spec.python or f"{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def _image_id(self) -> str:
        return "im-" + self._replace(python=self._python).environment_key[:22]

    def _resolve(self, force_build: bool = False) -> tuple[ImageSpec, dict[str, Path]]:
        """Return the finished specification, and where its files' contents are here (by SHA-256)."""
        files, contents = mounted(self._wishes)
        layers = self._spec.layers
        if layers and (force_build or self._force_build):
            # A word that was never there before makes a content key that was never built before.
            first = ImageLayer(layers[0].kind, layers[0].args, {**layers[0].options, "build": new_id("im")})
            layers = (first, *layers[1:])
        return self._replace(python=self._python, layers=layers, files=files), contents


def _packages(step: str, packages: Sequence[str | list[str]]) -> tuple[str, ...]:
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


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value}
