"""The user's own code, found among what is imported, as one content-addressed zip."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ._function_info import FunctionInfo
from ._image_files import walk
from .wire.main_module import import_name

_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
# The oldest date that a zip can hold: equal sources give equal bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class CodeBundle:
    """A zip with the user's modules.

    Attributes:
        data: the zip.
        sha256: its content key.
        names: the paths inside it.
    """

    data: bytes
    sha256: str
    names: tuple[str, ...]

    def file_of(self, module: str) -> str | None:
        """Return the path of a module inside the bundle, or None when it is not there."""
        path = module.replace(".", "/")
        return next((x for x in (f"{path}.py", f"{path}/__init__.py") if x in self.names), None)


def is_local(file: str) -> bool:
    """Say whether a source file is the user's: neither installed, nor Python's, nor this library's."""
    if not file.endswith(".py") or any(part in file for part in _INSTALLED):
        return False
    paths = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "scripts"))
    roots = [os.path.realpath(path) for path in paths if path]
    roots.append(os.path.dirname(os.path.realpath(__file__)))
    return not any(file.startswith(root + os.sep) for root in roots)


def local_modules() -> dict[str, str]:
    """Return the user's modules that are imported now: path in the bundle to path here."""
    found: dict[str, str] = {}
    for loaded in list(sys.modules):
        name, file = import_name(loaded)
        # These set this machine's interpreter up (Debian has one outside its library); no program's part.
        if file is not None and name not in ("sitecustomize", "usercustomize") and is_local(file):
            found[_bundle_path(name, file)] = file
    return found


def bundle(infos: Iterable[FunctionInfo], automount: bool = True) -> CodeBundle | None:
    """Zip the packages of the given functions and, with ``automount``, all local imports.

    Args:
        infos: the functions whose code has to be importable in a container.
        automount: whether other local modules that are imported now come along.

    Returns:
        None when there is nothing to ship.
    """
    files = shipped_files(infos, automount)
    return _zip(files) if files else None


def shipped_files(infos: Iterable[FunctionInfo], automount: bool = True) -> dict[str, str]:
    """Return the files that ``bundle`` would zip: path in the bundle to path here."""
    files = local_modules() if automount else {}
    for info in infos:
        if info.serialized or info.file is None or not is_local(info.file):
            continue
        files[_bundle_path(info.module, info.file)] = info.file
        files.update(_package_files(info.module, info.file))
    return files


def _bundle_path(module: str, file: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if os.path.basename(file) == "__init__.py" else f"{path}.py"


def _package_files(module: str, file: str) -> dict[str, str]:
    """Return the Python sources of the whole package that a module belongs to."""
    top, *rest = module.split(".")
    depth = len(rest) if os.path.basename(file) != "__init__.py" else len(rest) + 1
    if depth == 0:
        return {}
    root = Path(file).parents[depth - 1]
    # A name that does not follow the folders says nothing of what belongs to the package.
    if root.name != top:
        return {}
    found = walk(root, top, lambda path: path.suffix != ".py", hidden=False, lenient=True)
    return {file.place: file.path for file in found}


def _zip(files: dict[str, str]) -> CodeBundle:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(posixpath.normpath(name), _ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, Path(files[name]).read_bytes())
    data = buffer.getvalue()
    return CodeBundle(data, hashlib.sha256(data).hexdigest(), tuple(sorted(files)))
