"""The build steps of an Image as they were stated, and what they come to when the App is published.

Local files are read then, not where a step is stated: a container imports the user's module too, and has
none of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from ._image_context import Context
from ._image_files import LocalFiles
from ._image_function import FunctionStep
from ._image_resolved import Resolved
from ._local_manifest import LocalManifest
from ._options import check_env
from .exception import InvalidError, NotFoundError
from .wire.spec import ImageLayer

if TYPE_CHECKING:
    from .secret import Secret

_INCLUDED = re.compile(r"\s*(?:-r|--requirement)[\s=]+(\S+)")


@dataclass(frozen=True)
class PipStep:
    """Python packages to install.

    Attributes:
        step: the method that stated it, for messages.
        packages: requirement specifiers.
        options: words for the installer, as ``wire.spec.ImageLayer`` names them.
        requirements: local requirements files.
        pyproject: a local ``pyproject.toml`` whose dependencies are meant, or empty.
        extras: keys of its optional dependencies.
        secrets: whose variables the step sees.
    """

    step: str = field(compare=False)
    packages: tuple[str, ...]
    options: Mapping[str, Any] = field(hash=False)
    requirements: tuple[str, ...] = ()
    pyproject: str = ""
    extras: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()

    def definition(self) -> Any:
        """Return what makes two steps the same one, wherever the files lie."""
        names = [os.path.basename(x) for x in (*self.requirements, self.pyproject)]
        return [self.packages, dict(self.options), names, self.extras]

    def resolve(self) -> Resolved:
        """Read the local files.

        Raises:
            FileNotFoundError: naming the step and the file.
            InvalidError: when a file is not what it should be.
        """
        options = dict(self.options)
        packages = self.packages
        if self.pyproject:
            packages += _dependencies(self.step, self.pyproject, self.extras)
        contents = {}
        lines = [line for path in self.requirements for line in _lines(self.step, Path(path))]
        if lines:
            # By reference: a locked file with hashes is too long for a job's meta or a variable.
            data = "\n".join([*lines, ""]).encode()
            sha = options["requirements"] = hashlib.sha256(data).hexdigest()
            contents[sha] = data
        return Resolved(ImageLayer("pip", packages, options), contents)


@dataclass(frozen=True)
class CopyStep:
    """Local files that later build steps see."""

    wish: LocalFiles

    def definition(self) -> Any:
        """Return what makes two steps the same one, wherever the files lie."""
        return [self.wish.kind, self.wish.remote]

    def resolve(self) -> Resolved:
        """Hash the files: other contents make another Image.

        Raises:
            FileNotFoundError: when the local path does not exist.
            ModuleNotMountable: when there is no such module here.
        """
        listed = LocalManifest(self.wish.source, self.wish.found())
        return Resolved(ImageLayer("copy", (self.wish.remote,), {"manifest": listed.sha}), listed=listed)


@dataclass(frozen=True)
class LayerStep:
    """A step of an image for a container runtime.

    Attributes:
        step: the method that stated it, for messages.
        kind: as ``wire.spec.ImageLayer`` has it, like ``args`` and ``options``.
        args: its words; those of its Dockerfile follow them.
        options: its other parameters.
        secrets: whose variables it sees.
        context: what it may copy, or None.
    """

    step: str = field(compare=False)
    kind: str
    args: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    secrets: tuple[Secret, ...] = ()
    context: Context | None = None

    def definition(self) -> Any:
        """Return what makes two steps the same one, wherever the files lie."""
        local = self.context.definition() if self.context is not None else None
        return [self.kind, self.args, dict(self.options), local]

    def resolve(self) -> Resolved:
        """Read the local files.

        Raises:
            FileNotFoundError: naming the step and the file.
        """
        options = dict(self.options)
        if self.context is None:
            return Resolved(ImageLayer(self.kind, self.args, options))
        lines = (*self.args, *self.context.lines(self.step))
        listed = self.context.gather(self.step, lines)
        if listed is not None:
            options["manifest"] = listed.sha
        return Resolved(ImageLayer(self.kind, lines, options), listed=listed)


@dataclass(frozen=True)
class FilesStep:
    """A step that installs what local files list.

    Attributes:
        step: the method that stated it, for messages.
        kind: as ``wire.spec.ImageLayer`` has it, like ``args`` and ``options``.
        files: name that the step finds each by, and its local path.
        args: its words.
        options: its other parameters.
        secrets: whose variables it sees.
        optional: names of files that need not be there.
    """

    step: str = field(compare=False)
    kind: str
    files: tuple[tuple[str, str], ...]
    args: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    secrets: tuple[Secret, ...] = ()
    optional: tuple[str, ...] = ()

    def definition(self) -> Any:
        """Return what makes two steps the same one, wherever the files lie."""
        return [self.kind, self.args, dict(self.options), [name for name, _ in self.files]]

    def resolve(self) -> Resolved:
        """Read the local files.

        Raises:
            NotFoundError: naming the step and the file.
        """
        entries, contents = [], {}
        for name, local in self.files:
            path = Path(local).expanduser()
            if not path.is_file() and name in self.optional:
                continue
            if not path.is_file():
                hint = _WITHOUT.get(name, "")
                raise NotFoundError(f"{self.step}: there is no file {path}: give its path{hint}")
            data = path.read_bytes()
            sha = hashlib.sha256(data).hexdigest()
            contents[sha] = data
            entries.append([name, sha, 0o644])
        return Resolved(ImageLayer(self.kind, self.args, {**self.options, "files": entries}), contents)


LOCK_FILE = "poetry.lock"
UV_LOCK_FILE = "uv.lock"
_WITHOUT = {LOCK_FILE: ", or say ignore_lockfile=True", UV_LOCK_FILE: ", or say frozen=False"}


def step_options(
    step: str, env: Any = None, secrets: Any = (), gpu: Any = None, **more: Any
) -> tuple[dict[str, Any], tuple[Secret, ...]]:
    """Check the parameters that build steps have in common; return the options and the Secrets.

    Raises:
        InvalidError: naming the parameter.
    """
    options = {key: value for key, value in more.items() if value}
    if found := check_env(f"env of {step}", env):
        options["env"] = found
    if gpu is not None:
        from .gpu import gpu_options

        if kinds := gpu_options(gpu):
            options["gpu"] = [asdict(kind) for kind in kinds]
    if not secrets and isinstance(secrets, (list, tuple, type(None))):
        return options, ()
    from .secret import check_secrets

    return options, check_secrets(step, secrets)


Step = Union[PipStep, CopyStep, LayerStep, FilesStep, FunctionStep]  # noqa: UP007 - containers may run Python 3.9


def _lines(step: str, path: Path, seen: tuple[Path, ...] = ()) -> list[str]:
    """Return the lines of a requirements file, those of files that it names in their place."""
    path = path.expanduser().resolve()
    if path in seen:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{step}: there is no file {path}") from None
    lines: list[str] = []
    for line in text.splitlines():
        included = _INCLUDED.match(line)
        if included:
            lines += _lines(step, path.parent / included.group(1), (*seen, path))
        elif line.strip() and not line.lstrip().startswith("#"):
            lines.append(line.rstrip())
    return lines


def _dependencies(step: str, path: str, extras: Sequence[str]) -> tuple[str, ...]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with Path(path).expanduser().open("rb") as file:
            project = tomllib.load(file).get("project") or {}
    except FileNotFoundError:
        raise FileNotFoundError(f"{step}: there is no file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"{step}: {path} is no TOML file: {error}") from None
    if "dependencies" not in project:
        raise InvalidError(f"{step}: {path} has no [project] dependencies; add them there")
    optional = project.get("optional-dependencies") or {}
    found = list(project["dependencies"])
    for key in extras:
        if key not in optional:
            raise InvalidError(
                f"{step}: {path} has no optional dependencies {key!r}; it has {sorted(optional)}"
            )
        found += optional[key]
    return tuple(found)
