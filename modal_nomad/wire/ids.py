"""Object ids: a two-letter prefix, the second they were made in 6 alphanumerics, chance in 16 more."""

import random
import re
import time
from typing import Optional

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TIME_DIGITS = 6
ID_LENGTH = 22
_CHANCE = 62 ** (ID_LENGTH - _TIME_DIGITS)
_CHANCE_BITS = _CHANCE.bit_length() - 1
_ID = re.compile("[a-z]{2}-([0-9A-Za-z]{%d})" % ID_LENGTH)


def new_id(prefix: str) -> str:
    """Return a fresh id such as ``ap-…``; prefixes are part of the visible API. Later ids sort later.

    Args:
        prefix: two letters: ``ap fu fc in ta im cl``.
    """
    # Unique, not secret: what an id gives access to is guarded by tokens. One draw beats 16 by far.
    value = int(time.time()) * _CHANCE + random.getrandbits(_CHANCE_BITS)
    chars = []
    for _ in range(ID_LENGTH):
        value, digit = divmod(value, 62)
        chars.append(_ALPHABET[digit])
    chars.reverse()
    return prefix + "-" + "".join(chars)


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
