"""`upright trust`: how far runbooks and strategies are trusted, and why one may trust them more or less."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.markup import escape

from upright.cli.context import settings_for
from upright.cli.guardrails import By, Why
from upright.cli.output import AsJson, console, print_json, table
from upright.domain.guardrails import Trust
from upright.errors import NotFound
from upright.services.dependencies import Dependencies
from upright.services.guardrails.guard import ceiling, trusted
from upright.services.guardrails.trust import promotion

app = typer.Typer(help="See and set how far runbooks and strategies are trusted.", no_args_is_help=True)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Each strategy of each runbook: its level, its measured success, and whether more trust is proposed."""
    settings = settings_for()

    async def read() -> list[dict[str, Any]]:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            return await _levels(found)

    found = asyncio.run(read())
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{one['runbook']}/{one['strategy']}",
            one["level"],
            one["ceiling"],
            f"{one['successes']} of {one['verified']}",
            f"{one['at_least']:.0%}–{one['at_most']:.0%}" if one["verified"] else "",
            one["proposal"] or one["note"],
        )
        for one in found
    ]
    table(("strategy", "trust", "at most", "recovered", "success", ""), rows, empty="No runbooks.")


async def _levels(found: Dependencies) -> list[dict[str, Any]]:
    settings, rules = await found.store.trust(), found.book.guardrails.trust
    levels: list[dict[str, Any]] = []
    for runbook in found.book:
        for step in runbook.steps:
            level = trusted(found.book.guardrails, runbook, step, settings)
            allowed = ceiling(found.book.guardrails, runbook, step)
            record = await found.store.track_record(runbook.name, step.strategy, rules.window)
            shadow = await found.store.shadow_decisions(runbook.name, step.strategy) if level is Trust.SHADOW else 0
            at_least, at_most = record.surely
            decided = [one for one in settings if one.runbook == runbook.name and one.strategy in ("", step.strategy)]
            why = promotion(rules, level, allowed, record)
            notes = [f"{one.level} by {one.by}: {one.why}".rstrip(": ") for one in decided]
            if shadow:
                notes.append(f"would have acted {shadow} times")
            levels.append(
                {
                    "runbook": runbook.name,
                    "strategy": step.strategy,
                    "level": level.value,
                    "ceiling": allowed.value,
                    "successes": record.successes,
                    "verified": record.total,
                    "at_least": round(at_least, 3),
                    "at_most": round(at_most, 3),
                    "proposal": f"auto proposed: {why}" if why else "",
                    "note": "; ".join(notes),
                }
            )
    return levels


@app.command("set")
def set_(
    which: Annotated[str, typer.Argument(metavar="RUNBOOK[/STRATEGY]")],
    level: Annotated[Trust, typer.Argument()],
    by: By,
    why: Why = "",
) -> None:
    """Set it, at once and for every replica. What the files say stays the ceiling."""
    settings = settings_for()
    name, _, strategy = which.partition("/")

    async def work() -> Trust:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            runbook = found.book.runbook(name)
            steps = [step for step in runbook.steps if strategy in ("", step.strategy)]
            if not steps:
                known = ", ".join(step.strategy for step in runbook.steps)
                raise NotFound(f"runbook {name!r} has no strategy {strategy!r}; it has {known}")
            await found.store.set_trust(name, strategy, level, by=by, why=why)
            return max((ceiling(found.book.guardrails, runbook, step) for step in steps), key=lambda one: one.rank)

    allowed = asyncio.run(work())
    console.print(f"{escape(which)}: {level}")
    if allowed.rank < level.rank:
        console.print(f"Its file allows no more than {allowed}, which counts until the file is changed.")
