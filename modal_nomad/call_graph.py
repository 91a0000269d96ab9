"""Call graphs: which inputs a call had, what they called in turn, and how each of them ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class InputStatus(IntEnum):
    """How an input of a function ended, or that it has not."""

    PENDING = 0
    SUCCESS = 1
    FAILURE = 2
    TERMINATED = 3
    TIMEOUT = 4
    INIT_FAILURE = 5


@dataclass
class InputInfo:
    """One input of a function, and what was called while it ran.

    Attributes:
        input_id: ``in-…``, as ``current_input_id()`` says it in the container.
        function_call_id: ``fc-…``, the call that it is an input of.
        task_id: ``ta-…``, the container that runs or ran it; empty when none has yet.
        status: how it ended, or ``PENDING``.
        function_name: the function's name in its App; ``Class.method`` for a method.
        module_name: the module that it is imported from; empty for a function that travels by value.
        children: the inputs of the calls that were made while it ran, in the order of the calls.

    Example:
        >>> graph = call.get_call_graph()  # doctest: +SKIP
        >>> [child.function_name for child in graph[0].children]  # doctest: +SKIP
        ['inner', 'inner']
    """

    input_id: str
    function_call_id: str
    task_id: str
    status: InputStatus
    function_name: str
    module_name: str
    children: list[InputInfo]


# The wire's statuses; an internal failure is a failure to who looks at the graph.
_STATUSES = (
    InputStatus.SUCCESS,
    InputStatus.FAILURE,
    InputStatus.INIT_FAILURE,
    InputStatus.TERMINATED,
    InputStatus.TIMEOUT,
    InputStatus.FAILURE,
)


def build(calls: Iterable[Sequence[Any]], inputs: Iterable[Sequence[Any]]) -> list[InputInfo]:
    """Return the inputs of the first call, with all others below them.

    Args:
        calls: id, id of the input that made it, function name and module; a parent stands before its
            children.
        inputs: position of the call, index, status (None while pending) and container.
    """
    rows: list[list[InputInfo]] = []
    parents: list[str] = []
    by_id: dict[str, InputInfo] = {}
    names = [tuple(call) for call in calls]
    for _, parent, _, _ in names:
        rows.append([])
        parents.append(parent)
    for position, index, status, task_id in inputs:
        call_id, _, name, module = names[position]
        info = InputInfo(
            input_id=f"in-{call_id[3:]}:{index}",
            function_call_id=call_id,
            task_id=task_id,
            status=InputStatus.PENDING if status is None else _STATUSES[status],
            function_name=name,
            module_name=module,
            children=[],
        )
        rows[position].append(info)
        by_id[info.input_id] = info
    for parent, infos in zip(parents[1:], rows[1:]):  # noqa: B905 (not on 3.9)
        if parent in by_id:
            by_id[parent].children.extend(infos)
    return rows[0] if rows else []
