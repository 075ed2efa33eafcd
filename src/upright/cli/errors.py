"""`upright errors`: what has come in, what was done, and doing it again."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape

from upright.cli.context import settings_for
from upright.cli.output import AsJson, console, print_json, table
from upright.config import Settings
from upright.domain.event import Event
from upright.domain.verdict import Status
from upright.errors import NotFound, Unavailable
from upright.services.ports import RecoveryRecord

app = typer.Typer(help="List, show and re-run errors.", no_args_is_help=True)
ErrorId = Annotated[UUID, typer.Argument(metavar="ERROR_ID", help="Equals ErrorLog.error_id.")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    service: Annotated[str | None, typer.Option(help="Only of this application.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only those whose recovery stands there.")] = None,
    as_json: AsJson = False,
) -> None:
    """The latest errors, newest first."""
    settings = settings_for()

    async def read() -> list[dict[str, object]]:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as dependencies:
            return list(await dependencies.store.errors(limit=limit, service=service, status=status))

    found = asyncio.run(read())
    if as_json:
        print_json(found)
        return
    columns = ("occurred_at", "error_id", "service", "type", "severity", "status", "strategy")
    for one in found:
        one["occurred_at"] = f"{datetime.fromisoformat(str(one['occurred_at'])):%Y-%m-%d %H:%M:%S}"
    table(columns, [[one.get(column) for column in columns] for one in found], empty="No errors.")


@app.command()
def show(error_id: ErrorId, as_json: AsJson = False) -> None:
    """One error, its latest recovery, and each action of it."""
    event, recovery = asyncio.run(_read(settings_for(), error_id))
    if as_json:
        print_json({"event": event.model_dump(mode="json"), "recovery": _as_json(recovery)})
        return
    console.print(
        f"[bold]{escape(event.error.type)}[/] in {escape(event.service)}, {event.occurred_at:%Y-%m-%d %H:%M:%S}"
    )
    console.print(event.error.message, markup=False)
    if event.request is not None:
        console.print(f"{event.request.method} {event.request.path}", markup=False)
    if recovery is None:
        console.print("No recovery.")
        return
    console.print(f"Runbook {recovery.runbook}: [bold]{recovery.status.value}[/]. ", end="")
    console.print(recovery.message, markup=False)
    if recovery.relapse:
        console.print(f"It did not last: {recovery.relapse}.", markup=False)
    rows = [
        (action.strategy, action.verdict.value, action.values or "", f"{action.duration_ms:.0f} ms", action.reason)
        for action in recovery.actions
    ]
    table(("strategy", "verdict", "values", "took", "reason"), rows, empty="No actions.")
    checks = [
        (action.strategy, one.name, f"{one.before.outcome} {one.before.detail}" if one.before else "",
         f"{one.after.outcome} {one.after.detail}")
        for action in recovery.actions for one in action.checks
    ]  # fmt: skip
    if checks:
        table(("strategy", "check", "before", "after"), checks, empty="")
    if recovery.flow_run_id is not None:
        console.print(f"Flow run {recovery.flow_run_id}")


@app.command()
def rerun(error_id: ErrorId, as_json: AsJson = False) -> None:
    """Recover a past error again: a flow run under its runbook's deployment."""
    flow_run_id, name = asyncio.run(_rerun(settings_for(), error_id))
    if as_json:
        print_json({"error_id": error_id, "runbook": name, "flow_run_id": flow_run_id})
    else:
        console.print(f"Runbook {name}: flow run {flow_run_id}")


async def _read(settings: Settings, error_id: UUID) -> tuple[Event, RecoveryRecord | None]:
    from upright import bootstrap

    async with bootstrap.dependencies(settings) as dependencies:
        event = await dependencies.store.event_of(error_id)
        return event, await dependencies.store.recovery_of_error(error_id)


async def _rerun(settings: Settings, error_id: UUID) -> tuple[UUID, str]:
    from upright import bootstrap
    from upright.services.routing import Router

    bootstrap.runner_settings()
    # Prefect reads its settings when it is imported; without an address it would start a server of its own.
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    async with bootstrap.dependencies(settings) as dependencies:
        event = await dependencies.store.event_of(error_id)
        recovery = await dependencies.store.recovery_of_error(error_id)
        name = recovery.runbook if recovery else Router(dependencies.book).route(event).runbook
    try:
        async with get_client() as client:
            deployment = await client.read_deployment_by_name(f"{name}/{name}")
            run = await client.create_flow_run_from_deployment(deployment.id, parameters={"error_id": str(error_id)})
    except ObjectNotFound:
        raise NotFound(f"Prefect has no deployment {name}/{name}. `upright serve` registers it at its start.") from None
    except (OSError, httpx.HTTPError) as error:
        raise Unavailable(f"Prefect at {os.environ['PREFECT_API_URL']} does not answer: {error}") from error
    return run.id, name


def _as_json(recovery: RecoveryRecord | None) -> dict[str, object] | None:
    if recovery is None:
        return None
    from dataclasses import asdict

    data = asdict(recovery)
    for action, record in zip(data["actions"], recovery.actions, strict=True):
        action["evidence"] = record.evidence.model_dump(mode="json") if record.evidence else None
        action["checks"] = [one.model_dump(mode="json") for one in record.checks]
    return data
