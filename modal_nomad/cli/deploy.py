"""``modal-nomad deploy``: deploy an App, or show what a deploy would change."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from modal_nomad.cli import _errors
from modal_nomad.cli._terminal import say

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

NO_CHANGES, CHANGES, PLAN_ERROR = 0, 1, 255


@app.command(no_args_is_help=True)
def deploy(
    reference: str = typer.Argument(
        ..., metavar="APP_REF", help="The App: FILE.py (its variable 'app') or FILE.py::VARIABLE."
    ),
    name: str = typer.Option("", "--name", help="Deploy under this name instead of the App's own."),
    environment: str = typer.Option("", "--env", "-e", help="Environment to deploy to."),
    tag: str = typer.Option("", "--tag", help="A word for the history, such as a version."),
    is_module: bool = typer.Option(False, "-m", help="The reference is a dotted module path."),
    stream_logs: bool = typer.Option(False, "--stream-logs", help="Follow the App's logs afterwards."),
    plan: bool = typer.Option(
        False,
        "--plan",
        help="Change nothing: show Nomad's plan. Exit code 0: no changes, 1: changes, 255: error.",
    ),
) -> None:
    """Deploy an App; it stays until it is stopped."""
    if plan:
        raise typer.Exit(_plan(reference, name, environment, is_module))
    from modal_nomad import runner
    from modal_nomad._output import enable_output

    chosen = load_app(reference, is_module)
    with enable_output(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = runner.deploy_app(chosen, name or None, environment_name=environment or None, tag=tag)
    for warning in caught:
        say(f"Warning: {warning.message}", "yellow", err=True)
    for function in chosen.registered_functions:
        typer.echo(f"Created function {function}.")
    say(f"Deployed {name or chosen.name} ({result.app_id}).", "green")
    if result.app_page_url:
        typer.echo(f"View it at {result.app_page_url}")
    if stream_logs:
        from modal_nomad.cli.app import follow_logs

        follow_logs(result.app_id, follow=True)


def load_app(reference: str, is_module: bool) -> Any:
    """Import a reference's module, with ``import modal`` meaning this package, and return its App."""
    from modal_nomad import _alias
    from modal_nomad.cli import _import_ref

    _alias.install()
    ref = _import_ref.parse_ref(reference, is_module)
    return _import_ref.choose_app(_import_ref.import_target(ref), ref)


def _plan(reference: str, name: str, environment: str, is_module: bool) -> int:
    # Exit code 1 means changes here, so every failure needs another one.
    try:
        from modal_nomad import runner
        from modal_nomad.cli._plan import plan_lines

        chosen = load_app(reference, is_module)
        plans = runner.plan_app(chosen, name=name or None, environment_name=environment or None)
        for plan in plans:
            for line in plan_lines(plan):
                typer.echo(line)
    except Exception as exc:
        if _errors.belongs_to_typer(exc):
            raise
        _errors.report(exc)
        return PLAN_ERROR
    sys.stdout.flush()
    return CHANGES if any(plan.get("changes") for plan in plans) else NO_CHANGES
