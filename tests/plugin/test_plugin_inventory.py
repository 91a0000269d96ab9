"""From cards to devices: whole cards, MIG instances and slices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modal_nomad_gpu._cards import Card, Event, Instance, Survey, Usage
from modal_nomad_gpu._config import MOST_SLICES, Config, Share
from modal_nomad_gpu._health import Health
from modal_nomad_gpu._inventory import Group, ReserveError, inventory, reservation
from modal_nomad_gpu._stats import device_stats

A100 = Card("GPU-a", "NVIDIA A100-SXM4-80GB", 81920, power=400, pci_bus_id="00000000:3B:00.0")
L4 = Card("GPU-l", "NVIDIA L4", 23034)
PARTED = replace(
    A100,
    uuid="GPU-m",
    mig=(Instance("MIG-1", "1g.10gb", 9728, 7, 0), Instance("MIG-2", "3g.40gb", 40192, 1, 0)),
)
# What HashiCorp's plugin says of a card, and jobs ask for.
NAMES = {
    "memory",
    "power",
    "bar1",
    "driver_version",
    "cores_clock",
    "memory_clock",
    "pci_bandwidth",
    "display_state",
    "persistence_mode",
}


def groups(*cards: Card, mps: bool = True, events: tuple[Event, ...] = (), **settings: Any) -> list[Group]:
    config = Config(**settings)
    health = Health(config.ignored_xids)
    for event in events:
        health.report(event)
    return inventory(health.check(Survey("550.54", cards)), config, mps=mps)


def test_a_card_has_the_names_that_jobs_know() -> None:
    full = replace(A100, bar1=131072, cores_clock=1410, memory_clock=1593, pci_bandwidth=32768)
    (group,) = groups(full)
    assert (group.type, group.name) == ("gpu", "NVIDIA A100-SXM4-80GB")
    assert set(group.attributes) == NAMES | {"healthy"}
    assert group.attributes["memory"] == (81920, "MiB")
    assert group.attributes["power"] == (400, "W")
    assert [(d.id, d.fault, d.pci_bus_id) for d in group.devices] == [("GPU-a", "", "00000000:3B:00.0")]


def test_a_card_whose_memory_cannot_be_read_hides_no_other() -> None:
    broken = replace(L4, uuid="GPU-x", memory=0)
    found = groups(broken, L4, share=(Share(slice_memory=10_000),))
    assert [d.id for group in found for d in group.devices] == [
        "GPU-l-slice-1",
        "GPU-l-slice-2",
        "GPU-x-slice-1",
    ]


def test_what_a_card_does_not_say_is_no_attribute() -> None:
    (group,) = groups(L4)
    always = {"memory", "driver_version", "display_state", "persistence_mode", "healthy"}
    assert set(group.attributes) == always


def test_cards_of_one_kind_are_one_group() -> None:
    found = groups(L4, A100, replace(L4, uuid="GPU-l2"))
    assert [(g.name, [d.id for d in g.devices]) for g in found] == [
        ("NVIDIA A100-SXM4-80GB", ["GPU-a"]),
        ("NVIDIA L4", ["GPU-l", "GPU-l2"]),
    ]


def test_a_group_says_how_many_are_healthy() -> None:
    """Nomad looks again at a node only when an attribute changed, and not at one that is like another."""
    two = (L4, replace(L4, uuid="GPU-l2"))
    assert groups(*two)[0].attributes["healthy"] == 2
    assert groups(L4)[0].attributes["healthy"] == 1
    assert groups(*two, events=(Event("GPU-l", 79),))[0].attributes["healthy"] == 1


def test_slices_are_devices_of_another_type() -> None:
    found = groups(A100, L4, share=(Share("A100", slices=4),))
    whole, parts = found
    assert (whole.type, whole.name) == ("gpu", "NVIDIA L4")
    assert (parts.type, parts.name) == ("gpu-slice", "NVIDIA A100-SXM4-80GB slice 20480MiB")
    assert [d.id for d in parts.devices] == [f"GPU-a-slice-{n}" for n in (1, 2, 3, 4)]
    assert parts.attributes["memory"] == (20480, "MiB")
    assert parts.attributes["card_memory"] == (81920, "MiB")
    assert (parts.attributes["share"], parts.attributes["slices"]) == (0.25, 4)
    assert set(parts.attributes) >= {"power", "driver_version"}


def test_slices_by_memory() -> None:
    (parts,) = groups(A100, share=(Share(slice_memory=30000),))
    assert [d.memory for d in parts.devices] == [30000, 30000]
    assert parts.attributes["share"] == 0.3662
    (one,) = groups(L4, share=(Share(slice_memory=30000),))
    assert [d.memory for d in one.devices] == [23034]


@given(
    st.integers(1000, 200_000),
    st.one_of(
        st.integers(2, 48).map(lambda n: Share(slices=n)),
        st.integers(1, 200_000).map(lambda m: Share("", 0, m)),
    ),
)
def test_slices_never_promise_more_than_the_card_has(memory: int, share: Share) -> None:
    (group,) = groups(Card("GPU-x", "X", memory), share=(share,))
    assert sum(d.memory for d in group.devices) <= memory
    assert sum(d.percentage for d in group.devices) <= 100.001
    assert len(group.devices) <= MOST_SLICES


def test_mig_instances_stand_for_their_card() -> None:
    found = groups(PARTED, A100)
    assert [(g.type, g.name, [d.id for d in g.devices]) for g in found] == [
        ("gpu", "NVIDIA A100-SXM4-80GB", ["GPU-a"]),
        ("gpu", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", ["MIG-1"]),
        ("gpu", "NVIDIA A100-SXM4-80GB MIG 3g.40gb", ["MIG-2"]),
    ]
    assert found[1].attributes["memory"] == (9728, "MiB")
    assert (found[1].attributes["mig_profile"], found[1].attributes["share"]) == ("1g.10gb", 0.1187)
    # A card has this attribute only as an instance: who wants a whole one asks for its absence.
    assert "mig_profile" not in found[0].attributes
    assert {g.type for g in groups(PARTED, mig_as_slices=True)} == {"gpu-slice"}
    assert groups(replace(A100, mig=())) == []


def test_what_the_operator_left_out_is_not_offered() -> None:
    found = groups(PARTED, A100, L4, ignored_gpu_ids=("MIG-1", "GPU-l"))
    assert [d.id for g in found for d in g.devices] == ["GPU-a", "MIG-2"]


def test_a_fault_reaches_every_part_of_its_card() -> None:
    found = groups(A100, PARTED, events=(Event("GPU-a", 79), Event("MIG-2", 95)), share=(Share("", 2),))
    faults = {d.id: d.fault for g in found for d in g.devices}
    assert faults["GPU-a-slice-1"] == faults["GPU-a-slice-2"] == "XID 79: fell off the bus"
    assert faults["MIG-1"] == "" and faults["MIG-2"].startswith("XID 95")
    assert all(d.fault for g in groups(PARTED, events=(Event("GPU-m", 48),)) for d in g.devices)


def test_slices_may_insist_on_the_daemon_that_holds_them_to_their_share() -> None:
    (group,) = groups(A100, mps=False, require_mps=True, share=(Share("", 2),))
    assert {d.fault for d in group.devices} == {"no MPS control daemon listens in /tmp/nvidia-mps"}
    (group,) = groups(A100, mps=False, share=(Share("", 2),))
    assert {d.fault for d in group.devices} == {""}
    assert group.attributes["mps"] is False


def test_whole_cards_are_reserved_together() -> None:
    found = groups(A100, replace(A100, uuid="GPU-b"))
    environment, mounts = reservation(found, ["GPU-b", "GPU-a"], Config(), mps=True)
    assert environment == {"NVIDIA_VISIBLE_DEVICES": "GPU-b,GPU-a", "CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a"}
    assert mounts == []


def test_a_slice_is_reserved_with_its_limits() -> None:
    found = groups(A100, share=(Share("", 3),))
    environment, mounts = reservation(found, ["GPU-a-slice-2"], Config(), mps=True)
    assert environment == {
        "NVIDIA_VISIBLE_DEVICES": "GPU-a",
        "CUDA_VISIBLE_DEVICES": "GPU-a",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=27306M",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "33.33",
        "CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps",
    }
    assert mounts == ["/tmp/nvidia-mps"]
    assert reservation(found, ["GPU-a-slice-2"], Config(), mps=False)[1] == []


def test_what_cannot_be_reserved_says_why() -> None:
    found = groups(A100, L4, events=(Event("GPU-l", 79),), share=(Share("A100", 2),))
    for ids, words in {
        ("GPU-gone",): "unknown devices: GPU-gone",
        ("GPU-l",): "GPU-l: XID 79: fell off the bus",
        ("GPU-a-slice-1", "GPU-a-slice-2"): "slices do not add up",
    }.items():
        with pytest.raises(ReserveError, match=words):
            reservation(found, ids, Config(), mps=True)


def test_stats_are_of_every_device_that_the_driver_knows() -> None:
    found = groups(A100, L4, PARTED, share=(Share("L4", 2),))
    used = Usage(power=90, power_limit=400, memory_used=1000, memory_total=81920, temperature=50)
    answer = device_stats(found, {"GPU-a": used, "GPU-l": Usage(gpu=7)}, now=12.5)
    by_name = {group["name"]: group for group in answer["groups"]}
    assert set(by_name) == {"NVIDIA A100-SXM4-80GB", "NVIDIA L4 slice 11517MiB"}
    stats = by_name["NVIDIA A100-SXM4-80GB"]["instance_stats"]["GPU-a"]
    assert stats["timestamp"] == {"seconds": 12, "nanos": 500_000_000}
    assert stats["summary"]["int_numerator_val"] == {"value": 1000}
    assert stats["summary"]["int_denominator_val"] == {"value": 81920}
    values = stats["stats"]["attributes"]
    assert values["Power usage"]["int_numerator_val"] == {"value": 90}
    assert values["GPU utilization"]["string_val"] == {"value": "N/A"}
    assert len(by_name["NVIDIA L4 slice 11517MiB"]["instance_stats"]) == 2
