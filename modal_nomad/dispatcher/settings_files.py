"""Files of settings: read, laid over one another, and checked against the dataclass that they are of."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GATEWAY_TOKEN_LENGTH = 16


class SettingsError(Exception):
    """The configuration cannot be used; the text is one line that names the remedy."""


def read_settings(
    kind: type[Any], paths: Sequence[Path], names: Set[str], command: str = ""
) -> dict[str, Any]:
    """Return the values of TOML files of settings; what a later file says counts, table by table.

    Args:
        kind: the dataclass that they are of; its defaults say their types.
        paths: the files.
        names: which of its fields the files may have.
        command: what prints an example, before ``--print-config``.

    Raises:
        SettingsError: naming the file and the fault.
    """
    data: dict[str, Any] = {}
    defaults = kind()
    for path in paths:
        data = _over(data, _checked(_read(path, command), path, names, defaults))
    return data


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text())
        return data
    except OSError as error:
        raise SettingsError(
            f"cannot read {path}: {error.strerror}; `{command}--print-config` prints an example"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error


def _checked(data: dict[str, Any], path: Path, names: Set[str], defaults: Any) -> dict[str, Any]:
    if unknown := sorted(set(data) - names):
        raise SettingsError(f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(names))}")
    for name, value in data.items():
        expected = type(getattr(defaults, name))
        if expected is float and type(value) is int:
            data[name] = float(value)
        elif type(value) is not expected:
            raise SettingsError(f"{path}: {name} is {value!r}; it must be a {expected.__name__}")
    return data


def _over(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for name, value in second.items():
        known = merged.get(name)
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[name] = _over(known, value) if both else value  # type: ignore[arg-type]
    return merged


def read_token(given: str, file: str) -> str:
    """Return the gateways' token, given itself or by its file. Raises SettingsError."""
    if not given and file:
        try:
            given = Path(file).read_text().strip()
        except OSError as error:
            raise SettingsError(f"gateway_token_file {file} cannot be read: {error.strerror}") from None
    if given and len(given) < GATEWAY_TOKEN_LENGTH:
        raise SettingsError(
            f"gateway_token is shorter than {GATEWAY_TOKEN_LENGTH}: `openssl rand -hex 32` makes one"
        )
    return given
