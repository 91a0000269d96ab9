"""What the frames between a dispatcher and a gateway hold. The gateway knows Functions by their jobs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from modal_nomad.dispatcher.gateway.discovery import ServedFunction
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.wire import frames

_HOST = re.compile(r"[0-9A-Za-z.:_-]{1,253}")


def host_and_port(value: Any) -> tuple[str, int]:
    """Read an address that others dial: a host and a port. Raises FrameError."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not isinstance(value[0], str)
        or not _HOST.fullmatch(value[0])
        or type(value[1]) is not int
        or not 0 < value[1] < 65536
    ):
        raise frames.FrameError("an address has a host and a port")
    return value[0], value[1]


def served_frame(function: ServedFunction) -> frames.Header:
    """Return the frame that tells a gateway to serve a Function."""
    routes = []
    for route in function.routes:
        fields = dataclasses.asdict(route)
        del fields["function_id"]
        routes.append(fields)
    return {
        "t": "serve",
        "f": function.job,
        "r": routes,
        "n": function.limit,
        "o": int(function.single_use),
    }


def served_function(header: Mapping[str, Any]) -> ServedFunction:
    """Read that frame; fields of a newer dispatcher are ignored. Raises FrameError."""
    names = {f.name for f in dataclasses.fields(Route)} - {"function_id", "domains"}
    try:
        job, limit = str(header["f"]), int(header["n"])
        routes = tuple(
            Route(
                function_id=job,
                domains=tuple(map(str, fields["domains"])),
                **{k: v for k, v in fields.items() if k in names},
            )
            for fields in header["r"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise frames.FrameError(f"a Function to serve is malformed: {error!r}") from None
    return ServedFunction(job, routes, limit, bool(header.get("o")), job)
