"""`upright approvals`: runs that wait for a person."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape

from upright.cli.context import settings_for
from upright.cli.guardrails import By, Why
from upright.cli.output import AsJson, console, print_json, table
from upright.errors import UprightError
from upright.services.guardrails import Approval

app = typer.Typer(help="See and decide what waits for a person.", no_args_is_help=True)
ApprovalId = Annotated[UUID, typer.Argument(metavar="ID", help="As `list` and the e-mail tell it.")]


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Those that are decided or expired too.")] = False,
    as_json: AsJson = False,
) -> None:
    """What waits for a decision, newest first."""
    settings = settings_for()

    async def read() -> Sequence[Approval]:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            return await found.store.approvals(waiting=not all_)

    found = asyncio.run(read())
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [
        (one.id, one.service, one.runbook, one.strategy, one.plan, one.status, f"{one.expires_at:%Y-%m-%d %H:%M}")
        for one in found
    ]
    columns = ("id", "service", "runbook", "strategy", "would be done", "status", "until")
    table(columns, rows, empty="Nothing waits for approval.")


@app.command()
def approve(approval_id: ApprovalId, by: By, why: Why = "") -> None:
    """Let the run carry it out."""
    _decide(approval_id, approve=True, by=by, why=why)


@app.command()
def reject(approval_id: ApprovalId, by: By, why: Why = "") -> None:
    """Let the run go on without it."""
    _decide(approval_id, approve=False, by=by, why=why)


def _decide(approval_id: UUID, *, approve: bool, by: str, why: str) -> None:
    settings = settings_for()
    wanted = "approved" if approve else "rejected"

    async def work() -> Approval:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            before = await found.store.approval(approval_id)
            if before.status != "waiting":
                raise UprightError(_told(before))
            return await found.store.decide(approval_id, approve=approve, by=by, via="command line", why=why)

    answer = asyncio.run(work())
    if answer.status != wanted or answer.decided_by != by:
        raise UprightError(_told(answer))
    console.print(f"{wanted.title()}: {escape(answer.plan)}")


def _told(answer: Approval) -> str:
    by = f" by {answer.decided_by} ({answer.via})" if answer.decided_by else ""
    return f"It is {answer.status} already{by}."
