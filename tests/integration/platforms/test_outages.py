"""Outages as incidents, on a real store: one that comes back after a change is no error of before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from upright.adapters import platforms
from upright.adapters.platforms.watch import Watch
from upright.adapters.store import PostgresStore
from upright.domain.event import Event
from upright.domain.verdict import Status, Verdict
from upright.services.ports import ActionRecord, RecoveryRecord
from upright.testing.intake import FixedRouting, SubmittedRecoveries

DOWN = """
services:
  shop:
    platform: gunicorn
    pidfile: gunicorn.pid
    health_url: http://127.0.0.1:1/
    max_processes: 2
    health: {failures: 1, timeout_s: 1}
"""


@dataclass(frozen=True)
class Router:
    relapse_window_s: float

    def route(self, event: Event) -> FixedRouting:
        return FixedRouting(relapse_window_s=self.relapse_window_s)


async def outage(store: PostgresStore, project: Path, relapse_window_s: float = 600) -> list[RecoveryRecord]:
    """What a probe of a service that is down opens."""
    (project / "platforms.yaml").write_text(DOWN)
    [service] = platforms.load(project).values()
    launcher = SubmittedRecoveries()
    await Watch(store, store, Router(relapse_window_s), launcher, [service], "runner").probe(service)  # type: ignore[arg-type]
    return launcher.submitted


async def ended_by_a_change(store: PostgresStore, project: Path) -> RecoveryRecord:
    """An outage that a directive has ended, which is in force yet."""
    [opened] = await outage(store, project)
    recovery = await store.bind(opened.id, flow_run_id=uuid4(), runner="runner", lease_s=30)
    directive = await store.put_directive(
        "default", "shop", "circuit_break", "service", values={}, ttl_s=900, recovery_id=recovery.id,
        epoch=recovery.epoch,
    )  # fmt: skip
    action = ActionRecord(
        recovery.id, 0, "circuit_break", Verdict.RECOVERED, directive_version=directive.version
    )  # fmt: skip
    await store.record_action(action, epoch=recovery.epoch)
    await store.record_watch("default", "shop", "runner", failing=False)
    return await store.conclude(recovery.id, epoch=recovery.epoch, status=Status.RECOVERED, message="", explanation={})


async def test_an_outage_that_comes_back_while_a_change_is_in_force_is_a_relapse(
    store: PostgresStore, tmp_path: Path
) -> None:
    first = await ended_by_a_change(store, tmp_path)
    [again] = await outage(store, tmp_path)
    assert again.relapse_of == first.id
    assert (await store.event_of(again.error_id)).desired_version == 1


async def test_the_runbook_says_for_how_long_an_outage_is_a_relapse(store: PostgresStore, tmp_path: Path) -> None:
    first = await ended_by_a_change(store, tmp_path)
    [again] = await outage(store, tmp_path, relapse_window_s=0)
    assert again.relapse_of is None
    assert (await store.recovery(first.id)).status is Status.RECOVERED
