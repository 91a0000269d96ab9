"""A Function's GPUs as a ``device`` block: constraints for what will do, affinities for what is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modal_nomad.wire.gpus import model_pattern
from modal_nomad.wire.spec import GPUOption

DEVICE = "nvidia/gpu"
_MODEL = "${device.model}"
_STRONGEST = 100


def gpu_devices(options: Sequence[GPUOption]) -> list[dict[str, Any]]:
    """Return the task's ``Devices``: one block for all kinds that will do, none for no kinds."""
    if not options:
        return []
    block: dict[str, Any] = {"Name": DEVICE, "Count": options[0].count}
    named = [option for option in options if option.model]
    if len(named) == len(options):
        pattern = "|".join(model_pattern(option.model) for option in named)
        block["Constraints"] = [{"LTarget": _MODEL, "Operand": "regexp", "RTarget": pattern}]
    preferred = [model_pattern(option.model) for option in named]
    if len(options) == 1:
        # Of two sizes of one model the smaller is left to those who need no more.
        preferred = [model_pattern("A100-40GB")] if options[0].model == "A100" else []
    affinities = [
        {
            "LTarget": _MODEL,
            "Operand": "regexp",
            "RTarget": pattern,
            "Weight": max(1, _STRONGEST - position * _STRONGEST // len(preferred)),
        }
        for position, pattern in enumerate(preferred)
    ]
    if affinities:
        block["Affinities"] = affinities
    return [block]
