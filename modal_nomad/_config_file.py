"""Writing the configuration file: comments stay, and a crash leaves the old file or the new one, whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .config import _SETTINGS, _read_profiles, config_path, in_container
from .exception import InvalidError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


def write_profile(profile: str, values: Mapping[str, Any], *, activate: bool = False) -> None:
    """Set settings of a profile, which is made where there is none.

    Args:
        profile: its name.
        values: settings by name; None takes one out.
        activate: make it the active one.

    Raises:
        InvalidError: for an unknown setting, or inside a container.

    Example:
        >>> write_profile("cluster", {"server_url": "https://modal.example.org"}, activate=True)
    """
    import tomlkit

    unknown = sorted(set(values) - set(_SETTINGS))
    if unknown:
        raise InvalidError(f"There is no setting {unknown[0]!r}; known are {', '.join(_SETTINGS)}")
    document = _load()
    if profile not in document:
        document[profile] = tomlkit.table()
    section: Any = document[profile]
    for key, value in values.items():
        if value is None:
            section.pop(key, None)
        else:
            section[key] = value
    if activate:
        _activate(document, profile)
    _save(document)


def activate_profile(profile: str) -> None:
    """Make a profile the active one, and no other."""
    document = _load()
    _activate(document, profile)
    _save(document)


def _load() -> TOMLDocument:
    import tomlkit

    if in_container():
        raise InvalidError("The configuration file cannot be written inside a container")
    # Says in words what is wrong with a file that is none of ours.
    _read_profiles()
    try:
        with open(config_path(), encoding="utf-8") as file:
            return tomlkit.load(file)
    except FileNotFoundError:
        return tomlkit.document()


def _activate(document: TOMLDocument, profile: str) -> None:
    for name, section in document.items():
        if name == profile:
            section["active"] = True
        else:
            section.pop("active", None)


def _save(document: TOMLDocument) -> None:
    import tomlkit

    path = os.path.realpath(config_path())
    # mkstemp's 0600 is what a file with a secret in it needs.
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".modal-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(tomlkit.dumps(document))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
