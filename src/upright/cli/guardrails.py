"""`upright guardrails`: what recoveries are kept from, and letting them again."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from upright.cli.context import settings_for
from upright.cli.output import AsJson, console, print_json, table
from upright.services.guardrails import Hold, Switch

app = typer.Typer(help="See what keeps recoveries from acting, and reset it.", no_args_is_help=True)
By = Annotated[str, typer.Option("--by", help="Who says so; for the audit trail.")]
Why = Annotated[str, typer.Option("--why", help="Why; for the audit trail.")]


@app.command()
def status(as_json: AsJson = False) -> None:
    """Where recovery is stopped, and what is on hold."""
    settings = settings_for()

    async def read() -> tuple[list[Switch], list[Hold]]:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            return list(await found.store.switches()), list(await found.store.holds())

    switches, holds = asyncio.run(read())
    if as_json:
        print_json({"stopped": [asdict(one) for one in switches], "holds": [asdict(one) for one in holds]})
        return
    rows = [(one.tenant, one.service, one.by, one.why, f"{one.at:%Y-%m-%d %H:%M}") for one in switches]
    table(("tenant", "stopped", "by", "why", "since"), rows, empty="Recovery is stopped nowhere.")
    rows = [(one.service, one.fingerprint or "all", one.reason, f"{one.until:%Y-%m-%d %H:%M}") for one in holds]
    table(("service", "on hold", "because", "until"), rows, empty="Nothing is on hold.")


@app.command()
def reset(
    which: Annotated[str, typer.Argument(metavar="FINGERPRINT|SERVICE", help="As `status` and the alert tell it.")],
    by: By,
    why: Why = "",
) -> None:
    """End holds of an error or a whole service, and forget the failures that led to them."""
    settings = settings_for()

    async def work() -> None:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            await found.store.reset(which, by=by, why=why)

    asyncio.run(work())
    console.print(f"{escape(which)}: failures are counted anew.")
