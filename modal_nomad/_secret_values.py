"""The values of Secrets that a program brings: what a variable may be, and where ``.env`` files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import exception
from .wire.secret_values import RESERVED, is_variable


def check_values(where: str, env_dict: Any) -> dict[str, str]:
    """Return variables whose value is not None.

    Raises:
        InvalidError: one cannot be a variable. The text holds no value.
    """
    if env_dict is None:
        return {}
    if not isinstance(env_dict, Mapping):
        raise exception.InvalidError(
            f"Secret.{where} takes a dict of strings, not a {type(env_dict).__name__}"
        )
    for name, value in env_dict.items():
        if not isinstance(name, str) or not is_variable(name):
            raise exception.InvalidError(
                f"Secret.{where} got the name {name!r}; give a non-empty string without '='"
            )
        if name in RESERVED:
            raise exception.InvalidError(
                f"Secret.{where} got {name}, which is the container's own; give the variable another name"
            )
        if value is not None and not isinstance(value, str):
            raise exception.InvalidError(
                f"Secret.{where} got a {type(value).__name__} for {name}; give a string, or None for nothing"
            )
        if value is not None and ("\0" in value or not _encodable(value)):
            raise exception.InvalidError(
                f"Secret.{where} got a value for {name} that no variable can have; encode it, as with base64"
            )
    return {name: value for name, value in env_dict.items() if value is not None}


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_dotenv(start: Path, filename: str) -> dict[str, str | None]:
    """Return the variables of the nearest file of a name, in a folder or above.

    Raises:
        ImportError: python-dotenv is missing.
        FileNotFoundError: there is no such file.
    """
    try:
        from dotenv import dotenv_values
    except ImportError:
        raise ImportError("Secret.from_dotenv needs python-dotenv: pip install python-dotenv") from None
    folder = start if start.is_dir() else start.parent
    for place in (folder, *folder.parents):
        if (place / filename).is_file():
            # What is in the file counts, not what this process happens to have of that name.
            return dict(dotenv_values(place / filename))
    raise FileNotFoundError(f"there is no {filename} in {folder} or above: create it, or give path=")
