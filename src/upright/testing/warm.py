"""A warm process for tests: a store on a real PostgreSQL, a runner on a real Prefect server, a scripted application."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import SecretStr

from upright.adapters import platforms, runbook_files
from upright.adapters.models import ModelLibrary
from upright.adapters.runner.runner import PrefectRunner
from upright.adapters.slack import SlackWebhooks
from upright.adapters.store import Database, PostgresStore, upgrade
from upright.bootstrap import process_name
from upright.config import Settings
from upright.domain.event import Event
from upright.domain.fingerprint import fingerprint
from upright.services.dependencies import Dependencies
from upright.services.learning.scorer import Scorer
from upright.services.ports import Dispatch, RecoveryRecord
from upright.services.routing import Router

Found = TypeVar("Found")


@dataclass
class Warm:
    dependencies: Dependencies
    runner: PrefectRunner
    store: PostgresStore

    async def accept(self, event: Event, *, queued: bool = False, **changes: Any) -> RecoveryRecord:
        """Store an event as the intake does."""
        routing = Router(self.dependencies.book).route(event)
        acceptance = await self.store.accept(
            "default",
            str(uuid4()),
            event,
            fingerprint=changes.get("fingerprint") or fingerprint(event),
            runbook=routing.runbook,
            severity=routing.severity,
            cooldown_s=routing.cooldown_s,
            queued=queued,
        )
        assert acceptance.recovery is not None  # noqa: S101 (an accepted event has one)
        return acceptance.recovery

    async def submit(self, event: Event, **changes: Any) -> RecoveryRecord:
        recovery = await self.accept(event, **changes)
        self.runner.submit(recovery)
        return recovery

    async def ended(self, recovery: RecoveryRecord) -> RecoveryRecord:
        async def final() -> RecoveryRecord | None:
            found = await self.store.recovery(recovery.id)
            return found if found.status.final else None

        return await until(final)


@contextlib.asynccontextmanager
async def warm(
    database_url: str, dispatch: Dispatch, project: Path = Path(), *, migrate: bool = True, **settings: Any
) -> AsyncGenerator[Warm]:
    """Needs PREFECT_API_URL in the environment. It learns when its scorer is told to refresh."""
    if migrate:
        await asyncio.to_thread(upgrade, database_url)
    database = await Database.open(database_url, pool_size=4)
    try:
        chosen = Settings(project=project, database_url=SecretStr(database_url), **settings)
        store = PostgresStore(database, instance_ttl_s=chosen.instance_ttl_s)
        book = runbook_files.load(project)
        scorer = Scorer(store, ModelLibrary(store, project / "models", book.priors), book.priors)
        dependencies = Dependencies(
            store, dispatch, book, chosen, process_name("test"), platforms=platforms.load(project), scorer=scorer,
            webhooks=SlackWebhooks(chosen.alert_hosts),
        )  # fmt: skip
        runner = PrefectRunner(dependencies, project)
        async with runner.running():
            yield Warm(dependencies, runner, store)
    finally:
        await database.close()


async def until(look: Callable[[], Awaitable[Found | None]], *, deadline_s: float = 30) -> Found:
    """What `look` finds, asked again until it is something true. Raises TimeoutError."""
    end = time.monotonic() + deadline_s
    while not (found := await look()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s:g} s")
        await asyncio.sleep(0.02)
    return found
