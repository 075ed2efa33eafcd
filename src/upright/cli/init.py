"""`upright init`: a project of one's own, from what ships with Upright."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from upright.adapters import default_project
from upright.cli.output import console


def init(
    directory: Annotated[Path, typer.Argument(help="Directory to make; it may exist if it has none of the files.")],
) -> None:
    """Make a project: flows, runbooks, models, prefect.yaml and platforms.yaml, yours to edit."""
    default_project.make(directory)
    console.print(f"Made a project in [bold]{escape(str(directory))}[/]. Next:", soft_wrap=True)
    console.print(f"  upright runbooks validate --project {directory}", soft_wrap=True, markup=False)
    console.print(f"  upright serve --project {directory}", soft_wrap=True, markup=False)
