"""GPU requests: strings such as ``"A100-80GB:2"``, or the classes here; ``gpu=`` takes either, or a list.

A list is an order of preference: a container lands on the first kind that has room. ``"A100:0.25"`` and
``Shared`` ask for a slice of one card.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .exception import InvalidError
from .wire.spec import GPUOption

if TYPE_CHECKING:
    from typing import TypeAlias

    GPU: TypeAlias = "str | _GPUConfig | bool | None"

__all__ = ["A10G", "A100", "B200", "H100", "H200", "L4", "L40S", "T4", "Any", "Shared"]

MODELS: tuple[str, ...] = (
    "T4",
    "L4",
    "A10",
    "A10G",
    "A100",
    "A100-40GB",
    "A100-80GB",
    "L40S",
    "H100",
    "H200",
    "B200",
)
_MAX_COUNT = 64
_SHARE = re.compile(r"\d*\.\d+")


class _GPUConfig:
    """One kind of GPU and how many of it one container gets."""

    model = ""

    def __init__(self, count: int = 1) -> None:
        self.count = _check_count(count, f"modal.gpu.{type(self).__name__}(count={count!r})")

    def __repr__(self) -> str:
        return f"GPU({self.model or 'any'}, count={self.count})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _GPUConfig) and self._option() == other._option()

    def __hash__(self) -> int:
        return hash(self._option())

    def _option(self) -> GPUOption:
        return GPUOption(self.model, self.count)


class T4(_GPUConfig):
    """NVIDIA T4, 16 GB.

    Example:
        >>> T4(count=2)
        GPU(T4, count=2)
    """

    model = "T4"


class L4(_GPUConfig):
    """NVIDIA L4, 24 GB."""

    model = "L4"


class A10G(_GPUConfig):
    """NVIDIA A10G, 24 GB."""

    model = "A10G"

    def __init__(self, *, count: int = 1) -> None:
        super().__init__(count)


class L40S(_GPUConfig):
    """NVIDIA L40S, 48 GB."""

    model = "L40S"

    def __init__(self, *, count: int = 1) -> None:
        super().__init__(count)


class A100(_GPUConfig):
    """NVIDIA A100.

    Args:
        count: how many one container gets.
        size: ``"40GB"`` or ``"80GB"``; None takes either, the smaller first.

    Raises:
        InvalidError: another size.
    """

    model = "A100"

    def __init__(self, *, count: int = 1, size: str | None = None) -> None:
        super().__init__(count)
        if size is not None:
            if size not in ("40GB", "80GB"):
                raise InvalidError(f"modal.gpu.A100(size={size!r}): an A100 has '40GB' or '80GB'")
            self.model = f"A100-{size}"


class H100(_GPUConfig):
    """NVIDIA H100, 80 GB."""

    model = "H100"

    def __init__(self, *, count: int = 1) -> None:
        super().__init__(count)


class H200(_GPUConfig):
    """NVIDIA H200, 141 GB."""

    model = "H200"

    def __init__(self, *, count: int = 1) -> None:
        super().__init__(count)


class B200(_GPUConfig):
    """NVIDIA B200, 192 GB."""

    model = "B200"

    def __init__(self, *, count: int = 1) -> None:
        super().__init__(count)


class Any(_GPUConfig):
    """Whatever GPU there is."""

    def __init__(self, *, count: int = 1) -> None:
        super().__init__(count)


class Shared(_GPUConfig):
    """A slice of one card, beside other containers: at least so much of it, and one slice of one card.

    Args:
        model: the kind of card, such as ``"A100"``, or ``"any"``.
        memory: MiB of the card's memory; or
        share: a part of the card, above 0 and below 1, as in ``"A100:0.25"``.

    Raises:
        InvalidError: an unknown model, or not exactly one of ``memory`` and ``share``.

    Example:
        >>> Shared("A100", memory=10_000)
        Shared('A100', memory=10000)
        >>> gpu_options(Shared("L4", share=0.5)) == gpu_options("L4:0.5")
        True
    """

    def __init__(self, model: str, *, memory: int | None = None, share: float | None = None) -> None:
        where = f"modal.gpu.Shared({model!r})"
        if (memory is None) == (share is None):
            raise InvalidError(f"{where}: give memory= in MiB or share= as a part of the card, one of them")
        super().__init__()
        self.model = _model(model, where)
        self.share = 0.0 if share is None else _check_share(share, where)
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 1):
            raise InvalidError(f"{where}: memory={memory!r} is to be a whole number of MiB, such as 10_000")
        self.memory = memory or 0

    def __repr__(self) -> str:
        size = f"memory={self.memory}" if self.memory else f"share={self.share:g}"
        return f"Shared({self.model or 'any'!r}, {size})"

    def _option(self) -> GPUOption:
        return GPUOption(self.model, 1, self.share, self.memory)


def gpu_options(value: object) -> tuple[GPUOption, ...]:
    """Read ``gpu=``: the kinds that will do, the preferred one first; empty for none.

    Args:
        value: a string, one of this module's classes, a list of these, None or False.

    Raises:
        InvalidError: an unknown kind (the text names the near ones), a bad count, or a list whose
            counts or shares differ.

    Example:
        >>> gpu_options("a100-80gb:2")
        (GPUOption(model='A100-80GB', count=2, share=0.0, memory=0),)
        >>> [option.model for option in gpu_options(["H100", A100(size="80GB")])]
        ['H100', 'A100-80GB']
    """
    if value is None or value is False:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str):
        options = tuple(_option(item) for item in value)
        if len({option.count for option in options}) > 1:
            raise InvalidError(
                f"gpu={value!r} asks for different numbers of GPUs; a list takes one number for all its kinds"
            )
        if len({(option.share, option.memory) for option in options}) > 1:
            raise InvalidError(
                f"gpu={value!r} asks for different parts of a card; a list takes one size for all its kinds"
            )
        return options
    return (_option(value),)


def _option(value: object) -> GPUOption:
    if isinstance(value, _GPUConfig):
        return value._option()
    if not isinstance(value, str):
        raise InvalidError(f"gpu={value!r} is no GPU; give a name such as 'A100', or a list of names")
    name, colon, number = value.strip().partition(":")
    number = number.strip()
    where = f"gpu={value!r}"
    model = _model(name, where)
    if _SHARE.fullmatch(number):
        return GPUOption(model, 1, _check_share(float(number), where))
    if colon:
        return GPUOption(model, _check_count(int(number) if number.isdecimal() else number, where))
    return GPUOption(model)


def _model(name: object, where: str) -> str:
    if not isinstance(name, str):
        raise InvalidError(f"{where}: {name!r} is no name of a GPU; give one such as 'A100'")
    # "H100!" asks that it be no better model, which is never given here.
    wanted = name.strip().upper().removesuffix("!")
    if wanted == "ANY":
        return ""
    if wanted not in MODELS:
        from difflib import get_close_matches

        near = get_close_matches(wanted, MODELS, n=3, cutoff=0.4)
        known = " or ".join(near) or f"one of {', '.join(MODELS)}, any"
        raise InvalidError(f"{where} is not known; did you mean {known}?")
    return wanted


def _check_share(share: object, where: str) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0.01 <= share < 1:
        raise InvalidError(f"{where}: a part of a card is a number from 0.01 to below 1, such as 0.25")
    return float(share)


def _check_count(count: object, where: str) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MAX_COUNT:
        raise InvalidError(f"{where}: the number of GPUs is a whole number from 1 to {_MAX_COUNT}")
    return count
