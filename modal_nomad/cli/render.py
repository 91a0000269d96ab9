"""``modal-nomad render``: the Nomad jobs of an App, for GitOps and Terraform. Asks no server."""

from __future__ import annotations

import json

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(no_args_is_help=True)
def render(
    reference: str = typer.Argument(
        ..., metavar="FILE.py[::APP]", help="The App; by default the variable 'app'."
    ),
    hcl: bool = typer.Option(False, "--hcl", help="HCL instead of a JSON list of jobs."),
    name: str = typer.Option("", "--name", help="Render as if deployed under this name."),
    environment: str = typer.Option("", "--env", "-e", help="Environment to render for."),
    is_module: bool = typer.Option(False, "-m", help="The reference is a dotted module path."),
    server_url: str = typer.Option(
        "", "--server-url", help="Address that containers dial; default: the configured server's."
    ),
    driver: str = typer.Option("raw_exec", "--driver", help="Nomad task driver."),
    datacenters: str = typer.Option("*", "--datacenters", help="Datacenters, separated by commas."),
    namespace: str = typer.Option("default", "--namespace", help="Nomad namespace."),
    node_pool: str = typer.Option("default", "--node-pool", help="Nomad node pool."),
) -> None:
    """Print the Nomad jobs of an App; needs no server."""
    from modal_nomad import runner
    from modal_nomad.cli._errors import UsageError
    from modal_nomad.cli.deploy import load_app
    from modal_nomad.config import config
    from modal_nomad.dispatcher.runtime import runtime
    from modal_nomad.render import RenderSettings

    chosen = load_app(reference, is_module)
    address = server_url or str(config.get("server_url") or "")
    if not address.startswith(("http://", "https://")):
        raise UsageError(
            "containers need the dispatcher's address: give --server-url http://HOST:PORT,"
            " or set MODAL_SERVER_URL."
        )
    if not (name or chosen.name):
        raise UsageError("this App has no name to deploy under; say App('my-app') or give --name.")
    try:
        settings = RenderSettings(
            server_url=address.rstrip("/"),
            runtime_sha=runtime()[0],
            driver=driver,
            datacenters=tuple(d.strip() for d in datacenters.split(",") if d.strip()),
            namespace=namespace,
            node_pool=node_pool,
        )
    except ValueError as exc:
        raise UsageError(f"{exc}.") from None
    publication = runner.prepare(
        chosen,
        settings.to_dict(),
        state="deployed",
        name=name or chosen.name,
        environment=runner.environment_of(environment or None),
    )
    jobs = [function["job"] for function in publication.args["functions"]]
    if hcl:
        from modal_nomad.cli._hcl import to_hcl

        typer.echo("\n".join(to_hcl(job) for job in jobs), nl=False)
    else:
        typer.echo(json.dumps(jobs, indent=2, ensure_ascii=False))
