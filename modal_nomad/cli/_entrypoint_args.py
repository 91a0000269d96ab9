"""A Python signature as command-line flags, and the command line back as arguments."""

from __future__ import annotations

import datetime
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union

import typer
import typer.main

from modal_nomad.cli._errors import CommandError

_PLAIN = (str, bool)
_DATETIME_FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M")
_ARGS_HEADING = re.compile(r"^\s*(?:Args|Arguments|Parameters):\s*$")
_ANY_HEADING = re.compile(r"^(?:Returns|Raises|Yields|Examples?|Notes?|Attributes|Warning|See Also):\s*$")


@dataclass(frozen=True)
class _Kind:
    """What an annotation means on a command line."""

    annotation: Any
    parser: Callable[[Any], Any] | None = None
    metavar: str | None = None
    is_list: bool = False
    is_bool: bool = False


def parse_arguments(
    func: Callable[..., Any], argv: Sequence[str], prog_name: str
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Read ``argv`` by the signature of ``func``.

    Args:
        func: the entry point or the plain function behind a Function.
        argv: the words after the reference on the command line.
        prog_name: how usage lines name the command.

    Returns:
        Positional and keyword arguments for the call, or None when ``--help`` was asked and printed.

    Raises:
        CommandError: a parameter's annotation cannot be said on a command line.
    """
    parameters = parameters_of(func)
    variadic = [p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
    if variadic:
        if len(parameters) > 1:
            other = next(p.name for p in parameters if p is not variadic[0])
            raise CommandError(
                f"{_name(func)} takes *{variadic[0].name}, the raw argument list: parameter"
                f" '{other}' cannot stand beside it."
            )
        return tuple(argv), {}
    collected: dict[str, Any] = {}
    calls: list[bool] = []

    def command(**values: Any) -> None:
        calls.append(True)
        collected.update(values)

    summary, described = _docstring(inspect.getdoc(func) or "")
    shown = [_as_option(func, p, described.get(p.name)) for p in parameters]
    command.__doc__ = summary
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in shown}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    typer.main.get_command(app).main(list(argv), prog_name=prog_name, standalone_mode=False)
    # --help prints and ends there, without a call.
    if not calls:
        return None
    kinds = {p.name: p for p in parameters}
    return (), {name: _final(kinds[name], value) for name, value in collected.items()}


def _final(parameter: inspect.Parameter, value: Any) -> Any:
    # An untouched list flag arrives empty: the function's own default is what the user means.
    if value in ([], None, ()) and parameter.default is not inspect.Parameter.empty:
        return parameter.default
    return list(value) if isinstance(value, tuple) else value


def parameters_of(func: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function, annotations evaluated. Raises CommandError."""
    try:
        signature = inspect.signature(func, eval_str=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as exc:
        raise CommandError(f"{_name(func)}: its annotations cannot be evaluated: {exc}.") from None
    return list(signature.parameters.values())


def _as_option(
    func: Callable[..., Any], parameter: inspect.Parameter, description: str | None
) -> inspect.Parameter:
    kind = _kind(parameter.annotation)
    if kind is None or parameter.kind is inspect.Parameter.VAR_KEYWORD:
        raise CommandError(
            f"{_name(func)}: parameter '{parameter.name}' has the type {_type_name(parameter.annotation)},"
            " which has no form on a command line. Use str, int, float, bool, datetime, a Literal,"
            " or a list or Optional of these."
        )
    flag = "--" + parameter.name.strip("_").replace("_", "-")
    declaration = f"{flag}/--no-{flag[2:]}" if kind.is_bool else flag
    has_default = parameter.default is not inspect.Parameter.empty
    annotation = kind.annotation
    default = parameter.default
    if kind.is_list:
        annotation = list[annotation]  # type: ignore[valid-type]
    if has_default and (default is None or kind.parser is not None or kind.is_list):
        annotation, default = annotation | None, None
    extra: dict[str, Any] = {"parser": kind.parser} if kind.parser else {}
    if has_default and default is None and parameter.default not in (None, []):
        # typer would show the None that stands for "not given" here.
        shown = parameter.default if kind.is_list else [parameter.default]
        description = f"{description or ''}  [default: {', '.join(map(str, shown))}]".strip()
    option = typer.Option(declaration, help=description, metavar=kind.metavar, **extra)
    return inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default if has_default else inspect.Parameter.empty,
        annotation=Annotated[annotation, option],
    )


def _kind(annotation: Any) -> _Kind | None:
    if annotation is inspect.Parameter.empty:
        return _Kind(str)
    if typing.get_origin(annotation) is Annotated:
        return _kind(typing.get_args(annotation)[0])
    if annotation in (int, float):
        return _Kind(str, parser=_number_parser(annotation), metavar=annotation.__name__.upper())
    if annotation in _PLAIN:
        return _Kind(annotation, is_bool=annotation is bool)
    if annotation is datetime.datetime:
        return _Kind(str, parser=_parse_datetime, metavar="DATETIME")
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        texts = "|".join(str(a) for a in arguments)
        return _Kind(str, parser=_literal_parser(arguments), metavar=f"[{texts}]")
    if origin in (Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return _kind(inner[0]) if len(inner) == 1 else None
    if annotation is list or origin is list:
        element = _kind(arguments[0]) if arguments else _Kind(str)
        if element is None or element.is_list or element.is_bool:
            return None
        return _Kind(element.annotation, element.parser, element.metavar, is_list=True)
    return None


def _number_parser(number: type[Any]) -> Callable[[Any], Any]:
    def parse(text: Any) -> Any:
        try:
            return number(text)
        except ValueError:
            wanted = "a valid integer" if number is int else "a number"
            raise typer.BadParameter(f"'{text}' is not {wanted}.") from None

    return parse


def _parse_datetime(text: str) -> datetime.datetime:
    for form in _DATETIME_FORMATS:
        try:
            return datetime.datetime.strptime(text, form)
        except ValueError:
            continue
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no date; write 2026-01-31 or 2026-01-31T12:00:00.") from None


def _literal_parser(choices: tuple[Any, ...]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        for choice in choices:
            if str(choice) == str(text):
                return choice
        raise typer.BadParameter(f"'{text}' is not one of {', '.join(str(c) for c in choices)}.")

    return parse


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose and the descriptions of a Google ``Args:`` section."""
    prose: list[str] = []
    described: dict[str, str] = {}
    section, entry_indent, current = "prose", None, None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if _ARGS_HEADING.match(line):
            section, entry_indent, current = "args", None, None
        elif _ANY_HEADING.match(line):
            section = "other"
        elif section == "args" and line.strip():
            if indent == 0:
                section = "prose"
                prose.append(line)
                continue
            entry_indent = indent if entry_indent is None else entry_indent
            entry = re.match(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
            if entry and indent <= entry_indent:
                current = entry.group(1)
                described[current] = entry.group(2).strip()
            elif current:
                described[current] = f"{described[current]} {line.strip()}".strip()
        elif section == "prose":
            prose.append(line)
    return "\n".join(prose).strip(), described


def _name(func: Callable[..., Any]) -> str:
    return str(getattr(func, "__qualname__", func))


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
