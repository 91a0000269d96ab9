"""NVIDIA's driver, played: what is asked of it, and what becomes of its answers and its silence."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from modal_nomad_gpu._cards import BackendError, Event
from modal_nomad_gpu._nvml import Nvml

MIB = 1 << 20


class Driver:
    """Answers as the library would; what is not said here is not supported."""

    def __init__(self, **cards: dict[str, Any]) -> None:
        self.cards = cards
        self.loaded = True
        self.began = 0
        self.registered: list[str] = []
        self.pending: list[Any] = []
        self.news = threading.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(pynvml, name)
        if not name.startswith("nvmlDevice"):
            return found

        def ask(handle: Any, *arguments: Any) -> Any:
            if handle.get("lost"):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            answer = handle.get(name.removeprefix("nvmlDevice"))
            if answer is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return answer(*arguments) if callable(answer) else answer

        return ask

    def nvmlInit(self) -> None:
        if not self.loaded:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.began += 1

    def nvmlShutdown(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> bytes:
        if not self.loaded:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        return b"550.54"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return list(self.cards.values())[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return next(card for card in self.cards.values() if card["GetUUID"] == uuid)

    def nvmlEventSetCreate(self) -> Any:
        return object()

    def nvmlDeviceRegisterEvents(self, handle: Any, types: int, source: Any) -> None:
        self.registered.append(handle["GetUUID"])

    def nvmlEventSetWait_v2(self, source: Any, milliseconds: int) -> Any:
        if self.pending:
            return self.pending.pop()
        raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)


def card(uuid: str, **more: Any) -> dict[str, Any]:
    return {
        "GetUUID": uuid,
        "GetName": "NVIDIA A100-SXM4-80GB",
        "GetMemoryInfo": SimpleNamespace(total=81920 * MIB, used=1024 * MIB),
        "GetBAR1MemoryInfo": SimpleNamespace(bar1Total=131072 * MIB, bar1Used=5 * MIB),
        "GetPowerManagementLimit": 400_000,
        "GetPowerUsage": 61_500,
        "GetPciInfo": SimpleNamespace(busId=b"00000000:3B:00.0"),
        "GetMaxPcieLinkWidth": 16,
        "GetMaxPcieLinkGeneration": 4,
        "GetMaxClockInfo": lambda kind: 1410 if kind == pynvml.NVML_CLOCK_GRAPHICS else 1593,
        "GetDisplayMode": 0,
        "GetPersistenceMode": 1,
        "GetUtilizationRates": SimpleNamespace(gpu=40, memory=30),
        "GetTemperature": 50,
        "GetSupportedEventTypes": 0xFFFF,
        **more,
    }


def event(handle: dict[str, Any], xid: int, instance: tuple[int, int] = (0xFFFFFFFF, 0xFFFFFFFF)) -> Any:
    return SimpleNamespace(
        device=handle,
        eventType=pynvml.nvmlEventTypeXidCriticalError,
        eventData=xid,
        gpuInstanceId=instance[0],
        computeInstanceId=instance[1],
    )


def test_a_card_is_read() -> None:
    survey = Nvml(Driver(a=card("GPU-a"))).survey()
    (found,) = survey.cards
    assert survey.driver_version == "550.54" and survey.faults == {}
    assert (found.uuid, found.name, found.memory) == ("GPU-a", "NVIDIA A100-SXM4-80GB", 81920)
    assert (found.power, found.bar1, found.pci_bandwidth) == (400, 131072, 32768)
    assert (found.cores_clock, found.memory_clock) == (1410, 1593)
    assert (found.display_state, found.persistence_mode) == ("Disabled", "Enabled")
    assert (found.pci_bus_id, found.mig) == ("00000000:3B:00.0", None)


def test_a_card_that_says_little_is_read_too() -> None:
    survey = Nvml(
        Driver(a={"GetUUID": "GPU-a", "GetMemoryInfo": SimpleNamespace(total=MIB, used=0)})
    ).survey()
    (found,) = survey.cards
    assert (found.name, found.memory, found.power, found.bar1) == ("N/A", 1, None, None)
    assert survey.faults == {}


def test_mig_instances_are_read() -> None:
    memory = SimpleNamespace(total=9728 * MIB, used=12 * MIB)
    named = {
        "GetUUID": "MIG-1",
        "GetName": "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "GetMemoryInfo": memory,
        "GetGpuInstanceId": 7,
        "GetComputeInstanceId": 0,
    }
    attributes = SimpleNamespace(memorySizeMB=9728, gpuInstanceSliceCount=1)
    unnamed = {"GetUUID": "MIG-2", "GetMemoryInfo": memory, "GetAttributes_v2": attributes}
    parts = [named, unnamed]

    def instance(number: int) -> Any:
        if number >= len(parts):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return parts[number]

    whole = card("GPU-a", GetMigMode=[1, 1], GetMaxMigDeviceCount=7, GetMigDeviceHandleByIndex=instance)
    driver = Driver(a=whole)
    backend = Nvml(driver)
    (found,) = backend.survey().cards
    assert found.mig is not None
    assert [(x.uuid, x.profile, x.memory) for x in found.mig] == [
        ("MIG-1", "1g.10gb", 9728),
        ("MIG-2", "1g.10gb", 9728),
    ]
    assert backend.usage()["MIG-1"].memory_used == 12
    driver.pending.append(event(whole, 94, (7, 0)))
    assert backend.events(1) == [Event("MIG-1", 94)]
    driver.pending.append(event(whole, 79))
    assert backend.events(1) == [Event("GPU-a", 79)]


def test_an_instance_that_is_removed_in_this_moment_hides_nothing() -> None:
    """Who answers to a handle is gone before its name is asked for."""
    memory = SimpleNamespace(total=9728 * MIB, used=12 * MIB)
    parts = [{"GetMemoryInfo": memory}, {"GetUUID": "MIG-2", "GetMemoryInfo": memory}]
    whole = card(
        "GPU-a", GetMigMode=[1, 1], GetMaxMigDeviceCount=2, GetMigDeviceHandleByIndex=parts.__getitem__
    )
    backend = Nvml(Driver(a=whole, b=card("GPU-b")))
    survey = backend.survey()
    assert survey.faults == {} and len(survey.cards) == 2
    assert [x.uuid for x in survey.cards[0].mig or ()] == ["MIG-2"]
    assert set(backend.usage()) == {"GPU-a", "MIG-2", "GPU-b"}


def test_what_shares_the_machines_memory_has_it_all() -> None:
    """As GB10 and Thor, of whose memory the driver says that the question is not supported."""
    backend = Nvml(Driver(a=card("GPU-a", GetMemoryInfo=None)))
    survey = backend.survey()
    assert survey.faults == {}
    assert survey.cards[0].memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    used = backend.usage()["GPU-a"]
    assert used.memory_total == survey.cards[0].memory
    assert used.memory_used is not None and 0 < used.memory_used < used.memory_total


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND])
def test_a_driver_without_events_is_not_looked_at_more_often(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(a=card("GPU-a"))
    backend = Nvml(driver)
    backend.survey()

    def none(source: Any, milliseconds: int) -> Any:
        raise pynvml.NVMLError(code)

    driver.nvmlEventSetWait_v2 = none  # type: ignore[method-assign]
    waited: list[float] = []
    monkeypatch.setattr(backend, "_pause", SimpleNamespace(wait=waited.append))
    assert backend.events(15) == [] and waited == [15]


def test_errors_are_told_with_their_card() -> None:
    driver = Driver(a=card("GPU-a"), b=card("GPU-b"))
    backend = Nvml(driver)
    backend.survey()
    backend.survey()
    assert driver.registered == ["GPU-a", "GPU-b"]
    assert backend.events(0.001) == []
    driver.pending.append(event(driver.cards["b"], 48))
    assert backend.events(1) == [Event("GPU-b", 48)]
    # Who it is can no longer be asked: better all than none.
    driver.pending.append(event({"lost": True}, 79))
    assert backend.events(1) == [Event("GPU-a", 79), Event("GPU-b", 79)]


def unknown() -> None:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"GetTotalEccErrors": 3}, "3 uncorrectable memory errors"),
        ({"GetRemappedRows": (0, 1, 0, 1)}, "could not be replaced"),
        (
            {"GetFieldValues": [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=1))]},
            "the driver says that it needs a reset",
        ),
        (
            {"GetFieldValues": [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=3))]},
            "the driver says that it needs its peer-to-peer work drained",
        ),
        ({"GetMemoryInfo": unknown}, "memory cannot be read"),
    ],
)
def test_what_the_driver_knows_is_wrong(more: dict[str, Any], words: str) -> None:
    survey = Nvml(Driver(a=card("GPU-a", **more), b=card("GPU-b"))).survey()
    assert words in survey.faults["GPU-a"]
    assert set(survey.faults) == {"GPU-a"}


def test_errors_may_be_borne() -> None:
    assert Nvml(Driver(a=card("GPU-a", GetTotalEccErrors=3)), 3).survey().faults == {}


def test_a_card_that_is_lost_hides_no_other() -> None:
    driver = Driver(a=card("GPU-a"), b=card("GPU-b"))
    backend = Nvml(driver)
    assert len(backend.survey().cards) == 2
    driver.cards["a"]["lost"] = True
    assert [found.uuid for found in backend.survey().cards] == ["GPU-b"]
    assert set(backend.usage()) == {"GPU-b"}

    def lost() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    driver.cards["b"]["GetUtilizationRates"] = lost
    assert "fell off the bus" in backend.survey().faults["GPU-b"]


def test_a_driver_may_come_and_go() -> None:
    driver = Driver(a=card("GPU-a"))
    driver.loaded = False
    backend = Nvml(driver)
    with pytest.raises(BackendError, match="Not Found"):
        backend.survey()
    assert backend.events(0.001) == []
    driver.loaded = True
    assert len(backend.survey().cards) == 1
    driver.loaded = False
    with pytest.raises(BackendError, match="Uninitialized"):
        backend.survey()
    driver.loaded = True
    assert len(backend.survey().cards) == 1
    # Events are listened to anew, for those of the driver before are gone.
    assert driver.registered == ["GPU-a", "GPU-a"]


def test_use_is_read() -> None:
    ecc = SimpleNamespace(l1Cache=1, l2Cache=2, deviceMemory=3)
    driver = Driver(a=card("GPU-a", GetDetailedEccErrors=ecc, GetEncoderUtilization=(4, 100)))
    used = Nvml(driver).usage()["GPU-a"]
    assert (used.power, used.power_limit, used.gpu, used.memory_bandwidth) == (61, 400, 40, 30)
    assert (used.memory_used, used.memory_total, used.bar1_used, used.bar1_total) == (1024, 81920, 5, 131072)
    assert (used.ecc_l1, used.ecc_l2, used.ecc_memory) == (1, 2, 3)
    assert (used.encoder, used.decoder, used.temperature) == (4, None, 50)


def test_a_machine_without_a_driver_says_so() -> None:
    """The real library, which on most machines that run tests finds no driver."""
    backend = Nvml(pynvml)
    try:
        survey = backend.survey()
    except BackendError as error:
        assert str(error)
    else:
        assert all(found.uuid.startswith("GPU-") for found in survey.cards)
