"""POST /v1/errors and its kin, as an application meets them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from upright.adapters.engines import EmbeddedPostgres
from upright.adapters.store import ErrorState, topics
from upright.domain.answer import Answer
from upright.domain.directive import Command, CommandResult, Results
from upright.domain.event import Waiter
from upright.domain.verdict import Evidence, Status, Verdict
from upright.errors import Unavailable
from upright.services.ports import ActionRecord, RecoveryRecord
from upright.testing.intake import Service, an_event, eventually, service_on, waiting


def answer_of(response: httpx.Response, status: int = 200) -> Answer:
    assert response.status_code == status, response.text
    return Answer.model_validate_json(response.content)


async def ended(
    service: Service, recovery: RecoveryRecord, status: Status = Status.RECOVERED, *actions: tuple[str, Verdict, str]
) -> None:
    for position, (strategy, verdict, reason) in enumerate(actions or [("pool_increase", Verdict(status.value), "")]):
        await service.store.record_action(
            ActionRecord(recovery.id, position, strategy, verdict, reason, duration_ms=1.5), epoch=recovery.epoch
        )
    await service.store.conclude(recovery.id, epoch=recovery.epoch, status=status, message="", explanation={})


def results_of(command: Command, outcome: str = "passed") -> Results:
    evidence = Evidence(kind="replay", outcome=outcome)
    return Results(results=[CommandResult(command_id=command.id, status="done", evidence=evidence)])


async def test_an_error_is_accepted_and_runs(service: Service) -> None:
    event = an_event()
    answer = answer_of(await service.sender.post("/v1/errors", event), 202)
    assert (answer.error_id, answer.severity.value) == (event.error_id, "critical")
    assert (answer.recovery.attempted, answer.recovery.success) == (False, False)
    assert (answer.recovery.status, answer.recovery.message) == ("pending", "Recovery pending")
    assert (await service.launcher.next()).id == answer.recovery_id
    assert await service.store.event_of(event.error_id) == event


async def test_the_answer_is_held_until_the_verdict(service: Service) -> None:
    event = waiting()
    held = asyncio.create_task(service.sender.post("/v1/errors", event, wait_ms=20_000))
    recovery = await service.running()
    assert await service.store.waiter_present(event.error_id)
    await ended(
        service,
        recovery,
        Status.RECOVERED,
        ("pool_increase", Verdict.SKIPPED, "nothing waits for a connection"),
        ("timeout_increase", Verdict.RECOVERED, ""),
    )
    answer = answer_of(await held)
    assert answer.command is None
    assert answer.recovery.model_dump(mode="json") == {
        "attempted": True,
        "success": True,
        "status": "recovered",
        "message": "Recovery successful: Timeout Increase",
        "actions": [
            {"strategy": "pool_increase", "success": False, "verdict": "skipped", "duration_ms": 1.5,
             "reason": "nothing waits for a connection"},
            {"strategy": "timeout_increase", "success": True, "verdict": "recovered", "duration_ms": 1.5, "reason": ""},
        ],
    }  # fmt: skip
    assert not await service.store.waiter_present(event.error_id)
    assert list(await service.store.undelivered_outcomes("default", "shop")) == []


async def test_at_the_deadline_it_is_pending_and_the_outcome_comes_by_sync(service: Service) -> None:
    event = waiting()
    held = asyncio.create_task(service.sender.post("/v1/errors", event, wait_ms=300))
    recovery = await service.running()
    answer = answer_of(await held, 202)
    assert (answer.recovery.attempted, answer.recovery.status) == (True, "pending")
    assert not await service.store.waiter_present(event.error_id)
    await ended(service, recovery, Status.NOT_RECOVERED)
    (outcome,) = await service.store.undelivered_outcomes("default", "shop")
    assert (outcome.error_id, outcome.report["message"]) == (event.error_id, "Recovery failed")


async def test_a_command_is_handed_to_the_caller_and_its_result_taken(service: Service) -> None:
    event = waiting()
    held = asyncio.create_task(service.sender.post("/v1/errors", event, wait_ms=20_000))
    recovery = await service.running()
    command = Command(id=uuid4(), kind="replay", deadline_ms=10_000)
    asked = asyncio.create_task(service.replica.dispatch.to_waiter(event.error_id, command))
    first = answer_of(await held)
    assert (first.command.id, first.command.kind) == (command.id, "replay")
    assert first.recovery.status == "pending"
    path = f"/v1/errors/{event.error_id}/results"
    again = asyncio.create_task(service.sender.post(path, results_of(command), wait_ms=20_000))
    assert (await asked).evidence.outcome == "passed"
    await ended(service, recovery)
    final = answer_of(await again)
    assert (final.recovery.success, final.recovery.message) == (True, "Recovery successful: Pool Increase")
    assert final.command is None


async def test_a_joiner_checks_its_own_operation_before_it_is_told(service: Service) -> None:
    opener, joiner = waiting(), waiting()
    first = asyncio.create_task(service.sender.post("/v1/errors", opener, wait_ms=20_000))
    recovery = await service.running()
    second = asyncio.create_task(service.sender.post("/v1/errors", joiner, wait_ms=20_000))
    await eventually(lambda: service.store.waiter_present(joiner.error_id))
    await ended(service, recovery)
    assert answer_of(await first).recovery.success
    asked = answer_of(await second)
    assert (asked.command.kind, asked.recovery_id) == ("replay", recovery.id)
    assert (asked.recovery.status, asked.recovery.success) == ("recovered", False)
    assert "django.db.utils.OperationalError" in asked.command.error_types
    path = f"/v1/errors/{joiner.error_id}/results"
    final = answer_of(await service.sender.post(path, results_of(asked.command), wait_ms=20_000))
    assert (final.recovery.success, final.error_id) == (True, joiner.error_id)
    assert final.recovery.message == "Recovery successful: Pool Increase"
    assert service.launcher.submitted == []


async def test_a_joiner_whose_own_operation_still_fails_is_told_so(service: Service) -> None:
    recovery = await opened(service)
    joiner = waiting()
    held = asyncio.create_task(service.sender.post("/v1/errors", joiner, wait_ms=20_000))
    await eventually(lambda: service.store.waiter_present(joiner.error_id))
    await ended(service, recovery)
    asked = answer_of(await held)
    path = f"/v1/errors/{joiner.error_id}/results"
    final = answer_of(await service.sender.post(path, results_of(asked.command, "failed"), wait_ms=20_000))
    assert (final.recovery.success, final.recovery.status) == (False, "recovered")
    assert final.recovery.message == "Recovery failed"


async def opened(service: Service) -> RecoveryRecord:
    answer_of(await service.sender.post("/v1/errors", an_event()), 202)
    return await service.running()


async def test_a_joiner_whose_replay_told_nothing_is_not_asked_twice(service: Service) -> None:
    recovery = await opened(service)
    joiner = waiting()
    held = asyncio.create_task(service.sender.post("/v1/errors", joiner, wait_ms=20_000))
    await eventually(lambda: service.store.waiter_present(joiner.error_id))
    await ended(service, recovery)
    asked = answer_of(await held)
    path = f"/v1/errors/{joiner.error_id}/results"
    final = answer_of(await service.sender.post(path, results_of(asked.command, "inconclusive"), wait_ms=20_000))
    assert final.command is None
    assert (final.recovery.success, final.recovery.message) == (False, "Recovery not verified")


async def test_a_joiner_that_can_not_replay_gets_the_incidents_status(service: Service) -> None:
    recovery = await opened(service)
    joiner = an_event(waiter=Waiter(budget_ms=5000, can=["apply", "probe"]))
    held = asyncio.create_task(service.sender.post("/v1/errors", joiner, wait_ms=20_000))
    await eventually(lambda: service.store.waiter_present(joiner.error_id))
    await ended(service, recovery)
    final = answer_of(await held)
    assert (final.command, final.recovery.success, final.recovery.status) == (None, False, "recovered")


async def test_a_late_joiner_of_a_failed_recovery_is_answered_at_once(service: Service) -> None:
    await ended(service, await opened(service), Status.NOT_RECOVERED)
    answer = answer_of(await service.sender.post("/v1/errors", waiting(), wait_ms=20_000))
    assert (answer.recovery.attempted, answer.recovery.status) == (True, "not_recovered")
    assert answer.recovery.message == "Recovery failed"


async def test_the_other_ends(service: Service) -> None:
    for status, message in ((Status.UNKNOWN, "Recovery not verified"), (Status.CANCELLED, "Recovery cancelled")):
        event = waiting(service=f"shop-{status}")
        held = asyncio.create_task(service.sender.post("/v1/errors", event, wait_ms=20_000))
        await ended(service, await service.running(), status, ("retry", Verdict.UNKNOWN, "no evidence"))
        report = answer_of(await held).recovery
        assert (report.success, report.status, report.message) == (False, status.value, message)


async def test_a_duplicate_gets_the_present_state_while_the_first_still_waits(service: Service) -> None:
    event = waiting()
    held = asyncio.create_task(service.sender.post("/v1/errors", event, delivery_id="d1", wait_ms=20_000))
    recovery = await service.running()
    again = answer_of(await service.sender.post("/v1/errors", event, delivery_id="d1"), 202)
    assert (again.recovery_id, again.recovery.status) == (recovery.id, "pending")
    assert service.launcher.submitted == []
    # One that waits too gets the verdict, but no command: those are the first one's.
    waits_too = asyncio.create_task(service.sender.post("/v1/errors", event, delivery_id="d1", wait_ms=20_000))
    await ended(service, recovery)
    assert answer_of(await held).recovery.success
    assert answer_of(await waits_too).recovery.success
    late = answer_of(await service.sender.post("/v1/errors", event, delivery_id="d1"))
    assert late.recovery.success


async def test_a_past_error_is_recovered_again(service: Service) -> None:
    event = an_event()
    answer_of(await service.sender.post("/v1/errors", event), 202)
    first = await service.running()
    await ended(service, first, Status.NOT_RECOVERED)
    manual = event.model_copy(update={"origin": "manual"})
    path = f"/v1/errors/{event.error_id}/recoveries"
    held = asyncio.create_task(service.sender.post(path, manual, wait_ms=20_000))
    second = await service.running()
    assert second.id != first.id
    await ended(service, second)
    answer = answer_of(await held)
    assert (answer.recovery_id, answer.recovery.success) == (second.id, True)


async def test_a_row_made_by_hand_is_recovered(service: Service) -> None:
    event = an_event(origin="manual")
    answer = answer_of(await service.sender.post(f"/v1/errors/{event.error_id}/recoveries", event), 202)
    assert (await service.launcher.next()).id == answer.recovery_id


async def test_a_recovery_ends_on_another_replica(service: Service, replica_of: Any, database_url: str) -> None:
    other = service_on(await replica_of(database_url))
    held = asyncio.create_task(service.sender.post("/v1/errors", waiting(), wait_ms=20_000))
    recovery = await service.running()
    await ended(other, recovery)
    assert answer_of(await held).recovery.success
    await other.sender.http.aclose()


async def test_held_requests_keep_no_connection(service: Service) -> None:
    """More callers wait than there are connections."""
    events = [waiting() for _ in range(40)]
    held = [asyncio.create_task(service.sender.post("/v1/errors", one, wait_ms=20_000)) for one in events]
    recovery = await service.running()

    async def all_wait() -> bool:
        return all([await service.store.waiter_present(one.error_id) for one in events])

    await eventually(all_wait)
    await ended(service, recovery, Status.NOT_RECOVERED)
    assert {answer_of(one).recovery.status for one in await asyncio.gather(*held)} == {"not_recovered"}


async def test_a_held_request_outlives_a_restart_of_the_database(
    service: Service, postgres_server: EmbeddedPostgres, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, failures = service.store.error_state, list[Unavailable]()

    async def watched(error_id: UUID, tenant: str | None = None) -> ErrorState:
        try:
            return await look(error_id, tenant)
        except Unavailable as error:
            failures.append(error)
            raise

    monkeypatch.setattr(service.store, "error_state", watched)
    held = asyncio.create_task(service.sender.post("/v1/errors", waiting(), wait_ms=20_000))
    recovery = await service.running()
    name = make_url(database_url).database
    with psycopg.connect(postgres_server.url(), autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

        service.replica.bus.wake(topics.of_recovery(recovery.id))

        async def found_no_database() -> bool:
            return bool(failures)

        await eventually(found_no_database)
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    await ended(service, recovery)
    assert answer_of(await held).recovery.success


async def test_held_requests_end_when_the_service_stops(service: Service) -> None:
    held = asyncio.create_task(service.sender.post("/v1/errors", waiting(), wait_ms=60_000))
    await service.running()
    service.replica.bus.drain()
    assert answer_of(await held, 202).recovery.status == "pending"


async def test_an_unknown_error_has_no_results(service: Service) -> None:
    response = await service.sender.post(f"/v1/errors/{uuid4()}/results", Results())
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_results_of_another_tenants_error_are_refused(replica: Any) -> None:
    service = service_on(replica, tenants={"other": ["whsec_" + "b" * 40]})
    event = waiting()
    await service.sender.post("/v1/errors", event)
    service.sender.secret, service.sender.tenant = "whsec_" + "b" * 40, "other"
    path: str = f"/v1/errors/{UUID(str(event.error_id))}/results"
    assert (await service.sender.post(path, Results())).status_code == 404
    assert (await service.sender.post("/v1/errors", event)).status_code == 403
    await service.sender.http.aclose()
