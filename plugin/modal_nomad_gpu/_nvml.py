"""NVIDIA's driver through NVML."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modal_nomad_gpu._cards import BackendError, Card, Event, Instance, Survey, Usage

_MIB = 1 << 20
# MB/s of one lane, by generation, in the round numbers that HashiCorp's plugin counts with.
_LANE = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096, 6: 8192}
_RECOVERY = {
    1: "needs a reset",
    2: "needs a reboot of its node",
    3: "needs its peer-to-peer work drained",
    4: "needs to be drained and reset",
    5: "needs its IMEX domain to be recovered",
    6: "needs a reset of its bus",
    7: "needs a reboot of its node",
}
_WAIT_MS = 1000
_NO_INSTANCE = 0xFFFFFFFF


class Nvml:
    """The driver of this machine.

    It may be absent, or come and go: each look tries again.

    Args:
        library: NVIDIA's Python module for it, or one like it.
        max_ecc_errors: so many uncorrectable memory errors are borne.
    """

    def __init__(self, library: Any, max_ecc_errors: int = 0) -> None:
        self._lib = library
        self._max_ecc = max_ecc_errors
        self._lock = threading.RLock()
        self._ready = False
        self._events: Any = None
        self._listened: set[str] = set()
        self._instances: dict[tuple[str, int, int], str] = {}
        self._pause = threading.Event()

    # -- what a backend does

    def survey(self) -> Survey:
        try:
            with self._lock, self._asking():
                version = _text(self._lib.nvmlSystemGetDriverVersion())
                faults: dict[str, str] = {}
                cards = [self._card(handle, uuid, faults) for uuid, handle in self._handles()]
                self._listen(cards)
                return Survey(version, tuple(cards), faults)
        except BackendError:
            # Here alone: who looks is also who waits for events, so nobody waits in what is let go.
            with self._lock:
                self._forget()
            raise

    def events(self, seconds: float) -> Sequence[Event]:
        with self._lock:
            source = self._events
        if source is None:
            self._pause.wait(seconds)
            return []
        lib = self._lib
        left = seconds * 1000
        while left > 0:
            step = min(_WAIT_MS, int(left) or 1)
            try:
                data = lib.nvmlEventSetWait_v2(source, step)
            except lib.NVMLError as error:
                code = getattr(error, "value", None)
                if code == lib.NVML_ERROR_TIMEOUT:
                    left -= step
                    continue
                # A driver that has none sends none; nor does one that is gone, as the next look says.
                has_none = code in (lib.NVML_ERROR_NOT_SUPPORTED, lib.NVML_ERROR_FUNCTION_NOT_FOUND)
                self._pause.wait((left if has_none else step) / 1000)
                return []
            return self._event(data)
        return []

    def usage(self) -> Mapping[str, Usage]:
        with self._lock, self._asking():
            found: dict[str, Usage] = {}
            for uuid, handle in self._handles():
                found[uuid] = self._used(handle)
                for part in self._mig_handles(handle) or ():
                    name, memory = self._try(self._lib.nvmlDeviceGetUUID, part), self._memory(part)
                    if name is not None and memory is not None:
                        found[_text(name)] = Usage(memory_used=memory[1], memory_total=memory[0])
            return found

    def mps_ready(self, pipe_directory: str) -> bool:
        return os.path.exists(os.path.join(pipe_directory, "control"))

    # -- the library

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        lib = self._lib
        try:
            if not self._ready:
                lib.nvmlInit()
                self._ready = True
            yield
        except lib.NVMLError as error:
            raise BackendError(str(error)) from error

    def _forget(self) -> None:
        # A driver that was loaded anew answers only who has asked it anew.
        if self._ready:
            with contextlib.suppress(self._lib.NVMLError):
                self._lib.nvmlShutdown()
        self._ready, self._events = False, None
        self._listened.clear()

    def _try(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """Ask for what not every card, driver or state has; None for no answer."""
        try:
            return ask(*arguments)
        except (self._lib.NVMLError, AttributeError):
            return None

    def _handles(self) -> Iterator[tuple[str, Any]]:
        lib = self._lib
        for index in range(lib.nvmlDeviceGetCount()):
            try:
                handle = lib.nvmlDeviceGetHandleByIndex(index)
                yield _text(lib.nvmlDeviceGetUUID(handle)), handle
            except lib.NVMLError:
                # One card that does not answer hides no other; whoever knew it sees it missing.
                continue

    def _mig_handles(self, handle: Any) -> list[Any] | None:
        lib = self._lib
        mode = self._try(lib.nvmlDeviceGetMigMode, handle)
        if mode is None or mode[0] != lib.NVML_DEVICE_MIG_ENABLE:
            return None
        count = self._try(lib.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        parts = [self._try(lib.nvmlDeviceGetMigDeviceHandleByIndex, handle, n) for n in range(count)]
        return [part for part in parts if part is not None]

    def _memory(self, handle: Any) -> tuple[int, int] | None:
        """Return how many MiB there are and how many are used; None where that cannot be read."""
        lib = self._lib
        try:
            memory = lib.nvmlDeviceGetMemoryInfo(handle)
        except lib.NVMLError as error:
            if getattr(error, "value", None) != lib.NVML_ERROR_NOT_SUPPORTED:
                return None
            # On one chip with the processors: what they have together is the machine's.
            page = os.sysconf("SC_PAGE_SIZE")
            total, free = (os.sysconf(name) * page // _MIB for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
            return total, total - free
        return memory.total // _MIB, memory.used // _MIB

    def _card(self, handle: Any, uuid: str, faults: dict[str, str]) -> Card:
        lib = self._lib
        memory = self._memory(handle)
        power = self._try(lib.nvmlDeviceGetPowerManagementLimit, handle)
        bar1 = self._try(lib.nvmlDeviceGetBAR1MemoryInfo, handle)
        pci = self._try(lib.nvmlDeviceGetPciInfo, handle)
        width = self._try(lib.nvmlDeviceGetMaxPcieLinkWidth, handle)
        generation = self._try(lib.nvmlDeviceGetMaxPcieLinkGeneration, handle)
        parts = self._mig_handles(handle)
        fault = self._fault(handle)
        if memory is None:
            fault = fault or "does not answer: its memory cannot be read"
        if fault:
            faults[uuid] = fault
        return Card(
            uuid=uuid,
            name=_text(self._try(lib.nvmlDeviceGetName, handle) or "N/A"),
            memory=memory[0] if memory else 0,
            power=None if power is None else power // 1000,
            bar1=None if bar1 is None else bar1.bar1Total // _MIB,
            cores_clock=self._try(lib.nvmlDeviceGetMaxClockInfo, handle, lib.NVML_CLOCK_GRAPHICS),
            memory_clock=self._try(lib.nvmlDeviceGetMaxClockInfo, handle, lib.NVML_CLOCK_MEM),
            pci_bandwidth=width * _LANE.get(generation, 0) if width and generation else None,
            display_state=_enabled(self._try(lib.nvmlDeviceGetDisplayMode, handle)),
            persistence_mode=_enabled(self._try(lib.nvmlDeviceGetPersistenceMode, handle)),
            pci_bus_id="" if pci is None else _text(pci.busId),
            mig=None if parts is None else tuple(self._known(uuid, parts)),
        )

    def _known(self, card: str, handles: Sequence[Any]) -> Iterator[Instance]:
        for handle in handles:
            uuid = self._try(self._lib.nvmlDeviceGetUUID, handle)
            # One that was removed in this moment hides nothing else.
            if uuid is not None:
                yield self._instance(card, _text(uuid), handle)

    def _instance(self, card: str, uuid: str, handle: Any) -> Instance:
        lib = self._lib
        memory = self._memory(handle)
        attributes = self._try(lib.nvmlDeviceGetAttributes_v2, handle)
        # The instance's own name ends in its profile: "NVIDIA A100-SXM4-40GB MIG 1g.5gb".
        name = _text(self._try(lib.nvmlDeviceGetName, handle) or "")
        profile = name.partition(" MIG ")[2]
        if not profile and attributes is not None:
            size = round(attributes.memorySizeMB / 1024)
            profile = f"{attributes.gpuInstanceSliceCount}g.{size}gb"
        gpu_instance = self._try(lib.nvmlDeviceGetGpuInstanceId, handle) or 0
        compute_instance = self._try(lib.nvmlDeviceGetComputeInstanceId, handle) or 0
        self._instances[card, gpu_instance, compute_instance] = uuid
        return Instance(
            uuid, profile or "unknown", memory[0] if memory else 0, gpu_instance, compute_instance
        )

    # -- health

    def _fault(self, handle: Any) -> str:
        lib = self._lib
        try:
            lib.nvmlDeviceGetUtilizationRates(handle)
        except lib.NVMLError as error:
            if getattr(error, "value", None) in (lib.NVML_ERROR_GPU_IS_LOST, lib.NVML_ERROR_RESET_REQUIRED):
                return f"fell off the bus or needs a reset: {error}"
        action = self._recovery_action(handle)
        if action:
            return f"the driver says that it {_RECOVERY.get(action, 'needs to be recovered')}"
        errors = self._try(
            lib.nvmlDeviceGetTotalEccErrors,
            handle,
            lib.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            lib.NVML_VOLATILE_ECC,
        )
        if errors is not None and errors > self._max_ecc:
            return f"{errors} uncorrectable memory errors (ECC) since the driver was loaded"
        rows = self._try(lib.nvmlDeviceGetRemappedRows, handle)
        if rows is not None and rows[3]:
            return "a broken memory row could not be replaced: the card is to be exchanged"
        return ""

    def _recovery_action(self, handle: Any) -> int:
        lib = self._lib
        number = getattr(lib, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", None)
        values = None if number is None else self._try(lib.nvmlDeviceGetFieldValues, handle, [number])
        if not values or values[0].nvmlReturn != 0:
            return 0
        return int(values[0].value.uiVal)

    def _listen(self, cards: Sequence[Card]) -> None:
        lib = self._lib
        new = [card.uuid for card in cards if card.uuid not in self._listened]
        if not new:
            return
        if self._events is None:
            self._events = self._try(lib.nvmlEventSetCreate)
            if self._events is None:
                return
        wanted = lib.nvmlEventTypeXidCriticalError | lib.nvmlEventTypeDoubleBitEccError
        for uuid in new:
            handle = self._try(lib.nvmlDeviceGetHandleByUUID, uuid)
            if handle is None:
                continue
            supported = self._try(lib.nvmlDeviceGetSupportedEventTypes, handle) or 0
            if wanted & supported:
                self._try(lib.nvmlDeviceRegisterEvents, handle, wanted & supported, self._events)
            self._listened.add(uuid)

    def _event(self, data: Any) -> list[Event]:
        lib = self._lib
        uuid = self._try(lib.nvmlDeviceGetUUID, data.device)
        # A card that cannot even say its name any more: the error counts for all that are listened to.
        uuids = sorted(self._listened) if uuid is None else [_text(uuid)]
        if data.eventType == lib.nvmlEventTypeDoubleBitEccError:
            return [Event(uuid, 48) for uuid in uuids]
        named = (data.gpuInstanceId, data.computeInstanceId)
        if uuid is not None and _NO_INSTANCE not in named:
            uuids = [self._instances.get((uuids[0], *named), uuids[0])]
        return [Event(uuid, int(data.eventData)) for uuid in uuids]

    # -- use

    def _used(self, handle: Any) -> Usage:
        lib = self._lib
        memory = self._memory(handle)
        bar1 = self._try(lib.nvmlDeviceGetBAR1MemoryInfo, handle)
        rates = self._try(lib.nvmlDeviceGetUtilizationRates, handle)
        power = self._try(lib.nvmlDeviceGetPowerUsage, handle)
        limit = self._try(lib.nvmlDeviceGetPowerManagementLimit, handle)
        encoder = self._try(lib.nvmlDeviceGetEncoderUtilization, handle)
        decoder = self._try(lib.nvmlDeviceGetDecoderUtilization, handle)
        ecc = self._try(
            lib.nvmlDeviceGetDetailedEccErrors,
            handle,
            lib.NVML_MEMORY_ERROR_TYPE_CORRECTED,
            lib.NVML_VOLATILE_ECC,
        )
        return Usage(
            power=None if power is None else power // 1000,
            power_limit=None if limit is None else limit // 1000,
            gpu=None if rates is None else rates.gpu,
            memory_bandwidth=None if rates is None else rates.memory,
            encoder=None if encoder is None else encoder[0],
            decoder=None if decoder is None else decoder[0],
            temperature=self._try(lib.nvmlDeviceGetTemperature, handle, lib.NVML_TEMPERATURE_GPU),
            memory_used=None if memory is None else memory[1],
            memory_total=None if memory is None else memory[0],
            bar1_used=None if bar1 is None else bar1.bar1Used // _MIB,
            bar1_total=None if bar1 is None else bar1.bar1Total // _MIB,
            ecc_l1=None if ecc is None else ecc.l1Cache,
            ecc_l2=None if ecc is None else ecc.l2Cache,
            ecc_memory=None if ecc is None else ecc.deviceMemory,
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _enabled(value: Any) -> str:
    return "Enabled" if value else "Disabled"
