"""The plugin's configuration: its schema for Nomad, and what was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Errors of the program that ran, not of the card, and notes: after these NVIDIA's catalogue has the program
# started anew, or nothing done. Among the notes are 63 and 92 (memory mended itself) and 154, which repeats
# what the driver is asked for at every look. Left out are 32, mostly of a bad PCIe link, and 94, after which
# the card is to be reset.
# fmt: off
APPLICATION_XIDS = (
    8, 11, 13, 25, 31, 37, 38, 39, 40, 41, 43, 44, 45, 60, 63, 66, 67, 68, 69, 70, 71, 72, 75, 76, 77, 80,
    82, 83, 84, 85, 86, 88, 89, 92, 93, *range(96, 110), 121, *range(126, 136), 137, 139, 141, 152, 153, 154,
    157, *range(160, 166),
)
# fmt: on
# As many clients as MPS takes on every generation of cards.
MOST_SLICES = 48
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class ConfigError(ValueError):
    """The configuration cannot be used; the text says which setting, and what will do."""


@dataclass(frozen=True)
class Share:
    """Which cards are cut into slices, and how.

    Attributes:
        gpu: a regular expression that the product name matches, or a card's id; empty for every card.
        slices: how many a card gives, or 0.
        slice_memory: MiB of each, or 0. A card gives as many as fit, at most 48.
    """

    gpu: str = ""
    slices: int = 0
    slice_memory: int = 0

    def covers(self, uuid: str, name: str) -> bool:
        """Tell whether a card is meant."""
        return not self.gpu or self.gpu == uuid or re.search(self.gpu, name) is not None


@dataclass(frozen=True)
class Config:
    """What the operator wrote, or the defaults.

    Attributes:
        enabled: offer anything at all.
        ignored_gpu_ids: cards and MIG instances left out.
        fingerprint_period: seconds between two looks; errors that the driver reports are seen at once.
        ignored_xids: errors that do not make a card unhealthy.
        max_ecc_errors: so many uncorrectable memory errors since the driver was loaded are borne.
        share: which cards are cut into slices; the first that covers a card counts.
        mig_as_slices: offer MIG instances as ``nvidia/gpu-slice``, not as ``nvidia/gpu``.
        mps_pipe_directory: where NVIDIA's MPS control daemon listens.
        require_mps: a slice without that daemon is unhealthy.
        fake: a file that plays the driver; empty for the driver itself.
    """

    enabled: bool = True
    ignored_gpu_ids: tuple[str, ...] = ()
    fingerprint_period: float = 15.0
    ignored_xids: frozenset[int] = frozenset(APPLICATION_XIDS)
    max_ecc_errors: int = 0
    share: tuple[Share, ...] = ()
    mig_as_slices: bool = False
    mps_pipe_directory: str = "/tmp/nvidia-mps"
    require_mps: bool = False
    fake: str = ""


def _attribute(name: str, kind: str, default: str) -> dict[str, Any]:
    primary = {"attr": {"name": name, "type": kind, "required": False}}
    return {"default": {"primary": primary, "default": {"literal": {"value": default}}}}


def schema() -> dict[str, Any]:
    """Return the ``Spec`` that Nomad checks the ``config`` block of the agent's configuration with."""
    share = {
        "gpu": _attribute("gpu", "string", '""'),
        "slices": _attribute("slices", "number", "0"),
        "slice_memory": _attribute("slice_memory", "number", "0"),
    }
    nested = {"object": {"attributes": share}}
    xids = ", ".join(map(str, APPLICATION_XIDS))
    return {
        "object": {
            "attributes": {
                "enabled": _attribute("enabled", "bool", "true"),
                "ignored_gpu_ids": _attribute("ignored_gpu_ids", "list(string)", "[]"),
                "fingerprint_period": _attribute("fingerprint_period", "string", '"15s"'),
                "ignored_xids": _attribute("ignored_xids", "list(number)", f"[{xids}]"),
                "max_ecc_errors": _attribute("max_ecc_errors", "number", "0"),
                "share": {"block_list": {"name": "share", "nested": nested}},
                "mig_as_slices": _attribute("mig_as_slices", "bool", "false"),
                "mps_pipe_directory": _attribute("mps_pipe_directory", "string", '"/tmp/nvidia-mps"'),
                "require_mps": _attribute("require_mps", "bool", "false"),
                "fake": _attribute("fake", "string", '""'),
            }
        }
    }


def read_config(values: Mapping[str, Any]) -> Config:
    """Read what Nomad decoded with the schema.

    Raises:
        ConfigError: a value cannot be used.

    Example:
        >>> read_config({"fingerprint_period": "1m", "share": [{"slices": 4}]}).share
        (Share(gpu='', slices=4, slice_memory=0),)
    """
    known = {name: value for name, value in values.items() if value is not None}
    for name in set(known) - set(Config.__dataclass_fields__):
        raise ConfigError(f"{name} is no setting of this plugin")
    if "fingerprint_period" in known:
        known["fingerprint_period"] = _duration("fingerprint_period", known["fingerprint_period"])
    if "ignored_gpu_ids" in known:
        known["ignored_gpu_ids"] = tuple(known["ignored_gpu_ids"])
    if "ignored_xids" in known:
        known["ignored_xids"] = frozenset(_whole("ignored_xids", xid) for xid in known["ignored_xids"])
    if "max_ecc_errors" in known:
        known["max_ecc_errors"] = _whole("max_ecc_errors", known["max_ecc_errors"])
    if "share" in known:
        known["share"] = tuple(_share(block) for block in known["share"])
    return Config(**known)


def _share(block: Mapping[str, Any]) -> Share:
    gpu = str(block.get("gpu") or "")
    slices = _whole("share.slices", block.get("slices") or 0)
    memory = _whole("share.slice_memory", block.get("slice_memory") or 0)
    if bool(slices) == bool(memory):
        raise ConfigError("a share block has either slices = 2 or more, or slice_memory in MiB")
    if slices and not 2 <= slices <= MOST_SLICES:
        raise ConfigError(f"share.slices = {slices}: a card has 2 to {MOST_SLICES} slices")
    try:
        re.compile(gpu)
    except re.error as error:
        raise ConfigError(f"share.gpu = {gpu!r} is no regular expression: {error}") from error
    return Share(gpu, slices, memory)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 0:
        raise ConfigError(f"{name} = {value!r}: a whole number from 0 is expected")
    return int(value)


def _duration(name: str, text: Any) -> float:
    parts = _DURATION.findall(str(text))
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds < 0.05:
        raise ConfigError(f'{name} = {text!r}: a time such as "15s" or "1m30s" is expected, at least "50ms"')
    return seconds
