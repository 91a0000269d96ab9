"""Signatures as flags."""

from __future__ import annotations

import datetime
from typing import Any, Literal

import pytest
import typer

from modal_nomad.cli._entrypoint_args import parse_arguments
from modal_nomad.cli._errors import CommandError


def parse(func: Any, *argv: str) -> Any:
    parsed = parse_arguments(func, argv, "modal-nomad run x.py")
    assert parsed is not None
    return parsed[1]


def everything(
    text: str,
    count: int,
    ratio: float,
    loud: bool,
    when: datetime.datetime,
    mode: Literal["fast", "slow"],
    untyped,  # type: ignore[no-untyped-def]
    maybe: int | None = None,
    sizes: list[int] = [1, 2],  # noqa: B006 - what users write
    level: Literal[1, 2] = 2,
    after: datetime.datetime = datetime.datetime(2026, 1, 1),
    other_name: int | None = 5,
) -> None: ...


REQUIRED = [
    "--text",
    "a",
    "--count",
    "3",
    "--ratio",
    "0.5",
    "--no-loud",
    "--when",
    "2026-01-31",
    "--mode",
    "slow",
    "--untyped",
    "7",
]


def test_every_type() -> None:
    got = parse(everything, *REQUIRED)
    assert got == {
        "text": "a",
        "count": 3,
        "ratio": 0.5,
        "loud": False,
        "when": datetime.datetime(2026, 1, 31),
        "mode": "slow",
        "untyped": "7",
        "maybe": None,
        "sizes": [1, 2],
        "level": 2,
        "after": datetime.datetime(2026, 1, 1),
        "other_name": 5,
    }


def test_optional_values_given() -> None:
    more = [
        "--maybe",
        "4",
        "--sizes",
        "8",
        "--sizes",
        "9",
        "--level",
        "1",
        "--after",
        "2026-02-03T04:05:06",
        "--other-name",
        "-6",
    ]
    got = parse(everything, *REQUIRED, *more)
    assert (got["maybe"], got["sizes"], got["level"], got["other_name"]) == (4, [8, 9], 1, -6)
    assert got["after"] == datetime.datetime(2026, 2, 3, 4, 5, 6)


def flag(on: bool = True, name: str = "x") -> None: ...


def test_bool_flags_and_defaults() -> None:
    assert parse(flag) == {"on": True, "name": "x"}
    assert parse(flag, "--no-on", "--name", "--on")["on"] is False


@pytest.mark.parametrize(
    "argv", [["--count", "x"], ["--mode", "wrong"], ["--when", "soon"], ["--unknown", "1"], ["stray"]]
)
def test_bad_values_are_usage_errors(argv: list[str]) -> None:
    with pytest.raises(typer.BadParameter.__mro__[1]) as caught:
        parse_arguments(everything, [*REQUIRED, *argv], "run")
    assert caught.value.exit_code == 2


def test_missing_flag_is_a_usage_error() -> None:
    with pytest.raises(typer.BadParameter.__mro__[1]) as caught:
        parse_arguments(everything, [], "run")
    assert caught.value.exit_code == 2


def documented(size: int = 3, *, colour: str = "red") -> None:
    """Paint the wall.

    It takes a while.

    Args:
        size: how large,
            in metres.
        colour (str): which colour.

    Returns:
        Nothing of interest.
    """


def test_help_from_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments(documented, ["--help"], "modal-nomad run x.py") is None
    shown = capsys.readouterr().out
    for words in ("Paint the wall", "--size", "how large, in metres", "which colour", "--colour"):
        assert words in shown
    assert "Nothing of interest" not in shown


def test_no_parameters() -> None:
    def nothing() -> None: ...

    assert parse_arguments(nothing, [], "run") == ((), {})
    assert parse_arguments(nothing, ["--help"], "run") is None


def test_raw_arguments() -> None:
    def raw(*words: str) -> None: ...

    assert parse_arguments(raw, ["--x", "y"], "run") == (("--x", "y"), {})

    def mixed(a: int, *words: str) -> None: ...

    with pytest.raises(CommandError, match="parameter 'a'"):
        parse_arguments(mixed, [], "run")


@pytest.mark.parametrize("annotation", [dict, dict[str, int], bytes, int | str, list[list[int]]])
def test_unsupported_annotation_names_parameter_and_type(annotation: Any) -> None:
    def function(thing): ...  # type: ignore[no-untyped-def]

    function.__annotations__["thing"] = annotation
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    with pytest.raises(CommandError) as caught:
        parse_arguments(function, [], "run")
    assert "'thing'" in str(caught.value) and name in str(caught.value)
