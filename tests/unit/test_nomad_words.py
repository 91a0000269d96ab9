"""What is read out of Nomad's answers."""

from __future__ import annotations

from typing import Any

from modal_nomad.engines._nomad_words import capacity_of
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
