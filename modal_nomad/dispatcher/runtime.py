"""The runtime that containers get: one content-addressed zip, built from this installation.

It holds what the container imports and nothing else: the public API, ``wire``, ``worker``,
``render`` and pure-Python cloudpickle. Equal installations give equal bytes, so a dispatcher that
restarts invalidates nothing.

Beside each source lies its bytecode for this interpreter's version. An allocation's folder is new each
time, so a container without it would compile all of it again; one of another version does.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import marshal
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path, PurePosixPath

START_SCRIPT = "_start_worker.py"
MAX_UNPACKED = 4 << 30
"""Bytes a bundle may unpack to: a small zip can hold a disk full of zeros."""

_PACKAGES = ("wire", "worker", "render")
_WEB_PACKAGES = ("uvicorn", "h11", "wsproto", "a2wsgi", "typing_extensions")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PYC_HEADER = 16
_UNCHECKED_HASH = (1).to_bytes(4, "little")
"""The flag of bytecode that is never compared with its source: unpacking sets times of its own."""
_MODAL = '''"""``import modal`` in a container is this package's API."""

import sys

import modal_nomad
from modal_nomad import _alias

_alias.install()
sys.modules[__name__] = modal_nomad
'''


class BundleError(Exception):
    """A zip was refused; the text says why."""


def build() -> tuple[str, bytes]:
    """Return the runtime zip: its SHA-256 and its bytes."""
    data = pack(dict(_contents()))
    return hashlib.sha256(data).hexdigest(), data


@functools.cache
def runtime() -> tuple[str, bytes]:
    """Return ``build()``, built once per process."""
    return build()


@functools.cache
def web() -> tuple[str, bytes]:
    """Return the zip with what serves web Functions: its SHA-256 and its bytes, built once per process.

    Pure Python, put last on the path: an Image's own faster versions win.

    Raises:
        BundleError: a package of it is not installed.
    """
    data = pack(dict(_web_contents()))
    return hashlib.sha256(data).hexdigest(), data


def _web_contents() -> Iterator[tuple[str, bytes]]:
    yield "click/__init__.py", Path(__file__).with_name("_no_click.py").read_bytes()
    for name in _WEB_PACKAGES:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise BundleError(f"{name} is not installed beside modal_nomad: pip install {name}")
        if found.submodule_search_locations is None:
            source = Path(found.origin)
            yield source.name, source.read_bytes()
            continue
        for location in found.submodule_search_locations:
            for source in Path(location).rglob("*.py"):
                yield from _module(source, Path(location))


def pack(files: dict[str, bytes]) -> bytes:
    """Return a zip of files by relative path whose bytes depend on nothing but these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # Unix, whatever built it: the attributes below are mode bits.
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            # Level 1: it is packed at every start, mostly to be read on the same machine.
            archive.writestr(entry, files[name], compresslevel=1)
    return buffer.getvalue()


def _contents() -> Iterator[tuple[str, bytes]]:
    package = Path(__file__).resolve().parent.parent
    for source in package.glob("*.py"):
        yield from _module(source, package)
    for name in _PACKAGES:
        for source in (package / name).rglob("*.py"):
            yield from _module(source, package)
    yield START_SCRIPT, (package / "worker" / START_SCRIPT).read_bytes()
    yield "modal/__init__.py", _MODAL.encode()
    found = importlib.util.find_spec("cloudpickle")
    if found is None or not found.submodule_search_locations:
        raise BundleError("cloudpickle is not installed beside modal_nomad: pip install cloudpickle")
    for location in found.submodule_search_locations:
        for source in Path(location).rglob("*.py"):
            yield from _module(source, Path(location))


def _module(source: Path, package: Path) -> Iterator[tuple[str, bytes]]:
    place = PurePosixPath(package.name, source.relative_to(package).as_posix())
    yield str(place), source.read_bytes()
    cached = Path(importlib.util.cache_from_source(str(source)))
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source.read_bytes())
    yield str(place.parent / "__pycache__" / cached.name), head + _bytecode(source, cached)


def _bytecode(source: Path, cached: Path) -> bytes:
    """Return a module's code as the import system writes it, from its own cache where that is current."""
    found = _cached(source, cached)
    if found is not None:
        return found
    # Compiles, and leaves the bytecode in the cache where it may write there.
    code = SourceFileLoader(source.stem, str(source)).get_code(source.stem)
    found = _cached(source, cached)
    return marshal.dumps(code) if found is None else found


def _cached(source: Path, cached: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        data = cached.read_bytes()
        if data[:_PYC_HEADER] == _timestamps(source):
            return data[_PYC_HEADER:]
    return None


def _timestamps(source: Path) -> bytes:
    found = source.stat()
    stamps = (int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF)
    return importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, *stamps)


def unpack(data: bytes, directory: str | os.PathLike[str], *, max_size: int = MAX_UNPACKED) -> Path:
    """Unpack a zip so that ``directory`` holds all of it, or does not exist.

    One that is already there is left alone: its name is its content's. Several processes may unpack the
    same zip at once. Blocks: call it on a thread.

    Raises:
        BundleError: no zip, damaged, or an entry that would stand outside ``directory``.
    """
    target = Path(directory)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _extract(archive, scratch, max_size)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zipfile.LargeZipFile) as exc:
            raise BundleError(f"the bundle is no readable zip ({exc}): publish it again") from exc
        os.chmod(scratch, 0o755)
        try:
            os.rename(scratch, target)
        except OSError:
            # Another process was faster; what it unpacked is the same.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _extract(archive: zipfile.ZipFile, directory: Path, max_size: int) -> None:
    left = max_size
    for entry in archive.infolist():
        path = _safe(entry, directory)
        if entry.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, open(path, "wb") as out:
            # Counted while reading: the size an entry declares is its author's word only.
            while chunk := source.read(1 << 20):
                left -= len(chunk)
                if left < 0:
                    raise BundleError(
                        f"the bundle unpacks to more than {max_size} bytes: leave large files out"
                    )
                out.write(chunk)
        os.chmod(path, 0o755 if (entry.external_attr >> 16) & 0o111 else 0o644)


def _safe(entry: zipfile.ZipInfo, directory: Path) -> Path:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    parts = PurePosixPath(entry.filename).parts
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BundleError(f"bundle entry {entry.filename!r} is no plain file: links cannot be shipped")
    if not parts or entry.filename.startswith("/") or ".." in parts or "\\" in entry.filename:
        raise BundleError(
            f"bundle entry {entry.filename!r} would stand outside its directory: publish it again"
        )
    return directory.joinpath(*parts)
