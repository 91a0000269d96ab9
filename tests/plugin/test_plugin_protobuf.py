"""The messages on the wire, and Nomad's configuration."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modal_nomad_gpu._messages import CODEC
from modal_nomad_gpu._msgpack import unpack
from modal_nomad_gpu._protobuf import Codec, DecodeError, Field

from tests.plugin._plugin_client import pack

ALL = Codec(
    {
        "All": {
            "i": Field(1, "int64"),
            "u": Field(2, "uint64"),
            "b": Field(3, "bool"),
            "d": Field(4, "double"),
            "s": Field(5, "string"),
            "y": Field(6, "bytes"),
            "many": Field(7, "string", many=True),
            "numbers": Field(8, "int32", many=True),
            "keyed": Field(2000, "All", keyed=True),
            "inner": Field(9, "All"),
        }
    }
)
WHOLE = st.integers(-(1 << 63), (1 << 63) - 1)
MESSAGES = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "i": WHOLE,
            "u": st.integers(0, (1 << 64) - 1),
            "b": st.booleans(),
            "d": st.floats(allow_nan=False),
            "s": st.text(),
            "y": st.binary(),
            "many": st.lists(st.text(), min_size=1),
            "numbers": st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"inner": inner, "keyed": st.dictionaries(st.text(), inner, min_size=1)}
    ),
    max_leaves=8,
)


@given(MESSAGES)
def test_what_is_encoded_is_decoded(message: dict[str, Any]) -> None:
    assert ALL.decode("All", ALL.encode("All", message)) == message


@given(st.binary(max_size=60))
def test_bytes_of_anybody_are_read_or_refused(data: bytes) -> None:
    for kind in ("SetConfigRequest", "ReserveRequest", "StatsRequest", "FingerprintResponse"):
        with contextlib.suppress(DecodeError):
            CODEC.decode(kind, data)


def test_known_bytes() -> None:
    # As Protocol Buffers' own documentation has them.
    assert ALL.encode("All", {"i": 150}) == bytes.fromhex("089601")
    assert Codec({"T": {"b": Field(2, "string")}}).encode("T", {"b": "testing"}).hex() == "120774657374696e67"
    assert ALL.encode("All", {"i": -2}) == b"\x08" + b"\xfe" + b"\xff" * 8 + b"\x01"
    packed = bytes.fromhex("4206038e029ea705")
    assert ALL.decode("All", packed) == {"numbers": [3, 270, 86942]}


def test_unknown_fields_are_skipped_and_unset_ones_left_out() -> None:
    data = ALL.encode("All", {"i": 1, "d": 2.0, "s": None, "y": b"x"})
    assert Codec({"Few": {"i": Field(1, "int64")}}).decode("Few", data) == {"i": 1}
    with pytest.raises(KeyError):
        ALL.encode("All", {"none": 1})


JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_messagepack_is_read(value: Any) -> None:
    assert unpack(pack(value)) == value


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("80", {}),
        ("7f", 127),
        ("ff", -1),
        ("cd0100", 256),
        ("d1ff00", -256),
        ("ca3fc00000", 1.5),
        ("cb3ff8000000000000", 1.5),
        ("a3616263", "abc"),
        ("d903616263", "abc"),
        ("c4020102", b"\x01\x02"),
        ("9301c0c3", [1, None, True]),
        ("81a161920102", {"a": [1, 2]}),
    ],
)
def test_messagepacks_short_forms_are_read(data: str, value: Any) -> None:
    assert unpack(bytes.fromhex(data)) == value


@given(st.binary(max_size=40))
def test_no_messagepack_is_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError, TypeError):
        unpack(data)
