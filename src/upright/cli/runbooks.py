"""`upright runbooks`: what a project answers errors with."""

from __future__ import annotations

import typer
from rich.markup import escape

from upright.adapters import runbook_files
from upright.cli.context import Project, settings_for
from upright.cli.output import AsJson, console, errors, print_json, table
from upright.errors import RunbookError

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
    if as_json:
        print_json({"valid": True, "problems": [], "runbooks": count})
    else:
        console.print(f"{count} runbooks are valid.")
