"""Job ids: readable in the Nomad UI, unique by construction."""

from __future__ import annotations

import hashlib
import re

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_LENGTH = 100


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-.")


def job_id(app: str, function: str, *, environment: str = "", namespace: str = "", suffix: str = "") -> str:
    """Return ``app-function``, with a hash where that alone could name two Functions.

    A function's name without ``-`` makes the last ``-`` the border, so no two pairs meet; an
    environment that is not its own namespace shares one with others and needs the hash as well.
    """
    safe_app, safe_function = _safe(app), _safe(function)
    readable = f"{safe_app}-{safe_function}"
    shared = environment not in ("", "main", namespace)
    exact = (
        safe_app == app and safe_function == function and "-" not in function and safe_app and safe_function
    )
    if not exact or shared or len(readable) > _MAX_LENGTH:
        digest = hashlib.sha256(
            "\0".join((app, function, environment if shared else "")).encode()
        ).hexdigest()
        readable = f"{readable[:_MAX_LENGTH].strip('-')}-{digest[:8]}"
    # A double dash cannot come from the parts, whose ends are stripped.
    return f"{readable}--{_safe(suffix)}" if suffix else readable
