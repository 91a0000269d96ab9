"""Protocol Buffers, as much of it as a device plugin says: messages are dicts, schemas are tables.

Generated code would need the protobuf package, tie its version to that of the generator, and take half
again as long to import as gRPC does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_VARINTS = ("int64", "int32", "uint64", "uint32", "enum", "bool")
_MASK = (1 << 64) - 1


class DecodeError(ValueError):
    """Bytes that are no message."""


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Attributes:
        number: its number on the wire.
        kind: a scalar's name, or the name of another message of the same schema.
        many: it is ``repeated``: a list.
        keyed: it is a ``map`` with strings as keys: a dict.
    """

    number: int
    kind: str
    many: bool = False
    keyed: bool = False


Schema = Mapping[str, Mapping[str, Field]]


class Codec:
    """Encodes and decodes the messages of one schema.

    A field is written when its key is there, zero or not: that is how one says which member of a
    ``oneof`` is meant. None means that it is not set.

    Example:
        >>> codec = Codec({"Point": {"x": Field(1, "int64"), "name": Field(2, "string")}})
        >>> codec.encode("Point", {"x": 3, "name": "a"}).hex()
        '0803120161'
        >>> codec.decode("Point", bytes.fromhex("0803"))
        {'x': 3}
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._numbers = {
            message: {field.number: (name, field) for name, field in fields.items()}
            for message, fields in schema.items()
        }

    def encode(self, message: str, value: Mapping[str, Any]) -> bytes:
        """Return a message's bytes. Raises KeyError for a field that it does not have."""
        out = bytearray()
        fields = self._schema[message]
        for name, item in value.items():
            field = fields[name]
            if item is None:
                continue
            if field.keyed:
                for key, element in item.items():
                    entry = self._tagged(1, "string", key) + self._tagged(2, field.kind, element)
                    out += _varint(field.number << 3 | _LENGTH) + _varint(len(entry)) + entry
            elif field.many:
                for element in item:
                    out += self._tagged(field.number, field.kind, element)
            else:
                out += self._tagged(field.number, field.kind, item)
        return bytes(out)

    def decode(self, message: str, data: bytes) -> dict[str, Any]:
        """Read a message; what is not there has no key, and unknown fields are skipped.

        Raises:
            DecodeError: the bytes are no message.
        """
        known = self._numbers[message]
        found: dict[str, Any] = {}
        for number, raw in _fields(data):
            if number not in known:
                continue
            name, field = known[number]
            if field.keyed:
                entry = dict(_fields(_bytes(raw)))
                value = self._value(field.kind, entry[2]) if 2 in entry else self._empty(field.kind)
                found.setdefault(name, {})[self._value("string", entry.get(1, b""))] = value
            elif field.many:
                items = found.setdefault(name, [])
                if field.kind in _VARINTS and isinstance(raw, bytes):
                    items.extend(self._value(field.kind, item) for item in _packed(raw))
                else:
                    items.append(self._value(field.kind, raw))
            else:
                found[name] = self._value(field.kind, raw)
        return found

    def _tagged(self, number: int, kind: str, value: Any) -> bytes:
        if kind in _VARINTS:
            return _varint(number << 3 | _VARINT) + _varint(int(value) & _MASK)
        if kind == "double":
            return _varint(number << 3 | _FIXED64) + struct.pack("<d", value)
        data = value
        if kind == "string":
            data = value.encode()
        elif kind != "bytes":
            data = self.encode(kind, value)
        return _varint(number << 3 | _LENGTH) + _varint(len(data)) + bytes(data)

    def _empty(self, kind: str) -> Any:
        scalars = {"string": "", "bytes": b"", "double": 0.0, "bool": False}
        return scalars.get(kind, 0 if kind in _VARINTS else {})

    def _value(self, kind: str, raw: int | bytes) -> Any:
        if kind in _VARINTS:
            if not isinstance(raw, int):
                raise DecodeError("a number is missing")
            if kind == "bool":
                return bool(raw)
            return raw - (1 << 64) if kind in ("int64", "int32") and raw >> 63 else raw
        data = _bytes(raw)
        if kind == "double":
            if len(data) != 8:
                raise DecodeError("a double has eight bytes")
            return struct.unpack("<d", data)[0]
        if kind == "string":
            try:
                return data.decode()
            except UnicodeDecodeError as error:
                raise DecodeError("a string is not UTF-8") from error
        return data if kind == "bytes" else self.decode(kind, data)


def _bytes(raw: int | bytes) -> bytes:
    if not isinstance(raw, bytes):
        raise DecodeError("a number stands where bytes are expected")
    return raw


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise DecodeError("a number is cut off")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & _MASK, at
        shift += 7


def _packed(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        number, at = _read_varint(data, at)
        yield number


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _read_varint(data, at)
            yield tag >> 3, number
            continue
        if kind == _LENGTH:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise DecodeError(f"wire type {kind} is not known")
        if at + size > len(data):
            raise DecodeError("a field is cut off")
        yield tag >> 3, data[at : at + size]
        at += size
