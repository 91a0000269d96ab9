"""Files that come from a Volume or a NetworkFileSystem into a directory here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from modal_nomad.cli._errors import CommandError
from modal_nomad.wire.volumes.chunks import is_hole


def check_free(place: Path, force: bool) -> None:
    """Refuse to replace what is there. Raises CommandError."""
    if not force and os.path.lexists(place):
        raise CommandError(f"{place} exists already: remove it, or say --force")


def make_folder(place: Path, force: bool) -> None:
    """Make a directory that is filled from a Volume. Raises CommandError where a file or link is there."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        # What goes into it would go where a link leads.
        check_free(place, force)
        place.unlink()
    place.mkdir(exist_ok=True)


def save(content: Iterable[bytes], place: Path, force: bool) -> None:
    """Write a file whole, or not at all. Raises CommandError where one is there.

    Args:
        content: its parts; they are asked for when the place is known to be free.
        place: where it goes.
        force: whether it may replace what is there.
    """
    check_free(place, force)
    if place.is_dir() and not place.is_symlink():
        raise CommandError(f"{place} is a directory: remove it, or name another place")
    # Beside its place, so that a download that breaks off leaves nothing half, and under a name of no file's.
    part = place.with_name(f".{os.urandom(8).hex()}.part")
    try:
        with open(part, "xb") as file:
            for data in content:
                # A sparse file takes no more room here than it does there.
                if is_hole(data):
                    file.seek(len(data), os.SEEK_CUR)
                else:
                    file.write(data)
            file.truncate()
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
