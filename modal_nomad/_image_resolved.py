"""What the build steps of an Image come to when it is published."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ._local_manifest import LocalManifest
from .wire.spec import ImageLayer


class Contents(dict[str, "bytes | os.PathLike[str]"]):
    """What the server must have: SHA-256 to bytes, or to the file that holds them.

    Attributes:
        lists: local files that a build copies, which nothing but a build needs.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lists: list[LocalManifest] = []

    def whole(self) -> dict[str, bytes | os.PathLike[str]]:
        """Return all, with the files of the lists: those are read for it."""
        found = dict(self)
        for listed in self.lists:
            found.update(listed.contents())
        return found


class Resolved(NamedTuple):
    """What a step comes to.

    Attributes:
        layer: the step as it travels.
        contents: what it refers to.
        listed: the local files that it copies, which ``layer`` names by their ``manifest``.
    """

    layer: ImageLayer
    contents: Mapping[str, bytes | os.PathLike[str]] = {}
    listed: LocalManifest | None = None
