"""accept(): durable, joining by the rules, one recovery in flight whatever the concurrency."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from sqlalchemy import text

from upright.adapters.store import PostgresStore
from upright.domain.severity import Severity
from upright.domain.verdict import Status, Verdict
from upright.errors import ForeignService, NotFound
from upright.services.ports import ActionRecord
from upright.testing.intake import Replica, a_running_recovery, accept, an_event, waiting


async def conclude(store: PostgresStore, recovery, status: Status = Status.RECOVERED):
    return await store.conclude(recovery.id, epoch=recovery.epoch, status=status, message="", explanation={})


async def count_of(replica: Replica, query: str) -> int:
    row = await replica.database.run(lambda tx: tx.row(text(f"SELECT count(*) AS n FROM upright.{query}")))  # noqa: S608
    return row["n"]


async def test_a_first_error_opens_a_recovery(store: PostgresStore) -> None:
    event = waiting()
    accepted = await accept(store, event)
    assert accepted.role == "opened"
    assert accepted.recovery.status is Status.QUEUED
    assert accepted.recovery.error_id == event.error_id
    assert accepted.recovery.waited
    assert await store.event_of(event.error_id) == event
    assert (await store.recovery_of_error(event.error_id)).id == accepted.recovery.id
    assert [record.id for record in await store.queued(10)] == [accepted.recovery.id]


async def test_the_same_delivery_again_changes_nothing(store: PostgresStore, replica: Replica) -> None:
    first = await accept(store, delivery_id="one")
    again = await accept(store, an_event(), delivery_id="one")
    assert again.role == "duplicate"
    assert again.error_id == first.error_id
    assert again.recovery.id == first.recovery.id
    assert await count_of(replica, "error") == 1
    assert await count_of(replica, "incident WHERE count = 1") == 1


async def test_the_same_delivery_id_of_another_tenant_is_another_delivery(store: PostgresStore) -> None:
    assert (await accept(store, delivery_id="one")).role == "opened"
    assert (await accept(store, delivery_id="one", tenant="other")).role == "opened"


async def test_an_error_of_another_tenant_is_not_touched(store: PostgresStore) -> None:
    event = an_event()
    await accept(store, event)
    with pytest.raises(ForeignService):
        await accept(store, event, tenant="other")
    with pytest.raises(NotFound):
        await store.event_of(event.error_id, "other")


async def test_a_recovery_in_flight_is_joined(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    accepted = await accept(store)
    assert accepted.role == "joined_running"
    assert accepted.recovery.id == recovery.id
    assert (await store.recovery_of_error(accepted.error_id)).id == recovery.id


async def test_an_operation_that_began_before_the_recovery_ended_joins_it(store: PostgresStore) -> None:
    recovery = await conclude(store, await a_running_recovery(store))
    assert (await accept(store, an_event(age_ms=60_000))).role == "joined_closed"
    later = await accept(store, an_event(age_ms=0))
    assert later.role == "opened"
    assert later.recovery.id != recovery.id


@pytest.mark.parametrize("status", [Status.NOT_RECOVERED, Status.UNKNOWN, Status.CANCELLED])
async def test_a_failed_recovery_answers_until_its_cooldown_has_passed(store: PostgresStore, status: Status) -> None:
    await conclude(store, await a_running_recovery(store), status)
    assert (await accept(store, cooldown_s=60)).role == "joined_closed"
    assert (await accept(store, cooldown_s=0)).role == "opened"


async def a_recovery_by_directive(store: PostgresStore, ttl_s: float = 900):
    recovery = await a_running_recovery(store)
    directive = await store.put_directive(
        "default", "shop", "pool_increase", "default",
        values={"max_size": 10}, ttl_s=ttl_s, recovery_id=recovery.id, epoch=recovery.epoch,
    )  # fmt: skip
    action = ActionRecord(recovery.id, 0, "pool_increase", Verdict.RECOVERED, directive_version=directive.version)
    await store.record_action(action, epoch=recovery.epoch)
    await conclude(store, recovery)
    return directive


async def test_a_process_that_has_not_applied_the_directive_yet_joins_the_closed_recovery(store: PostgresStore) -> None:
    directive = await a_recovery_by_directive(store)
    assert (await accept(store, an_event(desired_version=directive.version - 1))).role == "joined_closed"
    assert (await accept(store, an_event(desired_version=directive.version))).role == "opened"


async def test_a_directive_that_is_over_holds_no_errors_back(store: PostgresStore) -> None:
    directive = await a_recovery_by_directive(store)
    await store.withdraw_directive(directive.id)
    assert (await accept(store, an_event(desired_version=0))).role == "opened"


async def test_a_rerun_opens_unless_one_is_in_flight(store: PostgresStore) -> None:
    event = an_event()
    recovery = await a_running_recovery(store, event)
    await store.record_own_result(event.error_id, False)
    assert (await accept(store, event, rerun=True)).role == "joined_running"
    await conclude(store, recovery, Status.NOT_RECOVERED)
    again = await accept(store, event, rerun=True)
    assert again.role == "opened"
    assert again.recovery.error_id == event.error_id
    state = await store.error_state(event.error_id)
    assert state.recovery.id == again.recovery.id
    assert state.own_result is None


async def test_an_error_of_a_hand_made_row_can_be_recovered(store: PostgresStore) -> None:
    assert (await accept(store, an_event(origin="manual"), rerun=True)).role == "opened"


async def test_another_delivery_of_a_known_error_does_not_recover_it_again(
    store: PostgresStore, replica: Replica
) -> None:
    event = an_event()
    recovery = await conclude(store, await a_running_recovery(store, event))
    accepted = await accept(store, event)
    assert accepted.role == "duplicate"
    assert accepted.recovery.id == recovery.id
    assert await count_of(replica, "incident WHERE count = 1") == 1


async def test_what_postgresql_cannot_store_is_stored_as_it_can_be(store: PostgresStore) -> None:
    event = an_event(
        age_ms=10**30, desired_version=10**30, context={"nul": "a\x00b", "inf": float("inf"), "big": 10**40}
    )
    await accept(store, event)
    kept = await store.event_of(event.error_id)
    assert kept.context["nul"] == "a\ufffdb"
    assert kept.context["inf"] is None


async def test_a_storm_opens_one_recovery(replica_of, database_url: str) -> None:
    replicas = [await replica_of(database_url) for _ in range(3)]
    events = [an_event(age_ms=index) for index in range(150)]
    accepted = await asyncio.gather(*(accept(replicas[index % 3].store, event) for index, event in enumerate(events)))
    opened = [one for one in accepted if one.role == "opened"]
    assert len(opened) == 1
    assert {one.recovery.id for one in accepted} == {opened[0].recovery.id}
    assert await count_of(replicas[0], "incident WHERE count = 150") == 1
    assert await count_of(replicas[0], "error") == 150


async def test_the_same_delivery_at_the_same_time_is_taken_once(replica_of, database_url: str) -> None:
    replicas = [await replica_of(database_url) for _ in range(2)]
    event = an_event()
    accepted = await asyncio.gather(
        *(accept(replicas[index % 2].store, event, delivery_id="one") for index in range(20))
    )
    assert sorted({one.role for one in accepted}) == ["duplicate", "opened"]
    assert len({one.recovery.id for one in accepted}) == 1
    assert await count_of(replicas[0], "event") == 1


async def test_the_constraint_holds_without_the_lock(replica: Replica) -> None:
    """Whoever opens a second one past the lock is refused by the database."""
    recovery = await a_running_recovery(replica.store)
    twin = text("""
        INSERT INTO upright.recovery
            (id, tenant, incident_id, error_id, fingerprint, service, runbook, severity, status)
        SELECT gen_random_uuid(), tenant, incident_id, error_id, fingerprint, service, runbook, severity, 'queued'
        FROM upright.recovery WHERE id = :id""")
    with pytest.raises(Exception, match="recovery_one_in_flight_idx"):
        await replica.database.run(lambda tx: tx.run(twin, id=recovery.id))


async def test_the_most_severe_are_first_in_the_queue(store: PostgresStore) -> None:
    for severity in (Severity.LOW, Severity.CRITICAL, Severity.MEDIUM, Severity.CRITICAL):
        await accept(store, fingerprint=str(uuid4()), severity=severity)
    queued = await store.queued(3)
    assert [one.severity for one in queued] == [Severity.CRITICAL, Severity.CRITICAL, Severity.MEDIUM]
    assert queued[0].created_at < queued[1].created_at


async def test_listing_shows_where_each_error_stands(store: PostgresStore) -> None:
    event = an_event()
    recovery = await a_running_recovery(store, event)
    await store.record_action(ActionRecord(recovery.id, 0, "retry", Verdict.SKIPPED), epoch=recovery.epoch)
    await store.record_action(ActionRecord(recovery.id, 1, "cache_clear", Verdict.RECOVERED), epoch=recovery.epoch)
    await conclude(store, recovery)
    await accept(store, an_event(service="other"), fingerprint="other")
    (listed,) = await store.errors(service="shop")
    assert listed["error_id"] == str(event.error_id)
    assert (listed["status"], listed["strategy"]) == ("recovered", "cache_clear")
    assert listed["flow_run_id"] == str(recovery.flow_run_id)
    assert [one["service"] for one in await store.errors(status="queued")] == ["other"]
