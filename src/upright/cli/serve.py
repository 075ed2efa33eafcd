"""`upright serve`: the service, in the foreground, with embedded engines where no address is set."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer
from pydantic import SecretStr

from upright.adapters.stack import Stack, engines
from upright.cli import logs
from upright.cli.board import Board
from upright.cli.context import Project, announced
from upright.cli.output import errors as stderr
from upright.cli.signals import interruptible
from upright.config import Settings

WATCH_S = 0.5


def serve(
    project: Project = None,
    host: Annotated[str | None, typer.Option(help="Where to listen. [UPRIGHT_HOST or 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Where to listen. [UPRIGHT_PORT or 8400]")] = None,
    prefect_port: Annotated[
        int,
        typer.Option(
            min=0, max=65_535, envvar="UPRIGHT_PREFECT_PORT", help="Of an embedded Prefect server; 0 takes a free one."
        ),
    ] = 4200,
) -> None:
    """Serve a project: take errors, run runbooks, answer. Embedded engines start where no address is set."""
    given = {"project": project, "host": host, "port": port}
    settings = Settings().model_copy(update={key: value for key, value in given.items() if value is not None})
    logs.configure(as_json=settings.log_json)
    prefect_api_url = os.environ.get("PREFECT_API_URL")
    if settings.database_url is not None and prefect_api_url:
        asyncio.run(_serve(settings, None))
        return
    layout = engines(
        settings.data_dir,
        prefect_port=prefect_port,
        database_url=settings.database_url.get_secret_value() if settings.database_url else None,
        prefect_api_url=prefect_api_url,
    )
    settings = settings.model_copy(update={"database_url": SecretStr(layout.database_url)})
    os.environ["PREFECT_API_URL"] = layout.prefect_api_url
    board = Board(stderr, [part.name for part in layout.parts], {"Prefect server": layout.prefect_url})
    stack = Stack(layout.parts, board.changed)
    with interruptible(), board:
        stack.start()
    try:
        with announced(layout.data_dir, layout.addresses()):
            asyncio.run(_serve(settings, stack))
    finally:
        stack.stop()


async def _serve(settings: Settings, stack: Stack | None) -> None:
    from upright import bootstrap

    serving = asyncio.create_task(bootstrap.serve(settings))
    while stack is not None and not serving.done():
        await asyncio.wait({serving}, timeout=WATCH_S)
        try:
            stack.require_running()
        except BaseException:
            serving.cancel()
            await asyncio.wait({serving})
            raise
    await serving
