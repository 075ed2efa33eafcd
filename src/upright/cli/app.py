"""The root command: what there is, and how failures are told."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.markup import escape

from upright.cli import (
    alerts,
    approvals,
    audit,
    doctor,
    errors,
    guardrails,
    init,
    model,
    runbooks,
    serve,
    switch,
    trust,
    up,
)
from upright.cli.output import errors as stderr
from upright.errors import UprightError

app = typer.Typer(
    help="Runbooks that put a Django application back on its feet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("init")(init.init)
app.command("up")(up.up)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.add_typer(errors.app, name="errors")
app.add_typer(alerts.app, name="alerts")
app.add_typer(model.app, name="model")
app.add_typer(runbooks.app, name="runbooks")
app.add_typer(guardrails.app, name="guardrails")
app.add_typer(approvals.app, name="approvals")
app.add_typer(trust.app, name="trust")
app.command("stop")(switch.stop)
app.command("start")(switch.start)
app.command("audit")(audit.audit)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"upright {version('upright')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line. Exit status: 0 done, 1 failed, 2 used wrongly, 130 interrupted."""
    try:
        app()
    except ValidationError as error:
        for problem in error.errors():
            where = "_".join(str(part) for part in problem["loc"]).upper()
            stderr.print(f"[bold red]UPRIGHT_{escape(where)}[/]: {escape(problem['msg'])}")
        sys.exit(2)
    except SettingsError as error:
        # Its cause may show the value, which may be a secret.
        named = re.search(r'field "(\w+)"', str(error))
        where = f"UPRIGHT_{named[1].upper()}" if named else "A setting"
        stderr.print(f"[bold red]{where}[/]: is not JSON of the form that docs/settings.md shows")
        sys.exit(2)
    except UprightError as error:
        stderr.print(f"[bold red]Error:[/] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
