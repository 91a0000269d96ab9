"""Object ids: a two-letter prefix, the second they were made in 6 alphanumerics, chance in 16 more."""

import os
import re
import time
from functools import lru_cache
from typing import Optional

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TIME_DIGITS = 6
ID_LENGTH = 22
_CHANCE_DIGITS = ID_LENGTH - _TIME_DIGITS
# Chance comes as bytes; that 256 is no multiple of 62 costs a fraction of a bit.
_TO_ALPHABET = bytes(ord(_ALPHABET[i % 62]) for i in range(256))
_ID = re.compile("[a-z]{2}-([0-9A-Za-z]{%d})" % ID_LENGTH)


def new_id(prefix: str) -> str:
    """Return a fresh id such as ``ap-…``; prefixes are part of the visible API. Later ids sort later.

    Args:
        prefix: two letters: ``ap fu fc in ta im cl``.
    """
    # Not from ``random``: programs seed it, and two that are seeded alike must not share their ids.
    chance = os.urandom(_CHANCE_DIGITS)
    return f"{prefix}-{_stamp(int(time.time()))}{chance.translate(_TO_ALPHABET).decode()}"


def id_from(prefix: str, digest: bytes) -> str:
    """Return the id that belongs to a digest of at least 22 bytes: equal for equal content."""
    return f"{prefix}-{digest[:ID_LENGTH].translate(_TO_ALPHABET).decode()}"


def timed_id(prefix: str, second: int, digest: bytes) -> str:
    """Return the id that belongs to a second since 1970 and a digest of at least 16 bytes."""
    return f"{prefix}-{_stamp(second)}{digest[:_CHANCE_DIGITS].translate(_TO_ALPHABET).decode()}"


@lru_cache(maxsize=2)
def _stamp(second: int) -> str:
    chars = []
    for _ in range(_TIME_DIGITS):
        second, digit = divmod(second, 62)
        chars.append(_ALPHABET[digit])
    return "".join(reversed(chars))


def created_at(object_id: str) -> Optional[int]:
    """Return when an id was made, in seconds since 1970 on its maker's clock; None for what is no id.

    Example:
        >>> import time
        >>> time.time() - created_at(new_id("fc")) < 2
        True
    """
    match = _ID.fullmatch(object_id)
    if match is None:
        return None
    value = 0
    for char in match.group(1)[:_TIME_DIGITS]:
        value = value * 62 + _ALPHABET.index(char)
    return value
