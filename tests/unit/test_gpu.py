"""GPU requests: what users write, the device block it becomes, and this machine's own GPUs."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad import gpu
from modal_nomad.engines._local_gpus import GPUs, LocalGPU, gpu_request
from modal_nomad.engines.base import EngineError
from modal_nomad.exception import InvalidError
from modal_nomad.gpu import gpu_options
from modal_nomad.render.devices import gpu_devices
from modal_nomad.wire.gpus import model_pattern
from modal_nomad.wire.spec import FunctionSpec, GPUOption

PRODUCTS = {
    "T4": ["Tesla T4"],
    "L4": ["NVIDIA L4"],
    "A10": ["NVIDIA A10"],
    "A10G": ["NVIDIA A10G"],
    "A100-40GB": ["NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"],
    "A100-80GB": ["NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"],
    "L40S": ["NVIDIA L40S"],
    "H100": ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"],
    "H200": ["NVIDIA H200"],
    "B200": ["NVIDIA B200"],
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        (False, []),
        ("t4", [("T4", 1)]),
        ("A100", [("A100", 1)]),
        ("a100-80gb:4", [("A100-80GB", 4)]),
        ("H100!:8", [("H100", 8)]),
        ("any", [("", 1)]),
        (" L40S : 2", [("L40S", 2)]),
        (gpu.T4(2), [("T4", 2)]),
        (gpu.L4(3), [("L4", 3)]),
        (gpu.A100(), [("A100", 1)]),
        (gpu.A100(size="80GB", count=2), [("A100-80GB", 2)]),
        (gpu.Any(count=2), [("", 2)]),
        (["H100", gpu.A100(), "any"], [("H100", 1), ("A100", 1), ("", 1)]),
        ([], []),
    ],
)
def test_every_form_is_read(value: Any, expected: list[tuple[str, int]]) -> None:
    assert [(option.model, option.count) for option in gpu_options(value)] == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("A1000", "did you mean A100"),
        ("h10", "H100"),
        ("zzz", "one of T4"),
        ("T4:0", "from 1 to"),
        ("T4:-1", "from 1 to"),
        ("T4:two", "from 1 to"),
        ("T4:", "from 1 to"),
        (7, "is no GPU"),
        (True, "is no GPU"),
        (["T4:1", "L4:2"], "different numbers"),
    ],
)
def test_what_is_no_gpu_is_refused_with_the_remedy(value: Any, words: str) -> None:
    with pytest.raises(InvalidError, match=re.escape(words)):
        gpu_options(value)


def test_the_classes_check_what_they_get() -> None:
    with pytest.raises(InvalidError, match="40GB"):
        gpu.A100(size="60GB")
    with pytest.raises(InvalidError, match="number of GPUs"):
        gpu.T4(0)
    with pytest.raises(TypeError):
        gpu.H100(2)  # type: ignore[misc]
    assert gpu.H100(count=2) == gpu.H100(count=2) != gpu.H100()
    assert repr(gpu.A10G(count=2)) == "GPU(A10G, count=2)"


@given(st.text(max_size=12) | st.integers() | st.lists(st.text(max_size=5), max_size=3))
def test_anything_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(InvalidError):
        assert all(option.count >= 1 for option in gpu_options(value))


def test_a_pattern_finds_its_own_products_only() -> None:
    for model in PRODUCTS:
        for other, names in PRODUCTS.items():
            for name in names:
                assert bool(re.search(model_pattern(model), name)) == (model == other), (model, name)
    assert re.search(model_pattern("A100"), "NVIDIA A100-SXM4-80GB")


def test_one_kind_is_a_constraint() -> None:
    (block,) = gpu_devices(gpu_options("H100:2"))
    assert block == {
        "Name": "nvidia/gpu",
        "Count": 2,
        "Constraints": [{"LTarget": "${device.model}", "Operand": "regexp", "RTarget": r"\bH100\b"}],
    }
    assert gpu_devices(()) == []
    assert gpu_devices(gpu_options("any")) == [{"Name": "nvidia/gpu", "Count": 1}]


def test_a_list_is_one_constraint_and_descending_affinities() -> None:
    (block,) = gpu_devices(gpu_options(["H100", "A100-80GB", "L4"]))
    (constraint,) = block["Constraints"]
    assert constraint["RTarget"] == r"\bH100\b|\bA100.*80GB\b|\bL4\b"
    assert [(a["RTarget"], a["Weight"]) for a in block["Affinities"]] == [
        (r"\bH100\b", 100),
        (r"\bA100.*80GB\b", 67),
        (r"\bL4\b", 34),
    ]


def test_any_in_a_list_lifts_the_constraint_and_keeps_the_preference() -> None:
    (block,) = gpu_devices(gpu_options(["H100", "any"]))
    assert "Constraints" not in block
    assert [a["RTarget"] for a in block["Affinities"]] == [r"\bH100\b"]


def test_the_smaller_a100_is_taken_first() -> None:
    (block,) = gpu_devices(gpu_options("A100"))
    assert [a["RTarget"] for a in block["Affinities"]] == [r"\bA100.*40GB\b"]


def test_the_specification_keeps_gpus() -> None:
    spec = FunctionSpec(app="a", name="f", gpu=(GPUOption("H100", 2), GPUOption("")))
    assert FunctionSpec.from_dict(spec.to_dict()) == spec


BOX = [LocalGPU("GPU-1", "NVIDIA L4"), LocalGPU("GPU-2", "NVIDIA H100 PCIe"), LocalGPU("GPU-3", "NVIDIA L4")]


def request(value: Any) -> Any:
    return gpu_request({"Devices": gpu_devices(gpu_options(value))})


def test_this_machines_gpus_are_handed_out_once() -> None:
    gpus = GPUs(BOX)
    assert [g.uuid for g in gpus.take("a", request("L4")) or ()] == ["GPU-1"]
    assert [g.uuid for g in gpus.take("b", request(["H100", "L4"])) or ()] == ["GPU-2"]
    assert gpus.take("c", request("L4:2")) is None
    assert gpus.give_back("a")
    assert not gpus.give_back("a")
    assert [g.uuid for g in gpus.take("c", request("L4:2")) or ()] == ["GPU-1", "GPU-3"]
    assert gpus.take("d", request("any")) is None


def test_what_this_machine_never_has_is_said() -> None:
    gpus = GPUs(BOX)
    assert gpus.impossible(request("L4:2")) == ""
    assert "NVIDIA H100 PCIe" in gpus.impossible(request("T4"))
    assert "no NVIDIA GPU" in GPUs([]).impossible(request("any"))
    with pytest.raises(EngineError, match="amd/gpu"):
        gpu_request({"Devices": [{"Name": "amd/gpu"}]})


@given(
    st.lists(st.tuples(st.sampled_from(["L4", "L4:2", "H100", "any", "any:3"]), st.booleans()), max_size=30)
)
def test_no_gpu_has_two_holders_and_none_is_lost(steps: list[tuple[str, bool]]) -> None:
    gpus = GPUs(BOX)
    held: dict[str, list[str]] = {}
    for number, (value, leave) in enumerate(steps):
        taken = gpus.take(f"h{number}", request(value))
        if taken is not None:
            held[f"h{number}"] = [g.uuid for g in taken]
        if leave and held:
            holder = next(iter(held))
            assert gpus.give_back(holder)
            del held[holder]
        everyone = [uuid for uuids in held.values() for uuid in uuids]
        assert len(everyone) == len(set(everyone))
    for holder in held:
        gpus.give_back(holder)
    assert len(gpus.take("all", request("any:3")) or ()) == 3
