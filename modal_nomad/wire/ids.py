"""Object ids: a two-letter prefix and 22 random alphanumerics, as ``fc-3mXk…``."""

import random

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 22


def new_id(prefix: str) -> str:
    """Return a fresh id such as ``ap-…``; prefixes are part of the visible API.

    Args:
        prefix: two letters: ``ap fu fc in ta im cl``.
    """
    # Unique, not secret: what an id gives access to is guarded by tokens. One draw beats 22 by far.
    value = random.getrandbits(ID_LENGTH * 6)
    chars = []
    for _ in range(ID_LENGTH):
        value, digit = divmod(value, 62)
        chars.append(_ALPHABET[digit])
    return prefix + "-" + "".join(chars)
