"""Recoveries that scale and restart a real gunicorn, on a real store. The load or fault stays on while it is judged."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from upright.adapters import platforms, runbook_files
from upright.adapters.platforms.reverts import Reverts
from upright.adapters.store import PostgresStore
from upright.config import Settings
from upright.domain.check import Check
from upright.domain.directive import AlertSettings, Command, CommandResult, SyncRequest
from upright.domain.event import Event
from upright.domain.guardrails import Guardrails
from upright.domain.runbook import Runbook
from upright.domain.severity import Severity
from upright.domain.verdict import Evidence, Status, Verdict
from upright.services.book import Book
from upright.services.dependencies import Dependencies
from upright.services.guardrails.ports import Occupant
from upright.services.ports import ActionRecord, Prober
from upright.services.recovery import Recovery
from upright.testing.events import error_event
from upright.testing.intake import Replica, eventually
from upright.testing.ports import ScriptedDispatch

from .conftest import Shop, fetch

PROJECT = Path(__file__).parents[3]
TIMEOUT = ("builtins.TimeoutError", "builtins.OSError")
MEMORY = ("builtins.MemoryError",)


class Surroundings:
    """What a recovery works with: one runbook of one step."""

    def __init__(self, replica: Replica, project: Path, dispatch: ScriptedDispatch | None = None) -> None:
        self.replica, self.store = replica, replica.store
        self.project, self.dispatch = project, dispatch or ScriptedDispatch()
        self.runner = f"runner-{uuid4().hex}"
        self.guardrails = Guardrails()
        self.prober: Prober | None = None
        self.checks: list[dict[str, Any]] = []

    def configure(self, *shops: Shop, **changes: Any) -> None:
        lines = ["services:", "  django:", "    platform: gunicorn", "    max_processes: 4", "    replicas:"]
        for number, shop in enumerate(shops):
            lines += [
                f"      - name: shop{number}",
                f"        pidfile: {shop.pidfile}",
                f"        health_url: {shop.url}",
            ]
        lines += [f"    {key}: {value}" for key, value in {"health": "{timeout_s: 1}", **changes}.items()]
        (self.project / "platforms.yaml").write_text("\n".join(lines))

    async def connect(self, *, auto: bool = True, most: float = 3.0, instance: str = "host:1:boot") -> None:
        settings = AlertSettings(auto_scale_on_error=auto, max_scale_factor=most)
        capabilities = {"commands": ["apply", "replay", "probe"]}
        await self.store.sync(
            "default",
            SyncRequest(service="django", instance=instance, settings=settings, capabilities=dict(capabilities)),
        )

    async def begin(self, event: Event, strategy: str, *, ttl_s: float = 900, **parameters: Any) -> Recovery:
        step = {"strategy": strategy, "parameters": parameters, "timeout_s": 30, "ttl_s": ttl_s}
        runbook = Runbook.model_validate({"name": "one-step", "steps": [step], "verification": {"checks": self.checks}})
        book = Book({"one-step": runbook}, runbook_files.load(PROJECT).severities, guardrails=self.guardrails)
        dependencies = Dependencies(
            self.store, self.dispatch, book, Settings(), self.runner, prober=self.prober,
            platforms=platforms.load(self.project),
        )  # fmt: skip
        await self.store.accept(
            "default",
            str(uuid4()),
            event,
            fingerprint=uuid4().hex,
            runbook="one-step",
            severity=Severity.HIGH,
            cooldown_s=60,
        )
        return await Recovery.begin(
            dependencies, str(event.error_id), runbook="one-step", flow_run_id=uuid4(), attempt=1
        )

    async def recover(self, event: Event, strategy: str, **changes: Any) -> ActionRecord:
        recovery = await self.begin(event, strategy, **changes)
        ranking = await recovery.score()
        if ranking.tried:
            acted = await recovery.act(ranking.tried[0])
            if acted.settled is None:
                await recovery.verify(acted)
        await recovery.conclude()
        return recovery.actions[0]


@pytest.fixture
def surroundings(replica: Replica, tmp_path: Path) -> Surroundings:
    return Surroundings(replica, tmp_path)


async def test_workers_are_added_under_load_and_taken_away_when_that_is_over(
    surroundings: Surroundings, shop: Shop, busy: list[socket.socket]
) -> None:
    surroundings.configure(shop)
    await surroundings.connect()
    action = await surroundings.recover(error_event(TIMEOUT, waits=False), "resource_scale", ttl_s=1)
    assert action.verdict is Verdict.RECOVERED, action.reason
    assert action.before["processes"] == {"shop0": 2}
    assert action.after["processes"] == {"shop0": 3}
    assert action.evidence is not None
    assert action.evidence.kind == "health"
    assert len(shop.workers()) == 3

    for one in busy:
        one.close()
    # Another replica of Upright than the one that did it.
    reverts = Reverts(surroundings.store, platforms.load(surroundings.project), "another")
    task = asyncio.create_task(reverts.run())
    try:

        async def reverted() -> bool:
            return not await surroundings.store.scalings("default", "django")

        await eventually(reverted, 40)
    finally:
        task.cancel()
    assert len(shop.workers()) == 2
    audit = {one["what"]: one for one in await surroundings.store.audit(since_s=120, service="django")}
    assert "scaling.put" in audit
    trail: Any = audit["scaling.reverted"]
    assert trail["before"]["processes"] == 3
    assert trail["after"] == {"processes": 2}


async def test_workers_that_do_not_help_are_taken_away_at_once(surroundings: Surroundings, shop: Shop) -> None:
    surroundings.configure(shop)
    await surroundings.connect()
    (shop.directory / "sick").touch()
    action = await surroundings.recover(error_event(TIMEOUT, waits=False), "resource_scale")
    assert action.verdict is Verdict.NOT_RECOVERED
    assert len(shop.workers()) == 2
    assert not await surroundings.store.scalings("default", "django")


async def test_one_scaling_after_another_counts_from_the_start(
    surroundings: Surroundings, shop: Shop, busy: list[socket.socket]
) -> None:
    surroundings.configure(shop)
    await surroundings.connect(most=1.5)
    assert (await surroundings.recover(error_event(TIMEOUT, waits=False), "resource_scale")).verdict is (
        Verdict.RECOVERED
    )
    again = await surroundings.recover(error_event(TIMEOUT, waits=False), "resource_scale", scale_factor=3.0)
    assert again.verdict is Verdict.SKIPPED
    assert "MAX_SCALE_FACTOR is 1.5" in again.reason
    assert len(shop.workers()) == 3


async def test_what_works_is_left_alone(surroundings: Surroundings, shop: Shop) -> None:
    surroundings.configure(shop)
    await surroundings.connect()
    workers = shop.workers()
    for strategy in ("resource_scale", "service_restart"):
        action = await surroundings.recover(later_than(shop, TIMEOUT), strategy)
        assert action.verdict is Verdict.UNKNOWN
        assert "worked before it" in action.reason
    assert shop.workers() == workers


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        ({"auto": False}, {}, "AUTO_SCALE_ON_ERROR is not set"),
        ({"most": 1.0}, {}, "MAX_SCALE_FACTOR is 1"),
        ({}, {"max_processes": 2}, "max_processes 2"),
        (None, {}, "no process of the service has said"),
    ],
)
async def test_nothing_is_added_that_is_not_allowed(
    surroundings: Surroundings, shop: Shop, settings: dict[str, Any] | None, changes: dict[str, Any], reason: str
) -> None:
    surroundings.configure(shop, **changes)
    if changes:
        path = surroundings.project / "platforms.yaml"
        path.write_text(path.read_text().replace("    max_processes: 4\n", ""))
    if settings is not None:
        await surroundings.connect(**settings)
    (shop.directory / "sick").touch()
    action = await surroundings.recover(error_event(TIMEOUT, waits=False), "resource_scale")
    assert action.verdict is Verdict.SKIPPED
    assert reason in action.reason
    assert len(shop.workers()) == 2


async def test_where_memory_ran_out_the_worker_that_grew_is_replaced(surroundings: Surroundings, shop: Shop) -> None:
    grown = int(fetch(shop.port, "/grow")[1])
    surroundings.configure(shop)
    dispatch = surroundings.dispatch
    await surroundings.connect()

    async def answer(command: Command) -> CommandResult:
        outcome = "failed" if grown in shop.workers() else "passed"
        return CommandResult(
            command_id=command.id, status="done", evidence=Evidence(kind="anonymous_replay", outcome=outcome)
        )

    dispatch.agent = answer
    recovery = await surroundings.begin(error_event(MEMORY, waits=False), "resource_scale")
    ranking = await recovery.score()
    assert ranking.tried, ranking.skipped[0].unmet
    acted = await recovery.act(ranking.tried[0])
    assert acted.plan is not None
    assert grown in acted.plan.values["recycle"]["shop0"]
    assert acted.settled is None, acted.reason
    await surroundings.connect(instance=f"host:{shop.workers()[-1]}:new")
    assert (await recovery.verify(acted)).verdict is Verdict.RECOVERED
    assert grown not in shop.workers()
    assert len(shop.workers()) == 2


async def test_the_process_that_failed_is_the_one_that_shows_the_failure(
    surroundings: Surroundings, shop: Shop
) -> None:
    surroundings.configure(shop)
    event = error_event(MEMORY, waits=False)
    asked: list[str] = []

    class Dispatch(ScriptedDispatch):
        async def to_agent(
            self, tenant: str, service: str, command: Command, instance: str | None = None
        ) -> CommandResult | None:
            asked.append(str(instance))
            # Only what has grown has no memory left.
            outcome = "failed" if instance == event.instance else "passed"
            return CommandResult(
                command_id=command.id, status="done", evidence=Evidence(kind="anonymous_replay", outcome=outcome)
            )

    surroundings.dispatch = Dispatch()
    fetch(shop.port, "/grow")
    await surroundings.connect(instance=event.instance)
    await surroundings.connect(instance="host:2:another")
    recovery = await surroundings.begin(event, "resource_scale")
    acted = await recovery.act((await recovery.score()).tried[0])
    assert asked == [event.instance]
    assert acted.settled is None, acted.reason
    await surroundings.connect(instance=f"host:{shop.workers()[-1]}:new")
    assert (await recovery.verify(acted)).verdict is Verdict.RECOVERED


def later_than(shop: Shop, *chains: tuple[str, ...]) -> Event:
    """An error of processes that are still there."""
    event = error_event(*chains, waits=False)
    return event.model_copy(update={"occurred_at": datetime.now(UTC) + timedelta(seconds=1)})


async def test_hung_workers_are_replaced_and_the_health_address_is_the_evidence(
    surroundings: Surroundings, shop: Shop
) -> None:
    surroundings.configure(shop)
    old = shop.workers()
    shop.hang(*old)
    action = await surroundings.recover(later_than(shop, TIMEOUT), "service_restart")
    assert action.verdict is Verdict.RECOVERED, action.reason
    assert action.evidence is not None
    assert action.evidence.kind == "health"
    assert not set(old) & set(shop.workers())


async def test_what_only_a_check_of_the_runbook_sees_is_reason_enough_to_restart(
    surroundings: Surroundings, shop: Shop
) -> None:
    surroundings.configure(shop)
    old = shop.workers()

    class Stuck:
        """A queue that the old workers hold up."""

        async def probe(self, check: Check) -> Evidence:
            return Evidence(kind="tcp", outcome="failed" if set(old) & set(shop.workers()) else "passed")

    surroundings.prober = Stuck()
    surroundings.checks = [{"kind": "tcp", "host": "queue", "port": 1}]
    action = await surroundings.recover(later_than(shop, TIMEOUT), "service_restart")
    assert action.verdict is Verdict.RECOVERED, action.reason
    assert not set(old) & set(shop.workers())


async def test_only_the_replica_that_fails_is_restarted(surroundings: Surroundings, start: Callable[..., Shop]) -> None:
    well, ill = start("well"), start("ill")
    surroundings.configure(well, ill)
    kept = well.workers()
    ill.hang(*ill.workers())
    action = await surroundings.recover(later_than(ill, TIMEOUT), "service_restart")
    assert action.verdict is Verdict.RECOVERED, action.reason
    assert well.workers() == kept
    assert "restarted shop1" in action.reason


async def test_replicas_are_restarted_one_after_the_other_up_to_the_first_that_fails(
    surroundings: Surroundings, start: Callable[..., Shop]
) -> None:
    first, second = start("first"), start("second")
    surroundings.configure(first, second)
    kept = second.workers()
    for one in (first, second):
        (one.directory / "sick").touch()
        one.break_deploy()
    action = await surroundings.recover(later_than(first, TIMEOUT), "service_restart")
    assert action.verdict is Verdict.FAILED
    assert "shop0: nothing was touched: the application does not load" in action.reason
    assert second.workers() == kept


@pytest.mark.parametrize(
    ("guardrails", "verdict", "reason"),
    [
        (Guardrails(), Verdict.REFUSED, "1 of 1 service_restart actions in django at the same time"),
        # The lock holds where limits were lifted, and between restarting and scaling.
        (Guardrails(strategies={}), Verdict.SKIPPED, "another recovery is scaling or restarting"),
    ],
    ids=["limited", "unlimited"],
)
async def test_two_recoveries_do_not_restart_a_service_at_the_same_time(
    surroundings: Surroundings, shop: Shop, guardrails: Guardrails, verdict: Verdict, reason: str
) -> None:
    surroundings.guardrails = guardrails
    surroundings.configure(shop)
    shop.hang(*shop.workers())
    one, other = await asyncio.gather(
        surroundings.recover(later_than(shop, TIMEOUT), "service_restart"),
        surroundings.recover(later_than(shop, MEMORY), "service_restart"),
    )
    assert {one.verdict, other.verdict} == {Verdict.RECOVERED, verdict}
    assert reason in one.reason + other.reason


async def test_a_restart_keeps_what_was_added_for_a_time(
    surroundings: Surroundings, shop: Shop, busy: list[socket.socket]
) -> None:
    surroundings.configure(shop)
    await surroundings.connect()
    await surroundings.recover(error_event(TIMEOUT, waits=False), "resource_scale")
    assert len(shop.workers()) == 3
    shop.hang(*shop.workers())
    action = await surroundings.recover(later_than(shop, TIMEOUT), "service_restart", timeout_seconds=10)
    assert action.verdict is Verdict.RECOVERED, action.reason
    assert len(shop.workers()) == 3


async def test_the_answer_of_a_caller_that_died_with_its_worker_is_told_by_sync(
    surroundings: Surroundings, shop: Shop, store: PostgresStore
) -> None:
    surroundings.configure(shop)
    shop.hang(*shop.workers())
    event = later_than(shop, TIMEOUT).model_copy(update={"waiter": None})
    assert (await surroundings.recover(event, "service_restart")).verdict is Verdict.RECOVERED
    told = await store.undelivered_outcomes("default", "django")
    assert [one.error_id for one in told] == [event.error_id]
    assert told[0].report["status"] == Status.RECOVERED


async def test_a_caller_that_waits_repeats_its_own_request_after_workers_were_added(
    surroundings: Surroundings, shop: Shop
) -> None:
    surroundings.configure(shop)
    await surroundings.connect()
    seen: list[tuple[str, int]] = []

    async def waiter(command: Command) -> CommandResult:
        seen.append((command.kind, len(shop.workers())))
        return CommandResult(command_id=command.id, status="done", evidence=Evidence(kind="replay", outcome="passed"))

    surroundings.dispatch.waiter = waiter
    action = await surroundings.recover(error_event(TIMEOUT), "resource_scale")
    assert action.verdict is Verdict.RECOVERED
    assert seen == [("replay", 3)]


async def test_a_caller_that_is_gone_claims_nothing(surroundings: Surroundings, shop: Shop) -> None:
    surroundings.configure(shop)
    await surroundings.connect()

    async def waiter(command: Command) -> None:
        return None

    surroundings.dispatch.waiter = waiter
    action = await surroundings.recover(error_event(TIMEOUT), "resource_scale")
    assert action.verdict is Verdict.UNKNOWN
    assert len(shop.workers()) == 2


async def test_workers_that_could_not_be_taken_away_at_once_are_later(surroundings: Surroundings, shop: Shop) -> None:
    surroundings.configure(shop)
    await surroundings.connect()
    (shop.directory / "sick").touch()
    recovery = await surroundings.begin(error_event(TIMEOUT, waits=False), "resource_scale")
    acted = await recovery.act((await recovery.score()).tried[0])
    pidfile = shop.pidfile.read_text()
    shop.pidfile.unlink()
    assert (await recovery.verify(acted)).verdict is Verdict.NOT_RECOVERED
    await recovery.conclude()
    assert len(shop.workers()) == 3
    shop.pidfile.write_text(pidfile)
    reverts = Reverts(surroundings.store, platforms.load(surroundings.project), "another")
    task = asyncio.create_task(reverts.run())
    try:

        async def reverted() -> bool:
            return not await surroundings.store.scalings("default", "django") and len(shop.workers()) == 2

        await eventually(reverted, 40)
    finally:
        task.cancel()


# Stopping


async def stop(surroundings: Surroundings) -> None:
    await surroundings.store.stop("default", "django", origin="operator", by="ann", why="deploy")


async def test_what_was_added_is_taken_away_when_recovery_is_stopped(
    surroundings: Surroundings, shop: Shop, busy: list[socket.socket]
) -> None:
    surroundings.configure(shop)
    await surroundings.connect()
    assert (await surroundings.recover(error_event(TIMEOUT, waits=False), "resource_scale")).verdict is (
        Verdict.RECOVERED
    )
    assert len(shop.workers()) == 3
    for one in busy:
        one.close()
    await stop(surroundings)
    reverts = asyncio.create_task(Reverts(surroundings.store, platforms.load(surroundings.project), "another").run())
    try:

        async def reverted() -> bool:
            return not await surroundings.store.scalings("default", "django")

        await eventually(reverted, 40)
    finally:
        reverts.cancel()
    assert len(shop.workers()) == 2


@pytest.mark.parametrize("strategy", ["resource_scale", "service_restart"])
async def test_a_stop_while_it_looks_at_the_service_leaves_it_alone(
    surroundings: Surroundings, shop: Shop, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    surroundings.configure(shop)
    await surroundings.connect()
    shop.hang(*shop.workers())
    old, admit = shop.workers(), surroundings.store.admit

    async def admitted(action: Occupant) -> str | None:
        answer = await admit(action)
        await stop(surroundings)
        return answer

    monkeypatch.setattr(surroundings.store, "admit", admitted)
    action = await surroundings.recover(later_than(shop, TIMEOUT), strategy)
    assert (action.verdict, action.reason) == (Verdict.REFUSED, "recovery is stopped for django by ann: deploy")
    assert shop.workers() == old
    assert not await surroundings.store.scalings("default", "django")


async def test_a_stop_before_workers_that_were_added_are_judged_takes_them_away_and_claims_nothing(
    surroundings: Surroundings, shop: Shop
) -> None:
    surroundings.configure(shop)
    await surroundings.connect()

    async def waiter(command: Command) -> CommandResult:
        await stop(surroundings)
        return CommandResult(command_id=command.id, status="done", evidence=Evidence(kind="replay", outcome="passed"))

    surroundings.dispatch.waiter = waiter
    action = await surroundings.recover(error_event(TIMEOUT), "resource_scale")
    assert action.verdict is Verdict.UNKNOWN
    assert "recovery was stopped meanwhile" in action.reason
    assert len(shop.workers()) == 2
    assert not await surroundings.store.scalings("default", "django")
