"""Plain values that the library returns, for annotations in user code."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._autoscaling import FunctionAutoscalerSettings as FunctionAutoscalerSettings
from ._autoscaling import FunctionStats as FunctionStats
from .call_graph import InputInfo as InputInfo
from .call_graph import InputStatus as InputStatus


@dataclass(frozen=True)
class ObjectInfo:
    """What is known of a named object.

    Attributes:
        name: its name; None for an ephemeral one.
        created_at: when it was made, in local time.
        created_by: who made it.
    """

    name: str | None
    created_at: datetime.datetime
    created_by: str


class DictInfo(ObjectInfo):
    """What ``Dict.info()`` returns."""


class QueueInfo(ObjectInfo):
    """What ``Queue.info()`` returns."""


class SecretInfo(ObjectInfo):
    """What ``Secret.info()`` returns."""


class VolumeInfo(ObjectInfo):
    """What ``Volume.info()`` returns."""


class FileEntryType(enum.IntEnum):
    """What a file entry is."""

    UNSPECIFIED = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5


@dataclass(frozen=True)
class FileEntry:
    """A file or directory of a listing.

    Attributes:
        path: from the top, without a leading ``/``.
        type: what it is.
        mtime: when it was last changed, in seconds since 1970.
        size: in bytes.
    """

    path: str
    type: FileEntryType
    mtime: int
    size: int


def described(kind: type[ObjectInfo], found: Mapping[str, Any]) -> Any:
    """Return an info of a kind from what the server said."""
    created = datetime.datetime.fromtimestamp(found["created_at"]).astimezone()
    return kind(found["name"], created, found["created_by"])
