"""MessagePack, read only: the form in which Nomad hands a plugin its configuration."""

from __future__ import annotations

import struct
from typing import Any

_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_BINARY = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_STRINGS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}


def unpack(data: bytes) -> Any:
    """Read one value.

    Raises:
        ValueError: the bytes are not one value of MessagePack's, or of an extension.

    Example:
        >>> unpack(bytes.fromhex("81a161 92 01 c3".replace(" ", "")))
        {'a': [1, True]}
    """
    try:
        value, end = _value(data, 0)
    except (struct.error, IndexError) as error:
        raise ValueError("MessagePack is cut off") from error
    if end != len(data):
        raise ValueError("MessagePack has more behind its value")
    return value


def _value(data: bytes, at: int) -> tuple[Any, int]:
    code = data[at]
    at += 1
    if code < 0x80:
        return code, at
    if code >= 0xE0:
        return code - 0x100, at
    if code < 0x90:
        return _map(data, at, code & 0x0F)
    if code < 0xA0:
        return _array(data, at, code & 0x0F)
    if code < 0xC0:
        return _string(data, at, code & 0x1F)
    if code == 0xC0:
        return None, at
    if code in (0xC2, 0xC3):
        return code == 0xC3, at
    if code in _NUMBERS:
        return _number(data, at, _NUMBERS[code])
    if code in _STRINGS:
        size, at = _number(data, at, _STRINGS[code])
        return _string(data, at, size)
    if code in _BINARY:
        size, at = _number(data, at, _BINARY[code])
        return _take(data, at, size), at + size
    if code in _ARRAYS:
        size, at = _number(data, at, _ARRAYS[code])
        return _array(data, at, size)
    if code in _MAPS:
        size, at = _number(data, at, _MAPS[code])
        return _map(data, at, size)
    raise ValueError(f"MessagePack's code {code:#x} is not known here")


def _number(data: bytes, at: int, form: str) -> tuple[Any, int]:
    return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)


def _take(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise IndexError
    return data[at : at + size]


def _string(data: bytes, at: int, size: int) -> tuple[str, int]:
    return _take(data, at, size).decode(), at + size


def _array(data: bytes, at: int, size: int) -> tuple[list[Any], int]:
    items = []
    for _ in range(size):
        item, at = _value(data, at)
        items.append(item)
    return items, at


def _map(data: bytes, at: int, size: int) -> tuple[dict[Any, Any], int]:
    items = {}
    for _ in range(size):
        key, at = _value(data, at)
        items[key], at = _value(data, at)
    return items, at
