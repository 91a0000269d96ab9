"""Nomad's metrics and task events, said in words."""

from __future__ import annotations

from typing import Any

import pytest

from modal_nomad.engines._nomad_words import allocation_event, container_of, placement_words
from modal_nomad.engines.base import ContainerState


@pytest.mark.parametrize(
    ("job", "container"),
    [
        ("a-f/dispatch-ta-3mXk9-1700000000-0a1b2c3d", "ta-3mXk9"),
        ("a-f/dispatch-1700000000-0a1b2c3d", None),
        ("a-f", None),
    ],
)
def test_the_child_carries_the_container(job: str, container: str | None) -> None:
    assert container_of(job) == container


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (
            {
                "NodesEvaluated": 1,
                "DimensionExhausted": {"memory": 2},
                "ResourcesExhausted": {"t": {"MemoryMB": 64}},
            },
            "needs 64 MiB of memory: 2 nodes have too little free",
        ),
        (
            {
                "NodesEvaluated": 1,
                "DimensionExhausted": {"cpu": 1},
                "ResourcesExhausted": {"t": {"CPU": 999_000}},
            },
            "needs 999 cores (999,000 MHz): 1 node has too little free",
        ),
        ({"NodesEvaluated": 1, "DimensionExhausted": {"ports": 1}}, "ports exhausted on 1 node"),
        ({"NodesEvaluated": 0, "NodesAvailable": {"dc9": 0}}, "no ready node in datacenter dc9"),
        ({"NodesEvaluated": 0, "NodePool": "gpu"}, "no node in node pool gpu is eligible"),
        ({"NodesEvaluated": 2, "ConstraintFiltered": {"missing drivers": 1}}, "missing task driver"),
        ({"NodesEvaluated": 2, "ConstraintFiltered": {"${attr.x} = y": 1}}, "1 node excluded by"),
        ({"NodesEvaluated": 2, "QuotaExhausted": ["cpu"]}, "quota exhausted: cpu"),
    ],
)
def test_placement(metrics: dict[str, Any], words: str) -> None:
    assert words in placement_words(metrics)


def _alloc(status: str, *events: dict[str, Any]) -> dict[str, Any]:
    return {"ID": "x", "NodeName": "n", "ClientStatus": status, "TaskStates": {"t": {"Events": list(events)}}}


@pytest.mark.parametrize(
    ("allocation", "state", "code", "words"),
    [
        (_alloc("complete", {"Type": "Terminated"}), ContainerState.COMPLETE, 0, ""),
        (_alloc("failed", {"Type": "Terminated", "ExitCode": 3}), ContainerState.FAILED, 3, "exit code 3"),
        (_alloc("failed", {"Type": "Terminated", "ExitCode": 137}), ContainerState.FAILED, 137, "signal 9"),
        (_alloc("failed", {"Type": "Terminated", "Signal": 11}), ContainerState.FAILED, 139, "signal 11"),
        (
            _alloc("failed", {"Type": "Terminated", "ExitCode": 137, "Details": {"oom_killed": "true"}}),
            ContainerState.FAILED,
            137,
            "out of memory",
        ),
        (
            _alloc("failed", {"Type": "Failed Artifact Download", "DisplayMessage": "404"}),
            ContainerState.FAILED,
            None,
            "404",
        ),
        ({"ClientStatus": "unknown"}, ContainerState.LOST, None, "node does not answer"),
    ],
)
def test_endings(allocation: dict[str, Any], state: ContainerState, code: int | None, words: str) -> None:
    event = allocation_event("ta-1", allocation)
    assert (event.state, event.exit_code) == (state, code)
    assert words in event.reason
