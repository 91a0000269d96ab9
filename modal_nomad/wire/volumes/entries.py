"""The entries of a Volume: one file, directory or symbolic link each, and their text on the wire.

A path is relative to the Volume, its parts joined by ``/``. Names that are not UTF-8 are held as Python
holds them (``surrogateescape``), so every name that a file system has survives.
"""

import base64
import binascii
import json
from typing import Any, Iterable, List, NamedTuple, Tuple

REMOVED, FILE, DIRECTORY, SYMLINK = range(4)
CHUNK_BYTES = 4 << 20
"""Files are cut into chunks of this size; the last one is shorter."""
INLINE_BYTES = 8 << 10
"""The content of a file up to this size stands in its entry: many small files need no blobs."""
HOLE = "0" * 64
"""Stands for a chunk of zeros, which is neither sent nor stored."""
MAX_TARGET = 4096
MAX_NAME = 255
"""Bytes of a name, as file systems have it."""
MAX_PATH = 4000
"""Bytes of a path."""
_LATEST = (1 << 63) - 1
_HEX = frozenset("0123456789abcdef")
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


class Entry(NamedTuple):
    """What stands at a path.

    Attributes:
        path: relative, without ``..``.
        kind: ``FILE``, ``DIRECTORY``, ``SYMLINK``, or ``REMOVED`` for what is no longer there.
        size: of a file, in bytes.
        mtime: nanoseconds since 1970.
        mode: permission bits.
        chunks: SHA-256 of each chunk in order, or ``HOLE``; empty for a small file.
        data: a small file's content, a link's target.
    """

    path: str
    kind: int
    size: int = 0
    mtime: int = 0
    mode: int = 0o644
    chunks: Tuple[str, ...] = ()
    data: bytes = b""

    @property
    def parent(self) -> str:
        """The directory that it stands in; empty for the top."""
        return self.path.rpartition("/")[0]


def to_bytes(path: str) -> bytes:
    """Return a path as the file system has it."""
    return path.encode("utf-8", "surrogateescape")


def from_bytes(path: bytes) -> str:
    """Return a path of the file system as an entry has it."""
    return path.decode("utf-8", "surrogateescape")


def moment(nanoseconds: int) -> int:
    """Return the time nearest to one that an entry can have: the years 1677 to 2262."""
    return max(-_LATEST, min(nanoseconds, _LATEST))


def clean_path(path: Any) -> str:
    """Return a path relative to the Volume's top, which is empty; a leading ``/`` is its top as well.

    Raises:
        ValueError: it leads out of the Volume, or no file system can have it.

    Example:
        >>> clean_path("/models//a.bin")
        'models/a.bin'
    """
    if not isinstance(path, str):
        raise ValueError(f"{path!r} is no path in a Volume: give a string")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"{path!r} has a '..': give a path from the top of the Volume")
    clean = "/".join(parts)
    try:
        raw = to_bytes(clean)
    except UnicodeEncodeError:
        raise ValueError(f"{path!r} is not a name that a file can have: it holds a lone surrogate") from None
    if b"\0" in raw or len(raw) > MAX_PATH or any(len(part) > MAX_NAME for part in raw.split(b"/")):
        raise ValueError(
            f"{path[:80]!r} is not a name that a file can have: at most {MAX_NAME} bytes a part and "
            f"{MAX_PATH} in all, none of them zero"
        )
    return clean


def encode(entry: Entry) -> bytes:
    """Return an entry's line."""
    fields: List[Any] = [entry.path, entry.kind, entry.size, entry.mtime, entry.mode]
    fields.append("".join(entry.chunks))
    fields.append(base64.b64encode(entry.data).decode())
    # ASCII: what is no UTF-8 has to survive, and a newline ends the line.
    return _ENCODE(fields).encode() + b"\n"


def decode(line: bytes) -> Entry:
    """Read an entry's line and check it. Raises ValueError."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("a line is no entry of a Volume") from None
    return _checked(fields)


def _checked(fields: Any) -> Entry:
    try:
        path, kind, size, mtime, mode, chunks, data = fields
        content = base64.b64decode(data, validate=True) if data else b""
    except (ValueError, TypeError, binascii.Error):
        raise ValueError("a line is no entry of a Volume") from None
    if not isinstance(path, str) or not path or not (_is_plain(path) or clean_path(path) == path):
        raise ValueError(f"{str(path)[:80]!r} is no path of an entry")
    if not (type(kind) is type(size) is type(mode) is int and 0 <= kind <= SYMLINK and 0 <= size < 1 << 63):
        raise ValueError(f"the entry of {path[:80]!r} has no proper kind, size or mode")
    if type(mtime) is not int or not -(1 << 63) <= mtime < 1 << 63 or not 0 <= mode <= 0o7777:
        raise ValueError(f"the entry of {path[:80]!r} has no proper time or mode")
    if not isinstance(chunks, str) or len(chunks) % 64 or not _HEX.issuperset(chunks):
        raise ValueError(f"the chunks of {path[:80]!r} are no hashes")
    names = tuple([chunks[start : start + 64] for start in range(0, len(chunks), 64)]) if chunks else ()
    entry = Entry(path, kind, size, mtime, mode, names, content)
    if not _consistent(entry):
        raise ValueError(f"the content of {path[:80]!r} does not have its size")
    return entry


def _is_plain(path: str) -> bool:
    """Tell, of most paths that are clean, that they are: in a tenth of the time that the others take."""
    return (
        len(path) <= MAX_NAME
        and path.isascii()
        and path[0] not in "/."
        and path[-1] != "/"
        and "//" not in path
        and "/." not in path
        and "\0" not in path
    )


def _consistent(entry: Entry) -> bool:
    if entry.kind == FILE:
        if entry.chunks:
            return not entry.data and len(entry.chunks) == -(-entry.size // CHUNK_BYTES)
        return entry.size == len(entry.data) <= INLINE_BYTES
    if entry.kind == SYMLINK:
        return not entry.chunks and 0 < len(entry.data) <= MAX_TARGET and b"\0" not in entry.data
    return not entry.chunks and not entry.data


def encode_all(entries: Iterable[Entry]) -> bytes:
    """Return the lines of entries."""
    return b"".join(map(encode, entries))


def decode_all(lines: List[bytes]) -> List[Entry]:
    """Read lines of entries, faster than one by one. Raises ValueError."""
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        raise ValueError("a line is no entry of a Volume") from None
    if len(found) != len(lines):
        raise ValueError("a line is no entry of a Volume")
    return [_checked(fields) for fields in found]
