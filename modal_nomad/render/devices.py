"""A Function's GPUs as a ``device`` block: constraints for what will do, affinities for what is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modal_nomad.wire.gpus import SLICE, WHOLE, model_pattern
from modal_nomad.wire.spec import GPUOption

_MODEL = "${device.model}"
_SHARE = "${device.attr.share}"
_MEMORY = "${device.attr.memory}"
_STRONGEST = 100
# Less than the step between two kinds of the longest list: a tighter slice never outweighs a better kind.
_TIGHTER = 5
# MIG instances have the card's name and their profile, such as "1g.10gb"; no card's name has a full stop.
_WHOLE_CARD = "[^.]*$"


def gpu_devices(options: Sequence[GPUOption]) -> list[dict[str, Any]]:
    """Return the task's ``Devices``: one block for all kinds that will do, none for no kinds."""
    if not options:
        return []
    first = options[0]
    part = bool(first.share or first.memory)
    named = [option.model for option in options if option.model]
    block: dict[str, Any] = {"Name": SLICE if part else WHOLE, "Count": 1 if part else first.count}
    constraints = (
        [_constraint("regexp", _MODEL, pattern)] if (pattern := _models(named, options, part)) else []
    )
    preferred = [model_pattern(model) for model in named]
    if len(options) == 1:
        # Of two sizes of one model the smaller is left to those who need no more.
        preferred = [model_pattern("A100-40GB")] if first.model == "A100" else []
    affinities = [
        {
            **_constraint("regexp", _MODEL, pattern),
            "Weight": max(1, _STRONGEST - position * _STRONGEST // len(preferred)),
        }
        for position, pattern in enumerate(preferred)
    ]
    if part:
        target, least, snug = _size(first)
        constraints.append(_constraint(">=", target, least))
        affinities.append({**_constraint("<=", target, snug), "Weight": _TIGHTER})
    if constraints:
        block["Constraints"] = constraints
    if affinities:
        block["Affinities"] = affinities
    return [block]


def gpu_words(options: Sequence[GPUOption]) -> str:
    """Say in words what is asked for, for who waits; empty for nothing.

    Example:
        >>> gpu_words([GPUOption("H100", 2), GPUOption("A100-80GB", 2)])
        '2 × H100 or A100-80GB'
        >>> gpu_words([GPUOption("A100", 1, 0.25)])
        '0.25 of A100'
    """
    if not options:
        return ""
    first = options[0]
    kinds = " or ".join(option.model or "any GPU" for option in options)
    if first.memory:
        return f"{first.memory:,} MiB of {kinds}"
    if first.share:
        return f"{first.share:g} of {kinds}"
    return f"{first.count} × {kinds}"


def _models(named: Sequence[str], options: Sequence[GPUOption], part: bool) -> str:
    patterns = [model_pattern(model) for model in named] if len(named) == len(options) else []
    pattern = "|".join(patterns)
    if part:
        return pattern
    if len(patterns) > 1:
        pattern = f"(?:{pattern})"
    return f"{pattern}{_WHOLE_CARD}" if pattern else f"^{_WHOLE_CARD}"


def _size(option: GPUOption) -> tuple[str, str, str]:
    if option.memory:
        return _MEMORY, f"{option.memory} MiB", f"{option.memory * 3 // 2} MiB"
    return _SHARE, f"{option.share:g}", f"{min(1.0, option.share * 1.5):g}"


def _constraint(operand: str, target: str, value: str) -> dict[str, str]:
    return {"LTarget": target, "Operand": operand, "RTarget": value}
