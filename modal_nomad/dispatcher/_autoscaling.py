"""Requests about one Function's containers: how many there are, and how many there should be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._containers import FunctionState
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.store import Store
from modal_nomad.exception import InvalidError

_LEAST = {"min_containers": 0, "max_containers": 1, "buffer_containers": 0}
_WINDOW = "scaledown_window"


def current_stats(calls: CallEngine, function: FunctionState) -> dict[str, int]:
    """Return a Function's queue and containers: ``function.stats``."""
    view = calls.pool(function.function_id)
    if view is None:
        return {"backlog": 0, "num_total_runners": 0, "num_running_inputs": 0, "input_headroom": 0}
    return {
        "backlog": view.backlog + view.prefetched,
        "num_total_runners": view.idle + view.busy + view.draining,
        "num_running_inputs": view.running,
        "input_headroom": view.headroom,
    }


async def update_autoscaler(
    store: Store, handle: Callable[[ev.Event], None], function: FunctionState, settings: Any
) -> dict[str, Any]:
    """Change a Function's autoscaler settings until its next deployment: ``function.update_autoscaler``.

    Args:
        store: keeps what was changed, for a restart.
        handle: gives the call engine an event.
        function: whose.
        settings: the new values by name; what is absent stays as it is.

    Returns:
        All settings, as they are now.

    Raises:
        InvalidError: naming the setting, what it was, and what it may be.
    """
    changed = {**function.autoscaler, **_checked(settings)}
    spec = ev.FunctionPolicy.from_spec(function.spec, function.version)
    policy = dataclasses.replace(spec, **changed)
    if policy.max_containers is not None and policy.min_containers > policy.max_containers:
        raise InvalidError(
            f"min_containers ({policy.min_containers}) cannot be higher than max_containers "
            f"({policy.max_containers}): change both at once"
        )
    await store.set_autoscaler(function.function_id, changed)
    function.autoscaler = changed
    handle(ev.FunctionAdded(function.function_id, policy))
    return {name: getattr(policy, name) for name in (*_LEAST, _WINDOW)}


def _checked(settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict) or set(settings) - {*_LEAST, _WINDOW}:
        raise InvalidError(f"the request needs settings, with names among {', '.join((*_LEAST, _WINDOW))}")
    for name, value in settings.items():
        if name == _WINDOW:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise InvalidError(f"{name} is {value!r}; give a number of seconds above 0")
        elif isinstance(value, bool) or not isinstance(value, int) or value < _LEAST[name]:
            raise InvalidError(f"{name} is {value!r}; give a whole number of at least {_LEAST[name]}")
    return settings
