"""What a device does now, under the names that HashiCorp's plugin shows it by."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from modal_nomad_gpu._cards import Usage
from modal_nomad_gpu._inventory import VENDOR, Device, Group

_SUMMARY = "Memory state"
# Name in Nomad, unit, words, and which numbers of `Usage` it shows (the second is what it is out of).
_STATS: tuple[tuple[str, str, str, str, str], ...] = (
    ("Power usage", "W", "Watts drawn, out of the card's limit", "power", "power_limit"),
    ("GPU utilization", "%", "Time in which at least one kernel ran", "gpu", ""),
    ("Memory utilization", "%", "Time in which memory was read or written", "memory_bandwidth", ""),
    ("Encoder utilization", "%", "Time in which the video encoder was busy", "encoder", ""),
    ("Decoder utilization", "%", "Time in which the video decoder was busy", "decoder", ""),
    ("Temperature", "C", "Temperature of the chip", "temperature", ""),
    (_SUMMARY, "MiB", "Memory in use, out of all", "memory_used", "memory_total"),
    ("BAR1 buffer state", "MiB", "Memory mapped for the host, out of what can be", "bar1_used", "bar1_total"),
    ("ECC L1 errors", "#", "Errors corrected in the L1 cache since the driver was loaded", "ecc_l1", ""),
    ("ECC L2 errors", "#", "Errors corrected in the L2 cache since the driver was loaded", "ecc_l2", ""),
    ("ECC memory errors", "#", "Errors corrected in memory since the driver was loaded", "ecc_memory", ""),
)


def device_stats(
    groups: Sequence[Group], usage: Mapping[str, Usage], now: float | None = None
) -> dict[str, Any]:
    """Return the statistics of all devices whose card or instance is known, as a ``StatsResponse``."""
    moment = time.time() if now is None else now
    seconds = int(moment)
    timestamp = {"seconds": seconds, "nanos": int((moment - seconds) * 1e9)}
    found = []
    for group in groups:
        instances = {
            device.id: {**_stats(device, usage[device.visible]), "timestamp": timestamp}
            for device in group.devices
            if device.visible in usage
        }
        if instances:
            entry = {"vendor": VENDOR, "type": group.type, "name": group.name, "instance_stats": instances}
            found.append(entry)
    return {"groups": found}


def _stats(device: Device, usage: Usage) -> dict[str, Any]:
    values = {}
    for name, unit, words, number, whole in _STATS:
        words = f"{words} (of the whole card, which slices share)" if device.memory else words
        value: dict[str, Any] = {"unit": unit, "desc": words}
        amount = getattr(usage, number)
        out_of = getattr(usage, whole) if whole else None
        if amount is None or (whole and out_of is None):
            value["string_val"] = {"value": "N/A"}
        else:
            value["int_numerator_val"] = {"value": int(amount)}
            if out_of is not None:
                value["int_denominator_val"] = {"value": int(out_of)}
        values[name] = value
    return {"summary": values[_SUMMARY], "stats": {"attributes": values}}
