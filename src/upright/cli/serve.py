"""`upright serve`: the service alone, in the foreground."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from upright.cli.context import Project
from upright.config import Settings


def serve(
    project: Project = None,
    host: Annotated[str | None, typer.Option(help="Where to listen. [UPRIGHT_HOST or 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Where to listen. [UPRIGHT_PORT or 8400]")] = None,
) -> None:
    """Serve a project: take errors, run runbooks, answer. Embedded engines start where no address is set."""
    given = {"project": project, "host": host, "port": port}
    settings = Settings().model_copy(update={key: value for key, value in given.items() if value is not None})

    from upright import bootstrap

    asyncio.run(bootstrap.serve(settings))
