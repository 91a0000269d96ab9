"""modal.parameter(): types, defaults, inheritance, and the bytes that name a set of values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modal_nomad as modal
from modal_nomad import _parameters as parameters
from modal_nomad.exception import InvalidError
from modal_nomad.wire.spec import ParameterSpec


class Base:
    a: str = modal.parameter()
    hidden: Any = modal.parameter(init=False)


class Model(Base):
    b: int = modal.parameter(default=3)
    c: bytes = modal.parameter(default=b"\0x")
    d: bool = modal.parameter(default=True)
    plain = 7


def test_fields_of_a_class_and_its_bases() -> None:
    assert parameters.class_parameters(Model) == (
        ParameterSpec("a", "str"),
        ParameterSpec("b", "int", 3),
        ParameterSpec("c", "bytes", "0078"),
        ParameterSpec("d", "bool", True),
    )


def test_a_field_that_is_no_parameter_has_no_value() -> None:
    with pytest.raises(AttributeError, match="'Model' object has no attribute 'hidden'"):
        Model().hidden  # noqa: B018
    model = Model()
    model.hidden = 1
    assert model.hidden == 1 and model.b == 3


def test_a_parameter_must_be_annotated() -> None:
    class Wrong:
        a = modal.parameter()

    with pytest.raises(InvalidError, match=r"Wrong.a must be annotated"):
        parameters.class_parameters(Wrong)


@pytest.mark.parametrize("kind", ["float", "list[int]", "Nothing", "Any"])
def test_types_that_cannot_be_a_parameters(kind: str) -> None:
    wrong = type(
        "Wrong", (), {"__annotations__": {"a": kind}, "a": modal.parameter(), "__module__": __name__}
    )
    with pytest.raises(InvalidError, match="parameters are of type str, int, bool, bytes"):
        parameters.class_parameters(wrong)


def test_a_default_is_of_the_type() -> None:
    class Wrong:
        a: int = modal.parameter(default=True)

    with pytest.raises(InvalidError, match=r"default of parameter Wrong\.a is True; give a int"):
        parameters.class_parameters(Wrong)


def test_values_are_checked() -> None:
    specs = parameters.class_parameters(Model)
    with pytest.raises(TypeError, match="Expected str, got int: parameter 'a' of Model"):
        parameters.check_values("Model", specs, {"a": 1})
    with pytest.raises(TypeError, match="Expected int, got bool"):
        parameters.check_values("Model", specs, {"b": True})
    with pytest.raises(TypeError, match="unexpected parameter 'z'"):
        parameters.check_values("Model", specs, {"z": 1})
    with pytest.raises(InvalidError, match=r"Missing required parameter of Model: a; say Model\(a=...\)"):
        parameters.complete("Model", specs, {"b": 1})
    assert parameters.complete("Model", specs, {"a": "x"}) == {"a": "x", "b": 3, "c": b"\0x", "d": True}


_VALUES = st.dictionaries(
    st.text(st.characters(categories=["Ll"]), min_size=1),
    st.text() | st.integers() | st.booleans() | st.binary(),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(_VALUES)
def test_equal_values_are_equal_bytes(values: dict[str, Any]) -> None:
    data = parameters.pack(values)
    assert parameters.pack(dict(reversed(values.items()))) == data
    back = parameters.unpack(data)
    assert back == values and {k: type(v) for k, v in back.items()} == {k: type(v) for k, v in values.items()}


def test_values_of_different_types_are_different_bytes() -> None:
    assert len({parameters.pack({"a": x}) for x in (1, True, "1", b"1")}) == 4
