"""`upright up`: everything on this machine, until Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.table import Table

from upright.adapters.stack import Layout, Ports, Stack, build
from upright.cli.board import Board
from upright.cli.context import Project, announced
from upright.cli.output import console
from upright.cli.signals import interruptible
from upright.config import Settings
from upright.errors import EngineFailed

SAMPLE_SHOP = Path("examples") / "shop"


def up(
    project: Project = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where embedded engines keep their files. [UPRIGHT_DATA_DIR or .upright]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Of the service; 0 takes a free one. [UPRIGHT_PORT or 8400]"),
    ] = None,
    prefect_port: Annotated[
        int,
        typer.Option(
            min=0, max=65_535, envvar="UPRIGHT_PREFECT_PORT", help="Of the Prefect server; 0 takes a free one."
        ),
    ] = 4200,
    shop_port: Annotated[
        int,
        typer.Option(min=0, max=65_535, envvar="UPRIGHT_SHOP_PORT", help="Of the sample shop; 0 takes a free one."),
    ] = 8000,
    shop: Annotated[
        bool, typer.Option(help="Start the sample shop too, where the project has it (examples/shop).")
    ] = True,
) -> None:
    """Start everything on this machine, on embedded engines where no address is set, and stay until Ctrl-C."""
    settings = Settings()
    project = project or settings.project
    shop_dir = project / SAMPLE_SHOP
    with interruptible():
        layout = build(
            data_dir or settings.data_dir,
            project,
            ports=Ports(settings.port if port is None else port, prefect_port, shop_port),
            shop_dir=shop_dir.absolute() if shop and shop_dir.is_dir() else None,
            database_url=settings.database_url.get_secret_value() if settings.database_url else None,
            prefect_api_url=os.environ.get("PREFECT_API_URL"),
        )
        try:
            run(layout)
        except KeyboardInterrupt:
            console.print("Stopped.")


def run(layout: Layout) -> None:
    """Raises KeyboardInterrupt when asked to end, EngineFailed when a part ends by itself; everything is stopped."""
    details = {"Upright service": layout.service_url, "Prefect server": layout.prefect_url}
    if layout.shop is not None:
        details["Shop"] = layout.shop.url
    names = [part.name for part in layout.parts]
    board = Board(console, names, details)
    stack = Stack(layout.parts, board.changed)
    with board:
        stack.start()
    try:
        with announced(layout.data_dir, layout.addresses()):
            console.print(welcome(layout))
            stack.watch(until=lambda: False)
    except EngineFailed:
        console.print("A part has ended; stopping the others.")
        raise
    finally:
        stack.stop()


def welcome(layout: Layout) -> Panel:
    grid = Table.grid(padding=(0, 2))
    rows = [
        ("Sample shop", layout.shop.url if layout.shop else ""),
        ("Prefect UI", f"{layout.prefect_url}/runs"),
        ("API docs", f"{layout.service_url}/docs"),
        ("Logs", str(layout.data_dir)),
    ]
    for name, value in rows:
        if value:
            grid.add_row(f"[bold]{name}[/]", f"[cyan]{value}[/]")
    return Panel(grid, title="Upright is up", subtitle="Ctrl-C stops everything", expand=False, border_style="green")
