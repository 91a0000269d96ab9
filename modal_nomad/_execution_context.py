"""What the code that runs now is part of: which input, of which call, and where.

Imported by the SDK and by the container, so it stays tiny.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Any

current_work: ContextVar[tuple[Any, ...] | None] = ContextVar("modal_nomad_current_work", default=None)
"""The work item (lease, call id, index, ...) whose code runs in this context."""

in_snapshot: ContextVar[bool] = ContextVar("modal_nomad_in_snapshot", default=False)
"""Whether a hook runs whose memory later containers begin with."""


def current_input_id() -> str | None:
    """Return the id of the input that is being run, or None outside a container.

    Example:
        >>> current_input_id() is None
        True
    """
    work = current_work.get()
    return None if work is None else f"in-{work[1][3:]}:{work[2]}"


def current_function_call_id() -> str | None:
    """Return the id of the call whose input is being run, or None outside a container.

    Example:
        >>> current_function_call_id() is None
        True
    """
    work = current_work.get()
    return None if work is None else str(work[1])


def is_local() -> bool:
    """Tell whether this code runs on the caller's machine (True) or in a container (False).

    Example:
        >>> is_local()
        True
    """
    return os.environ.get("MODAL_IS_REMOTE") != "1"
