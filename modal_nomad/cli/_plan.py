"""Nomad's plan diff as coloured text: what a deploy would add, change and remove."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modal_nomad.cli._terminal import style

_MARKS = {"Added": ("+", "green"), "Deleted": ("-", "red"), "Edited": ("+/-", "yellow")}


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return the lines that show one job's plan, ANSI colours included."""
    diff = plan.get("diff") or {}
    if not plan.get("changes"):
        return [f"  job {plan['job_id']}: no changes"]
    lines = list(_job(diff, str(plan["job_id"])))
    lines += [style(f"  warning: {text}", "yellow") for text in _warnings(plan.get("warnings") or "")]
    for group, reason in (plan.get("failures") or {}).items():
        lines.append(style(f"  group {group} cannot be placed now: {reason}", "yellow"))
    return lines


def _warnings(text: str) -> list[str]:
    # Nomad nests them: "Group … has warnings: 1 error occurred:". What is said stands in the innermost.
    said = [line.strip().removeprefix("* ").strip() for line in text.splitlines()]
    return list(dict.fromkeys(line for line in said if line and not line.endswith(":")))


def _job(diff: Mapping[str, Any], job_id: str) -> Iterator[str]:
    yield _line(diff, f"job {job_id}", 0)
    yield from _inside(diff, 1)
    for group in diff.get("TaskGroups") or ():
        updates = ", ".join(f"{n} {kind}" for kind, n in (group.get("Updates") or {}).items())
        yield _line(group, f"group {group['Name']}" + (f" ({updates})" if updates else ""), 1)
        yield from _inside(group, 2)
        for task in group.get("Tasks") or ():
            notes = ", ".join(task.get("Annotations") or ())
            yield _line(task, f"task {task['Name']}" + (f" ({notes})" if notes else ""), 2)
            yield from _inside(task, 3)


def _inside(diff: Mapping[str, Any], depth: int) -> Iterator[str]:
    for change in diff.get("Fields") or ():
        if change.get("Type", "None") != "None":
            yield _line(change, f"{change['Name']}: {_values(change)}", depth)
    for block in diff.get("Objects") or ():
        if block.get("Type", "None") != "None":
            yield _line(block, f"{block['Name']} {{", depth)
            yield from _inside(block, depth + 1)
            yield _line({}, "}", depth)


def _values(change: Mapping[str, Any]) -> str:
    old, new = change.get("Old", ""), change.get("New", "")
    if change["Type"] == "Added":
        return f'"{new}"'
    if change["Type"] == "Deleted":
        return f'"{old}"'
    return f'"{old}" => "{new}"'


def _line(diff: Mapping[str, Any], text: str, depth: int) -> str:
    mark, colour = _MARKS.get(diff.get("Type", "None"), ("", None))
    return style(f"{mark:<3} {'  ' * depth}{text}", colour)
