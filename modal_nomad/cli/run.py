"""``modal-nomad run``: run an entry point, or one Function, of a file."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from modal_nomad.cli._errors import INTERRUPTED, CommandError, UsageError, user_code

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
    no_args_is_help=True,
)
def run(
    reference: str = typer.Argument(
        ..., metavar="FUNC_REF", help="What to run: FILE.py, FILE.py::NAME, or with -m a dotted module path."
    ),
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="The function's own flags; 'run FILE.py --help' lists them."),
    ] = None,
    write_result: Annotated[
        Path | None,
        typer.Option("--write-result", "-w", help="Write the result (str or bytes) to this file."),
    ] = None,
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Show no progress; errors still show."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Let the app go on when this command ends."),
    interactive: bool = typer.Option(False, "--interactive", "-i", help="Run the app interactively."),
    name: str = typer.Option("", "--name", "-n", help="What lists of apps call this run."),
    environment: str = typer.Option("", "--env", "-e", help="Environment to run in."),
    is_module: bool = typer.Option(False, "-m", help="The reference is a dotted module path."),
) -> None:
    """Run a local entry point or a Function; its parameters are flags after the file."""
    if interactive and quiet:
        raise UsageError("To use interactive mode, remove the --quiet flag.")
    from modal_nomad import _alias
    from modal_nomad._output import enable_output

    _alias.install()
    # From before the user's module is imported: a logger that it sets up writes past the display, too.
    with ExitStack() as stack:
        if not quiet:
            stack.enter_context(enable_output())
        how = {
            "detach": detach,
            "interactive": interactive,
            "environment_name": environment or None,
            "name": name or None,
        }
        ran, result = _run(reference, arguments or [], how, is_module)
    if ran and write_result is not None:
        _write(write_result, result)


def _run(
    reference: str,
    arguments: list[str],
    how: dict[str, Any],
    is_module: bool,
) -> tuple[bool, Any]:
    """Find what is meant, read its flags and run it; False when only help was asked for."""
    from modal_nomad.cli import _entrypoint_args, _import_ref

    ref = _import_ref.parse_ref(reference, is_module)
    module = _import_ref.import_target(ref)
    chosen = _import_ref.choose_runnable(_import_ref.find_apps(module), ref, vars(module))
    func = chosen.target.get_raw_f()
    parsed = _entrypoint_args.parse_arguments(func, arguments, f"modal-nomad run {reference}")
    if parsed is None:
        return False, None
    args, kwargs = parsed
    if not chosen.is_entrypoint and chosen.target.is_generator:
        raise CommandError(f"{chosen.names[0]} is a generator function; 'run' cannot run one.")
    if chosen.app.name is None and not chosen.app.description:
        chosen.app.set_description(f"{Path(ref.target).name}::{chosen.names[0]}")
    return True, _run_app(chosen, func, args, kwargs, how)


def _run_app(
    chosen: Any,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    how: dict[str, Any],
) -> Any:
    result: Any = None
    interrupted = False
    app_id: str | None = None
    detach = how["detach"]
    with chosen.app.run(**how):
        app_id = chosen.app.app_id
        try:
            with user_code():
                if not chosen.is_entrypoint:
                    result = chosen.target.remote(*args, **kwargs)
                elif inspect.iscoroutinefunction(func):
                    result = asyncio.run(func(*args, **kwargs))
                else:
                    result = func(*args, **kwargs)
        except KeyboardInterrupt:
            interrupted = True
            _next_interrupt_kills()
            raise
    if detach:
        typer.echo(
            f"App {app_id} goes on without this terminal: 'modal-nomad app logs -f {app_id}' follows it,"
            f" 'modal-nomad app stop {app_id}' ends it.",
            err=True,
        )
    # The run's own exit swallows the interrupt: a stop that was asked for is no error of the app.
    if interrupted:
        if not detach:
            typer.echo("Cancelled.", err=True)
        raise typer.Exit(INTERRUPTED)
    return result


def _next_interrupt_kills() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _write(path: Path, result: Any) -> None:
    if isinstance(result, str):
        path.write_text(result)
    elif isinstance(result, bytes):
        path.write_bytes(result)
    else:
        raise CommandError(
            f"Function must return str or bytes when using `--write-result`; got {type(result).__name__}."
        )
