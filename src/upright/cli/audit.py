"""`upright audit`: who or what did what, when and why."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from upright.cli.context import settings_for
from upright.cli.output import AsJson, print_json, table

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _seconds(value: str) -> str:
    if not re.fullmatch(r"\d{1,6}[smhdw]", value):
        raise typer.BadParameter("must be a number and s, m, h, d or w, such as 7d")
    return value


def audit(
    since: Annotated[str, typer.Option("--since", callback=_seconds, help="Such as 30m, 12h, 7d.")] = "1d",
    service: Annotated[str | None, typer.Option("--service", help="Only of this application.")] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Only of what begins so, such as a recovery.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000)] = 1000,
    as_json: AsJson = False,
) -> None:
    """The audit trail, newest first."""
    settings = settings_for()
    since_s = float(since[:-1]) * _UNITS[since[-1]]

    async def read() -> Sequence[dict[str, Any]]:
        from upright import bootstrap
        from upright.adapters.store import PostgresStore

        async with bootstrap.dependencies(settings) as found:
            store = found.store
            assert isinstance(store, PostgresStore)  # noqa: S101 (dependencies() has made it)
            return await store.audit(since_s=since_s, service=service, subject=subject, limit=limit)

    found = asyncio.run(read())
    if as_json:
        print_json(found)
        return
    columns = ("at", "service", "who", "what", "subject", "why")
    rows = [(f"{one['at']:%Y-%m-%d %H:%M:%S}", *(one[name] for name in columns[1:])) for one in found]
    table(columns, rows, empty="Nothing was done.")
