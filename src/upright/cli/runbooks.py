"""`upright runbooks`: what a project answers errors with."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import typer
from rich.markup import escape

from upright.adapters import runbook_files
from upright.cli.context import Project, settings_for
from upright.cli.output import AsJson, console, errors, print_json, table
from upright.config import Settings
from upright.errors import RunbookError
from upright.services.book import Book
from upright.services.strategies import STRATEGIES

app = typer.Typer(help="List and check the runbooks of a project.", no_args_is_help=True)


@app.command("list")
def list_(project: Project = None, as_json: AsJson = False) -> None:
    """Runbooks with what they match and the strategies they try."""
    book = runbook_files.load(settings_for(project).project)
    if as_json:
        print_json([runbook.model_dump(mode="json") for runbook in book])
        return
    rows = [
        (runbook.name, ", ".join(runbook.matches[:3]) + (" …" if len(runbook.matches) > 3 else ""), _steps(runbook))
        for runbook in book
    ]
    table(("runbook", "matches", "strategies"), rows, empty="No runbooks.")


def _steps(runbook: runbook_files.Runbook) -> str:
    return " → ".join(step.strategy for step in runbook.steps)


@app.command()
def validate(project: Project = None, as_json: AsJson = False) -> None:
    """Check every file; each problem is told with its file, line and what is allowed."""
    try:
        book = runbook_files.load(settings_for(project).project)
    except RunbookError as error:
        if as_json:
            print_json({"valid": False, "problems": error.problems})
        else:
            for problem in error.problems:
                errors.print(escape(problem), style="red", soft_wrap=True)
        raise typer.Exit(1) from None
    count = len(list(book))
    warnings = list(_unannounced(book, settings_for(project)))
    if as_json:
        print_json({"valid": True, "problems": [], "warnings": warnings, "runbooks": count})
    else:
        for warning in warnings:
            errors.print(escape(warning), style="yellow", soft_wrap=True)
        console.print(f"{count} runbooks are valid.")


def _unannounced(book: Book, settings: Settings) -> Iterator[str]:
    """Custom strategies that no live process of an application can carry out; silent where nobody can be asked."""
    used = {
        step.strategy: runbook.name for runbook in book for step in runbook.steps if step.strategy not in STRATEGIES
    }
    if not used or settings.database_url is None:
        return
    try:
        with psycopg.connect(settings.database_url.get_secret_value(), connect_timeout=5) as connection:
            rows = connection.execute(
                "SELECT DISTINCT jsonb_object_keys(COALESCE(capabilities -> 'strategies', '{}')) FROM upright.instance"
                " WHERE gone_at IS NULL AND seen_at > clock_timestamp() - make_interval(secs => %s)",
                [settings.instance_ttl_s],
            ).fetchall()
    except psycopg.Error as error:
        yield f"It can't be told whether custom strategies are announced: {error}"
        return
    announced = {str(row[0]) for row in rows}
    for strategy, runbook in used.items():
        if strategy not in announced:
            yield f"{runbook}: no live process of an application announces {strategy}; its steps will be skipped"
