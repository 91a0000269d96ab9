"""The program, NVIDIA's own Python module, and a library that plays the driver's, compiled here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.plugin._plugin_client import LIMIT, Client, plugin

L4 = "gpu/NVIDIA L4"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has the library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to make a library that plays NVIDIA's driver")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("_driver.c")
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True, timeout=LIMIT)
    return folder


def say(path: Path, words: str) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(words)
    os.replace(draft, path)


def faults(groups: dict[str, Any]) -> dict[str, str]:
    return {d["ID"]: d["health_description"] for d in groups[L4]["devices"]}


def configure(nomad: Client, **values: Any) -> None:
    nomad.configure(fingerprint_period="200ms", **values)


def test_cards_are_read_and_reserved(library: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    say(state, "well")
    with plugin(LD_LIBRARY_PATH=str(library), FAKE_DRIVER=str(state)) as nomad:
        configure(nomad)
        group = next(nomad.fingerprints())[L4]
        assert faults({L4: group}) == {"GPU-one": "", "GPU-two": ""}
        attributes = {name: value.get("int_val") for name, value in group["attributes"].items()}
        assert attributes == {
            "memory": 23034,
            "power": 72,
            "cores_clock": 2040,
            "memory_clock": 6251,
            "healthy": 2,
            "driver_version": None,
            "display_state": None,
            "persistence_mode": None,
        }
        assert group["attributes"]["driver_version"]["string_val"] == "999.1"
        assert group["attributes"]["persistence_mode"]["string_val"] == "Enabled"
        assert nomad.reserve("GPU-two")["envs"]["CUDA_VISIBLE_DEVICES"] == "GPU-two"
        (stats,) = next(nomad.stats(30))["groups"]
        values = stats["instance_stats"]["GPU-one"]["stats"]["attributes"]
        assert values["Memory state"]["int_numerator_val"] == {"value": 512}
        assert values["Memory state"]["int_denominator_val"] == {"value": 23034}
        assert values["Temperature"]["int_numerator_val"] == {"value": 41}


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("xid 79", "XID 79: fell off the bus"),
        ("ecc 3", "3 uncorrectable memory errors (ECC) since the driver was loaded"),
        ("reset", "the driver says that it needs a reset"),
        ("lost", "fell off the bus: the driver lists it no more"),
    ],
)
def test_what_goes_wrong_with_a_card_is_seen(words: str, fault: str, library: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    say(state, "well")
    with plugin(LD_LIBRARY_PATH=str(library), FAKE_DRIVER=str(state)) as nomad:
        configure(nomad)
        told = nomad.fingerprints()
        next(told)
        say(state, words)
        assert faults(next(told)) == {"GPU-one": "", "GPU-two": fault}


def test_a_driver_that_is_loaded_anew_is_asked_and_listened_to_anew(library: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    say(state, "gone")
    with plugin(LD_LIBRARY_PATH=str(library), FAKE_DRIVER=str(state)) as nomad:
        configure(nomad)
        told = nomad.fingerprints()
        assert next(told) == {}
        say(state, "well")
        assert faults(next(told)) == {"GPU-one": "", "GPU-two": ""}
        say(state, "gone")
        assert all("does not answer" in fault for fault in faults(next(told)).values())
        say(state, "well")
        assert faults(next(told)) == {"GPU-one": "", "GPU-two": ""}
        say(state, "xid 48")
        assert faults(next(told)) == {"GPU-one": "", "GPU-two": "XID 48: double-bit ECC error"}


def test_an_error_of_a_program_is_no_fault_of_the_card(library: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    say(state, "well")
    with plugin(LD_LIBRARY_PATH=str(library), FAKE_DRIVER=str(state)) as nomad:
        configure(nomad)
        told = nomad.fingerprints()
        next(told)
        say(state, "xid 13")
        assert nomad.process.stderr is not None
        while "XID 13, an error of its program" not in nomad.process.stderr.readline():
            pass
        say(state, "xid 95")
        # The first that is told after that: the other was none.
        assert faults(next(told))["GPU-two"].startswith("XID 95")
