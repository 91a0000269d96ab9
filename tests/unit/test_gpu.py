"""GPU requests: what users write, the device block it becomes, and this machine's own GPUs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad import gpu
from modal_nomad.engines._local_gpus import GPUs, LocalGPU, gpu_environment, gpu_request
from modal_nomad.engines.base import EngineError
from modal_nomad.exception import InvalidError
from modal_nomad.gpu import gpu_options
from modal_nomad.render.devices import gpu_devices, gpu_words
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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("A100:0.25", [("A100", 0.25, 0)]),
        ("any:.5", [("", 0.5, 0)]),
        (["H100:0.5", "A100-80GB:0.5"], [("H100", 0.5, 0), ("A100-80GB", 0.5, 0)]),
        (gpu.Shared("a100", memory=10_000), [("A100", 0.0, 10_000)]),
        (gpu.Shared("any", share=0.1), [("", 0.1, 0)]),
    ],
)
def test_every_form_of_a_slice_is_read(value: Any, expected: list[tuple[str, float, int]]) -> None:
    options = gpu_options(value)
    assert [(option.model, option.share, option.memory) for option in options] == expected
    assert {option.count for option in options} == {1}
    spec = FunctionSpec(app="a", name="f", gpu=options)
    assert FunctionSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gpu_options("A100:1.0"), "from 0.01 to below 1"),
        (lambda: gpu_options("A100:0.0"), "from 0.01 to below 1"),
        (lambda: gpu_options("A100:1.5"), "from 0.01 to below 1"),
        (lambda: gpu_options("A1000:0.5"), "did you mean A100"),
        (lambda: gpu_options(["A100:0.5", "H100"]), "different parts of a card"),
        (lambda: gpu_options(["A100:0.5", gpu.Shared("H100", memory=8000)]), "different parts"),
        (lambda: gpu.Shared("A100"), "memory= in MiB or share="),
        (lambda: gpu.Shared("A100", memory=1, share=0.5), "one of them"),
        (lambda: gpu.Shared("A100", memory=0.5), "whole number of MiB"),  # type: ignore[arg-type]
        (lambda: gpu.Shared("A100", memory=0), "whole number of MiB"),
        (lambda: gpu.Shared("A100", share=1), "below 1"),
        (lambda: gpu.Shared("B20", share=0.5), "did you mean B200"),
        (lambda: gpu.Shared(100, share=0.5), "no name of a GPU"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_slice_is_refused_with_the_remedy(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidError, match=re.escape(words)):
        make()


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
        "Constraints": [{"LTarget": "${device.model}", "Operand": "regexp", "RTarget": r"\bH100\b[^.]*$"}],
    }
    assert gpu_devices(()) == []
    whole = {"LTarget": "${device.model}", "Operand": "regexp", "RTarget": "^[^.]*$"}
    assert gpu_devices(gpu_options("any")) == [{"Name": "nvidia/gpu", "Count": 1, "Constraints": [whole]}]


def test_a_whole_card_is_no_part_of_one() -> None:
    """However a plugin names MIG instances: HashiCorp's and ours offer them as ``nvidia/gpu`` too."""
    for wanted in ("A100", "A100-80GB", "any", ["H100", "A100"], ["H100", "any"]):
        (block,) = gpu_devices(gpu_options(wanted))
        assert block["Name"] == "nvidia/gpu"
        (constraint,) = block["Constraints"]
        for name in PRODUCTS["A100-80GB"]:
            assert re.search(constraint["RTarget"], name)
            for profile in ("1g.10gb", "1g.10gb+me", "1c.3g.40gb"):
                assert not re.search(constraint["RTarget"], f"{name} MIG {profile}")


def test_a_slice_is_a_device_of_another_type_and_never_two_of_it() -> None:
    (block,) = gpu_devices(gpu_options("A100:0.25"))
    assert (block["Name"], block["Count"]) == ("nvidia/gpu-slice", 1)
    assert block["Constraints"] == [
        {"LTarget": "${device.model}", "Operand": "regexp", "RTarget": r"\bA100\b"},
        {"LTarget": "${device.attr.share}", "Operand": ">=", "RTarget": "0.25"},
    ]
    # The smaller card first, then the slice that wastes least.
    assert [(a["RTarget"], a["Weight"]) for a in block["Affinities"]] == [
        (r"\bA100.*40GB\b", 100),
        ("0.375", 5),
    ]
    (block,) = gpu_devices(gpu_options(gpu.Shared("any", memory=10_000)))
    assert block["Constraints"] == [
        {"LTarget": "${device.attr.memory}", "Operand": ">=", "RTarget": "10000 MiB"}
    ]
    assert [(a["Operand"], a["RTarget"]) for a in block["Affinities"]] == [("<=", "15000 MiB")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("H100", "1 × H100"),
        ("H100:2", "2 × H100"),
        (["H100", "any"], "1 × H100 or any GPU"),
        ("A100:0.25", "0.25 of A100"),
        (gpu.Shared("any", memory=10_000), "10,000 MiB of any GPU"),
        (None, ""),
    ],
)
def test_a_request_is_said_in_words(value: Any, words: str) -> None:
    assert gpu_words(gpu_options(value)) == words


def test_a_list_is_one_constraint_and_descending_affinities() -> None:
    (block,) = gpu_devices(gpu_options(["H100", "A100-80GB", "L4"]))
    (constraint,) = block["Constraints"]
    assert constraint["RTarget"] == r"(?:\bH100\b|\bA100.*80GB\b|\bL4\b)[^.]*$"
    assert [(a["RTarget"], a["Weight"]) for a in block["Affinities"]] == [
        (r"\bH100\b", 100),
        (r"\bA100.*80GB\b", 67),
        (r"\bL4\b", 34),
    ]


def test_any_in_a_list_lifts_the_constraint_and_keeps_the_preference() -> None:
    (block,) = gpu_devices(gpu_options(["H100", "any"]))
    assert [c["RTarget"] for c in block["Constraints"]] == ["^[^.]*$"]
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
    assert [g.gpu.uuid for g in gpus.take("a", request("L4")) or ()] == ["GPU-1"]
    assert [g.gpu.uuid for g in gpus.take("b", request(["H100", "L4"])) or ()] == ["GPU-2"]
    assert gpus.take("c", request("L4:2")) is None
    assert gpus.give_back("a")
    assert not gpus.give_back("a")
    assert [g.gpu.uuid for g in gpus.take("c", request("L4:2")) or ()] == ["GPU-1", "GPU-3"]
    assert gpus.take("d", request("any")) is None


def test_what_this_machine_never_has_is_said() -> None:
    gpus = GPUs(BOX)
    assert gpus.impossible(request("L4:2")) == ""
    assert "NVIDIA H100 PCIe" in gpus.impossible(request("T4"))
    assert "no NVIDIA GPU" in GPUs([]).impossible(request("any"))
    with pytest.raises(EngineError, match="amd/gpu"):
        gpu_request({"Devices": [{"Name": "amd/gpu"}]})


CARDS = [LocalGPU("GPU-1", "NVIDIA L4", 24000), LocalGPU("GPU-2", "NVIDIA L4", 24000)]


def test_parts_of_a_card_share_it_and_leave_others_whole() -> None:
    gpus = GPUs(CARDS)
    quarter = request("L4:0.25")
    for holder in "abcd":
        (grant,) = gpus.take(holder, quarter) or ()
        assert (grant.gpu.uuid, grant.part) == ("GPU-1", 0.25)
    assert gpus.take("two", request("L4:2")) is None
    (whole,) = gpus.take("whole", request("L4")) or ()
    assert whole.gpu.uuid == "GPU-2"
    assert gpus.take("e", quarter) is None
    gpus.give_back("b")
    assert gpus.take("f", request("any:0.5")) is None
    assert gpus.take("e", quarter) is not None


def test_a_part_by_memory_needs_a_card_that_says_its_own() -> None:
    gpus = GPUs([*CARDS, LocalGPU("GPU-3", "NVIDIA T4")])
    (grant,) = gpus.take("a", request(gpu.Shared("L4", memory=6000))) or ()
    assert grant.part == 0.25
    assert gpus.impossible(request(gpu.Shared("L4", memory=24001)))
    assert gpus.impossible(request(gpu.Shared("T4", memory=1)))
    assert gpu_environment([grant]) == {
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "NVIDIA_VISIBLE_DEVICES": "GPU-1",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=6000M",
    }
    whole = gpus.take("b", request("T4"))
    assert set(gpu_environment(whole or ())) == {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
    assert gpu_environment(()) == {}


@given(
    st.lists(st.tuples(st.sampled_from(["L4", "L4:2", "H100", "any", "any:3"]), st.booleans()), max_size=30)
)
def test_no_gpu_has_two_holders_and_none_is_lost(steps: list[tuple[str, bool]]) -> None:
    gpus = GPUs(BOX)
    held: dict[str, list[str]] = {}
    for number, (value, leave) in enumerate(steps):
        taken = gpus.take(f"h{number}", request(value))
        if taken is not None:
            held[f"h{number}"] = [g.gpu.uuid for g in taken]
        if leave and held:
            holder = next(iter(held))
            assert gpus.give_back(holder)
            del held[holder]
        everyone = [uuid for uuids in held.values() for uuid in uuids]
        assert len(everyone) == len(set(everyone))
    for holder in held:
        gpus.give_back(holder)
    assert len(gpus.take("all", request("any:3")) or ()) == 3
