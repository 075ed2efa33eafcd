"""`upright stop` and `upright start`: the kill switch."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.markup import escape

from upright.cli.context import settings_for
from upright.cli.guardrails import By
from upright.cli.output import console
from upright.errors import NotFound
from upright.services.guardrails import EVERY

Service = Annotated[str | None, typer.Option("--service", help="Only for this application. [all of them]")]
Tenant = Annotated[str, typer.Option("--tenant", help="To which the service belongs.")]
Reason = Annotated[str, typer.Option("--why", help="Told in every answer and alert meanwhile.")]


def stop(by: By, why: Reason, service: Service = None, tenant: Tenant = "default") -> None:
    """Stop recovery at once: nothing is touched any more, and what is in force is withdrawn. Errors are still recorded,
    and people told."""
    settings = settings_for()

    async def work() -> int:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            where = _where(service, tenant)
            return await found.store.stop(*where, origin="operator", by=by, why=why)

    withdrawn = asyncio.run(work())
    console.print(f"Recovery is stopped {_told(service)}. Changes withdrawn: {withdrawn}.")


def start(by: By, service: Service = None, tenant: Tenant = "default", why: Reason = "") -> None:
    """Start it again where `upright stop` was said with the same `--service`."""
    settings = settings_for()

    async def work() -> int:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            where = _where(service, tenant)
            return await found.store.start(*where, origin="operator", by=by, why=why)

    if not asyncio.run(work()):
        raise NotFound(f"recovery was not stopped {_told(service)}; see `upright guardrails status`")
    console.print(f"Recovery is started {_told(service)}.")


def _where(service: str | None, tenant: str) -> tuple[str, str]:
    return (EVERY, EVERY) if service is None else (tenant, service)


def _told(service: str | None) -> str:
    return "everywhere" if service is None else f"for {escape(service)}"
