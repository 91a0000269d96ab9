"""Plain values that the library returns, for annotations in user code."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


def described(kind: type[ObjectInfo], found: Mapping[str, Any]) -> Any:
    """Return an info of a kind from what the server said."""
    created = datetime.datetime.fromtimestamp(found["created_at"]).astimezone()
    return kind(found["name"], created, found["created_by"])
