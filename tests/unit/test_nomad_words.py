"""What is read out of Nomad's answers."""

from __future__ import annotations

from typing import Any

import pytest

from modal_nomad.engines._nomad_words import allocation_event, capacity_of, gpu_of, placement_words
from modal_nomad.engines.base import Capacity


def _node(cores: int, **changes: Any) -> dict[str, Any]:
    return {
        "Status": "ready",
        "SchedulingEligibility": "eligible",
        "Drain": False,
        "NodePool": "default",
        "Datacenter": "dc1",
        "NodeResources": {"Cpu": {"TotalCpuCores": cores}},
        **changes,
    }


def test_only_nodes_that_take_containers_count() -> None:
    nodes = [
        _node(4),
        _node(8, Datacenter="dc2"),
        _node(16, Status="down"),
        _node(32, SchedulingEligibility="ineligible"),
        _node(64, Drain=True),
        _node(128, NodePool="gpu"),
    ]
    assert capacity_of(nodes, pool="default", datacenters=("*",)) == Capacity(12, 2)
    assert capacity_of(nodes, pool="all", datacenters=("*",)) == Capacity(140, 3)
    assert capacity_of(nodes, pool="default", datacenters=("dc2", "eu-*")) == Capacity(8, 1)
    assert capacity_of([], pool="default", datacenters=("*",)) == Capacity(0, 0)


def test_a_node_that_does_not_say_its_cores_counts_as_one() -> None:
    assert capacity_of([_node(0, NodeResources=None)], pool="all", datacenters=("*",)) == Capacity(1, 1)


@pytest.mark.parametrize(
    ("metrics", "gpu", "words"),
    [
        (
            {
                "NodesEvaluated": 5,
                "ConstraintFiltered": {"missing devices": 1, "computed class ineligible": 2},
                "ClassFiltered": {"plain": 3},
                "DimensionExhausted": {"devices: no devices match request": 2},
            },
            "2 × H100",
            "0 of 5 nodes have 2 × H100 free: 3 lack the model, 2 exhausted",
        ),
        (
            {"NodesEvaluated": 1, "DimensionExhausted": {"devices: no devices match request": 1}},
            "0.25 of A100",
            "0 of 1 nodes have 0.25 of A100 free: 1 exhausted",
        ),
        (
            {"NodesEvaluated": 2, "ConstraintFiltered": {"missing devices": 2}},
            "",
            "0 of 2 nodes have such a device free: 2 have none",
        ),
        (
            {
                "NodesEvaluated": 4,
                "ConstraintFiltered": {
                    "missing devices": 1,
                    "computed class ineligible": 2,
                    "${meta.cloud} = aws": 1,
                },
            },
            "1 × L4",
            "0 of 4 nodes have 1 × L4 free: 1 lack the model; "
            "1 node excluded by the constraint ${meta.cloud} = aws (cloud=); "
            "2 nodes excluded by the constraint computed class ineligible",
        ),
        (
            {
                "NodesEvaluated": 2,
                "ConstraintFiltered": {"missing devices": 1},
                "DimensionExhausted": {"memory": 1},
                "ResourcesExhausted": {"container": {"MemoryMB": 4096}},
            },
            "1 × L4",
            "0 of 2 nodes have 1 × L4 free: 1 lack the model; "
            "needs 4,096 MiB of memory: 1 node has too little free",
        ),
        ({"NodesEvaluated": 1, "DimensionExhausted": {"cpu": 1}}, "1 × L4", "cpu exhausted on 1 node"),
    ],
)
def test_who_waits_for_a_gpu_is_told_which_nodes_have_none(
    metrics: dict[str, Any], gpu: str, words: str
) -> None:
    assert placement_words(metrics, gpu=gpu) == words


def test_a_jobs_gpus_are_read_from_its_meta() -> None:
    assert gpu_of({"Meta": {"modal_gpu": "1 × L4"}}) == "1 × L4"
    assert gpu_of({"Meta": None}) == gpu_of({}) == ""


def test_a_capability_that_nodes_do_not_allow_is_said_with_what_allows_it() -> None:
    text = "driver does not allow the following capabilities: sys_admin"
    event = {"Type": "Driver Failure", "DisplayMessage": text}
    found = allocation_event("ta-1", {"ClientStatus": "failed", "TaskStates": {"x": {"Events": [event]}}})
    assert found.reason.startswith(text) and "allow_caps" in found.reason
