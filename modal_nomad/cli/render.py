"""``modal-nomad render``: the Nomad jobs of an App, for GitOps and Terraform.

The cluster's settings come from the configured dispatcher; with ``--server-url`` no server is asked.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(no_args_is_help=True)
def render(
    reference: str = typer.Argument(
        ..., metavar="APP_REF", help="The App: FILE.py (its variable 'app') or FILE.py::VARIABLE."
    ),
    hcl: bool = typer.Option(False, "--hcl", help="HCL instead of a JSON list of jobs."),
    name: str = typer.Option("", "--name", help="Render as if deployed under this name."),
    environment: str = typer.Option("", "--env", "-e", help="Environment to render for."),
    is_module: bool = typer.Option(False, "-m", help="The reference is a dotted module path."),
    server_url: str = typer.Option(
        "",
        "--server-url",
        help="Address that containers dial; asks no server for its settings.",
    ),
    image_repository: str = typer.Option(
        "",
        "--image-repository",
        help="With --server-url: where built images lie, repository under [images] of its settings.",
    ),
    driver: str = typer.Option("", "--driver", help="Nomad task driver, instead of the server's."),
    datacenters: str = typer.Option("", "--datacenters", help="Datacenters, separated by commas."),
    namespace: str = typer.Option("", "--namespace", help="Nomad namespace."),
    node_pool: str = typer.Option("", "--node-pool", help="Nomad node pool."),
) -> None:
    """Print the Nomad jobs of an App as JSON or HCL, as a deploy would send them."""
    from modal_nomad import runner
    from modal_nomad._image_publish import named
    from modal_nomad.cli._client import connect
    from modal_nomad.cli._errors import UsageError
    from modal_nomad.cli.deploy import load_app
    from modal_nomad.render import RenderSettings, schedule_job
    from modal_nomad.wire.spec import ScheduleSpec

    chosen = load_app(reference, is_module)
    if not (name or chosen.name):
        raise UsageError("this App has no name to deploy under; say App('my-app') or give --name.")
    given = {
        "driver": driver,
        "datacenters": [d.strip() for d in datacenters.split(",") if d.strip()],
        "namespace": namespace,
        "node_pool": node_pool,
    }
    try:
        settings = RenderSettings.from_dict(
            {**_cluster(server_url), **{key: value for key, value in given.items() if value}}
        )
        if namespace:
            settings = replace(settings, namespaces={})
    except ValueError as exc:
        raise UsageError(f"{exc}.") from None
    if server_url:
        images = named(chosen, settings.to_dict(), image_repository)
    else:
        images = runner.image_names(chosen, connect(), environment or None)
    publication = runner.prepare(
        chosen,
        settings.to_dict(),
        state="deployed",
        name=name or chosen.name,
        environment=runner.environment_of(environment or None),
        images=images,
    )
    jobs = []
    for function in publication.args["functions"]:
        jobs.append(function["job"])
        schedule = function["spec"]["schedule"]
        periodic = schedule_job(function["job"], ScheduleSpec.from_dict(schedule)) if schedule else None
        if periodic is not None:
            jobs.append(periodic)
    if hcl:
        from modal_nomad.cli._hcl import to_hcl

        typer.echo("\n".join(to_hcl(job) for job in jobs), nl=False)
    else:
        typer.echo(json.dumps(jobs, indent=2, ensure_ascii=False))


def _cluster(server_url: str) -> dict[str, Any]:
    """Return the cluster's side of the settings: the configured dispatcher's, or the defaults."""
    from modal_nomad.cli._client import connect
    from modal_nomad.cli._errors import CommandError, UsageError
    from modal_nomad.config import config
    from modal_nomad.exception import ConnectionError

    if server_url:
        if not server_url.startswith(("http://", "https://")):
            raise UsageError(
                f"--server-url is {server_url!r}: containers dial http://HOST:PORT or https://HOST."
            )
        from modal_nomad.dispatcher.runtime import runtime, web

        return {"server_url": server_url.rstrip("/"), "runtime_sha": runtime()[0], "web_sha": web()[0]}
    if not config.get("server_url"):
        raise UsageError(
            "containers need the dispatcher's address: give --server-url http://HOST:PORT,"
            " or set MODAL_SERVER_URL."
        )
    try:
        return dict(connect().server.render)
    except ConnectionError as error:
        raise CommandError(f"{error}; --server-url http://HOST:PORT renders without asking it.") from None
