"""Whether a publication is well formed: what is stored is read at every start, and must not fail there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec

from modal_nomad.exception import InvalidError
from modal_nomad.wire.spec import FunctionSpec

_MAX_NUMBER = 1e12


class _Entry(TypedDict):
    spec: FunctionSpec
    job: dict[str, Any]


class _Publication(TypedDict, total=False):
    state: str
    name: str | None
    description: str | None
    environment: str | None
    app_id: str | None
    tag: str | None
    client_version: str | None
    functions: list[_Entry] | None


def check_publication(args: Mapping[str, Any]) -> None:
    """Check the types and the bounds of ``app.publish``'s arguments.

    Raises:
        InvalidError: naming the place and the fault.
    """
    try:
        publication = msgspec.convert(args, _Publication)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise InvalidError(f"the publication is malformed: {error}") from None
    for entry in publication.get("functions") or ():
        spec = entry["spec"]
        if not spec.name:
            raise InvalidError("each published Function needs a name: update the client")
        _check_numbers(spec.name, spec)
        if spec.timeout <= 0 or (spec.startup_timeout is not None and spec.startup_timeout <= 0):
            raise InvalidError(f"Function {spec.name!r}: a timeout must be above 0")
        if spec.max_concurrent_inputs < 1 or (spec.max_containers is not None and spec.max_containers < 1):
            raise InvalidError(f"Function {spec.name!r}: a maximum must be 1 or more")


def _check_numbers(name: str, value: Any) -> None:
    for field in dataclasses.fields(value):
        number = getattr(value, field.name)
        if dataclasses.is_dataclass(number) and not isinstance(number, type):
            _check_numbers(name, number)
        elif isinstance(number, (int, float)) and not 0 <= number <= _MAX_NUMBER:
            raise InvalidError(f"Function {name!r}: {field.name} is {number!r}: it is out of bounds")
