"""Retry policies for Functions."""

from __future__ import annotations

from .exception import InvalidError
from .wire.spec import RetrySpec

MAX_RETRIES = 10
MAX_DELAY_SECONDS = 60.0
MAX_BACKOFF = 10.0


class Retries:
    """How a failed input is tried again.

    The delay before retry ``n`` is ``initial_delay * backoff_coefficient ** (n - 1)`` seconds, at most
    ``max_delay``. ``retries=3`` on a Function means ``Retries(max_retries=3, backoff_coefficient=1.0)``.

    Args:
        max_retries: how often a failed input is run again; 0 to 10.
        backoff_coefficient: what the delay grows by; 1.0 to 10.0.
        initial_delay: seconds before the first retry; 0 to 60.
        max_delay: the longest delay in seconds; 1 to 60.

    Raises:
        InvalidError: when a number is out of its bounds.

    Example:
        >>> @app.function(retries=Retries(max_retries=3, initial_delay=0.5))
        ... def flaky() -> None: ...
    """

    __slots__ = ("_spec",)

    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
    ) -> None:
        if isinstance(max_retries, bool) or not isinstance(max_retries, int):
            raise InvalidError(f"max_retries is {max_retries!r}; give a whole number")
        for name, value, low, high in (
            ("max_retries", max_retries, 0, MAX_RETRIES),
            ("backoff_coefficient", backoff_coefficient, 1.0, MAX_BACKOFF),
            ("initial_delay", initial_delay, 0, MAX_DELAY_SECONDS),
            ("max_delay", max_delay, 1, MAX_DELAY_SECONDS),
        ):
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InvalidError(f"{name} of Retries is {value!r}; it must be between {low} and {high}")
        self._spec = RetrySpec(
            max_retries, float(backoff_coefficient), float(initial_delay), float(max_delay)
        )

    def __repr__(self) -> str:
        spec = self._spec
        return (
            f"Retries(max_retries={spec.max_retries}, backoff_coefficient={spec.backoff_coefficient}, "
            f"initial_delay={spec.initial_delay}, max_delay={spec.max_delay})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retries) and self._spec == other._spec

    def __hash__(self) -> int:
        return hash(self._spec)
