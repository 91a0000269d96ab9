"""What Nomad says of an allocation or an evaluation, as the engine's events: pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from modal_nomad.engines.base import Capacity, ContainerEvent, ContainerState
from modal_nomad.exception import OutOfMemoryError

_CHILD = re.compile(r"^(?P<parent>.+)/dispatch-(?P<container>ta-[A-Za-z0-9]+)-\d+-[0-9a-f]{8}$")
CHILD_FILTER = "/dispatch-ta-"
_STATES = {
    "pending": ContainerState.PENDING,
    "running": ContainerState.RUNNING,
    "complete": ContainerState.COMPLETE,
    "failed": ContainerState.FAILED,
    "lost": ContainerState.LOST,
    # The node does not answer: its containers' sockets are gone, whatever became of the processes.
    "unknown": ContainerState.LOST,
}
OUT_OF_MEMORY = "out of memory: it used more than its node gives it: ask for more with memory="
_GPU_META = "modal_gpu"
_NO_DEVICE = "missing devices"
_SAME_CLASS = "computed class ineligible"
_CAPABILITIES = "does not allow the following capabilities"
_ASKED = {"memory": "MemoryMB", "cpu": "CPU", "cores": "Cores"}
_ASKED_BY = {
    "${meta.cloud}": "cloud=",
    "${meta.preemptible}": "nonpreemptible= or spot=",
    "${meta.zone}": "zone=",
    "${meta.instance_type}": "instance_type=",
}
_START_FAILURES = (
    "Driver Failure",
    "Setup Failure",
    "Failed Artifact Download",
    "Failed Validation",
    "Failed Restarting",
    "Template",
)


def container_of(job_id: str) -> str | None:
    """Return the container id that a child job's id carries, or None when it is none of ours."""
    match = _CHILD.match(job_id)
    return match["container"] if match else None


def allocation_event(container_id: str, allocation: Mapping[str, Any]) -> ContainerEvent:
    """Return what an allocation (or its list stub) says of its container."""
    state = _STATES.get(str(allocation.get("ClientStatus")), ContainerState.PENDING)
    tasks = allocation.get("TaskStates") or {}
    events = [event for task in tasks.values() for event in task.get("Events") or []]
    code, reason = _ending(events) if state.ended else (None, "")
    if state is ContainerState.LOST:
        reason = reason or "its node does not answer"
    elif state is ContainerState.FAILED:
        reason = reason or str(allocation.get("ClientDescription") or "failed")
    elif state is ContainerState.PENDING and events:
        reason = str(events[-1].get("DisplayMessage") or "")
    return ContainerEvent(
        container_id=container_id,
        state=state,
        reason=reason,
        exit_code=code,
        error=OutOfMemoryError(reason) if reason == OUT_OF_MEMORY else None,
        allocation_id=str(allocation.get("ID", "")),
        node=str(allocation.get("NodeName", "")),
    )


def capacity_of(nodes: Sequence[Mapping[str, Any]], *, pool: str, datacenters: Sequence[str]) -> Capacity:
    """Return what the nodes that take new containers have together."""
    cores = [
        int(((node.get("NodeResources") or {}).get("Cpu") or {}).get("TotalCpuCores") or 1)
        for node in nodes
        if node.get("Status") == "ready"
        and node.get("SchedulingEligibility") == "eligible"
        and not node.get("Drain")
        and pool in (node.get("NodePool", pool), "all")
        and any(fnmatchcase(str(node.get("Datacenter", "")), pattern) for pattern in datacenters)
    ]
    return Capacity(sum(cores), len(cores))


def task_of(allocation: Mapping[str, Any]) -> str:
    """Return the name of an allocation's task, empty before it has a state."""
    return next(iter(allocation.get("TaskStates") or {}), "")


def _ending(events: list[Mapping[str, Any]]) -> tuple[int | None, str]:
    stopped = any(event.get("Type") in ("Killing", "Killed") for event in events)
    for event in reversed(events):
        kind = event.get("Type")
        if kind == "Terminated":
            details = event.get("Details") or {}
            code = int(event.get("ExitCode") or details.get("exit_code") or 0)
            signal = int(event.get("Signal") or details.get("signal") or 0)
            # Drivers that start through a helper report a signal as 128 + its number.
            signal = signal or (code - 128 if 128 < code <= 192 else 0)
            if details.get("oom_killed") == "true":
                return code, OUT_OF_MEMORY
            if stopped:
                # Drivers say -1 when the task was torn down before they could read its code.
                return (code if code >= 0 else None), "stopped"
            if signal:
                return code or 128 + signal, f"killed by signal {signal}"
            return code, f"exit code {code}" if code else ""
        if kind in _START_FAILURES:
            # Some of it comes from plugins, with line breaks of their own.
            return None, _start_failure(" ".join(str(event.get("DisplayMessage") or kind).split()))
    return None, "stopped before it started" if stopped else ""


def _start_failure(text: str) -> str:
    if _CAPABILITIES in text:
        return (
            f"{text}: add sys_admin to allow_caps in the nodes' docker plugin configuration, or set"
            " container_fuse = false under [render]"
        )
    return text


def placement_words(metrics: Mapping[str, Any], core_mhz: int = 1000, gpu: str = "") -> str:
    """Say in words why Nomad placed nothing, from the metrics of one task group.

    Args:
        metrics: Nomad's.
        core_mhz: how many of Nomad's MHz one core of ``cpu=`` was rendered as.
        gpu: which GPUs were asked for, in words.
    """
    metrics, device = _device_words(metrics, gpu)
    parts: list[str] = [device] if device else []
    available = metrics.get("NodesAvailable") or {}
    empty = sorted(name for name, count in available.items() if not count)
    if empty and len(empty) == len(available):
        parts.append(f"no ready node in datacenter {', '.join(empty)}")
    filtered = metrics.get("ConstraintFiltered") or {}
    if nowhere := _nowhere(filtered, int(metrics.get("NodesEvaluated") or 0)):
        parts.append(nowhere)
    else:
        for constraint, count in sorted(filtered.items()):
            parts.append(f"{_nodes(count)} excluded by {_constraint(constraint)}")
    for name, count in sorted((metrics.get("ClassFiltered") or {}).items()):
        if not metrics.get("ConstraintFiltered"):
            parts.append(f"{_nodes(count)} of class {name} excluded")
    asked = [ask for ask in (metrics.get("ResourcesExhausted") or {}).values() if ask]
    for dimension, count in sorted((metrics.get("DimensionExhausted") or {}).items()):
        parts.append(_exhausted(dimension, count, asked, core_mhz))
    for quota in metrics.get("QuotaExhausted") or []:
        parts.append(f"quota exhausted: {quota}")
    if not parts:
        parts.append("no node fits" if metrics.get("NodesEvaluated") else _no_node(metrics))
    return "; ".join(parts)


def evaluation_words(evaluation: Mapping[str, Any], core_mhz: int = 1000, gpu: str = "") -> str:
    """Say why an evaluation placed nothing; empty when it placed everything."""
    failed = evaluation.get("FailedTGAllocs") or {}
    return "; ".join(placement_words(metrics, core_mhz, gpu) for metrics in failed.values())


def gpu_of(job: Mapping[str, Any]) -> str:
    """Return which GPUs a job (or its list stub) asks for, in words; empty for none."""
    return str((job.get("Meta") or {}).get(_GPU_META) or "")


def _device_words(metrics: Mapping[str, Any], gpu: str) -> tuple[Mapping[str, Any], str]:
    """Return what is left to say without the devices, and what there is to say of them."""
    filtered = dict(metrics.get("ConstraintFiltered") or {})
    exhausted = dict(metrics.get("DimensionExhausted") or {})
    lacking = int(filtered.pop(_NO_DEVICE, 0))
    taken = sum(int(exhausted.pop(name)) for name in list(exhausted) if name.startswith("devices:"))
    if not lacking and not taken:
        return metrics, ""
    if lacking and set(filtered) <= {_SAME_CLASS}:
        # Nomad looks at one node of a class, and leaves the others out with these words.
        lacking += int(filtered.pop(_SAME_CLASS, 0))
    total = max(int(metrics.get("NodesEvaluated") or 0), lacking + taken)
    reasons = [f"{lacking} lack the model" if gpu else f"{lacking} have none"] if lacking else []
    reasons += [f"{taken} exhausted"] if taken else []
    words = f"0 of {total} nodes have {gpu or 'such a device'} free: {', '.join(reasons)}"
    rest = {"ConstraintFiltered": filtered, "DimensionExhausted": exhausted}
    return {**metrics, **rest, "ClassFiltered": {} if lacking else metrics.get("ClassFiltered")}, words


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _no_node(metrics: Mapping[str, Any]) -> str:
    # Nomad counts the nodes of a pool only within the job's datacenters: it does not say which is empty.
    pool = metrics.get("NodePool")
    return (
        f"no node in node pool {pool} is eligible, or none in its datacenters (region=)"
        if pool
        else "no node is eligible"
    )


def _nowhere(filtered: Mapping[str, int], total: int) -> str:
    """Say that no node is as it must be; empty where something else is in the way, too."""
    rules = {text: int(count) for text, count in filtered.items() if text.startswith("${")}
    if not rules or not set(filtered) - set(rules) <= {_SAME_CLASS} or sum(filtered.values()) < total:
        return ""
    if len(rules) == 1:
        # What Nomad leaves out as being of a class that it has looked at fails for the same reason.
        return f"0 of {total} nodes have {_rule(next(iter(rules)))}"
    failed = [f"{count} lack {_rule(text)}" for text, count in sorted(rules.items())]
    if rest := filtered.get(_SAME_CLASS):
        failed.append(f"{rest} are like one of these")
    return f"0 of {total} nodes will do: {', '.join(failed)}"


def _constraint(text: str) -> str:
    if text == "missing drivers":
        return "a missing task driver: enable it in the client's plugin configuration"
    return f"the constraint {_rule(text)}"


def _rule(text: str) -> str:
    """Return a constraint with the parameter that asks for it, where only that one does."""
    parameter = _ASKED_BY.get(text.partition(" ")[0])
    return f"{text} ({parameter})" if parameter else text


def _exhausted(dimension: str, count: int, asked: Sequence[Mapping[str, Any]], core_mhz: int) -> str:
    amount = sum(int(ask.get(_ASKED.get(dimension, "")) or 0) for ask in asked)
    if not amount:
        less = ": ask for less with ephemeral_disk=" if dimension == "disk" else ""
        return f"{dimension} exhausted on {_nodes(count)}{less}"
    needs = {
        "memory": f"{amount:,} MiB of memory",
        "cpu": f"{amount / core_mhz:g} cores ({amount:,} MHz)",
        "cores": f"{amount:,} cores of its own",
    }[dimension]
    return f"needs {needs}: {_nodes(count)} {'has' if count == 1 else 'have'} too little free"
