"""Leases and epochs: a recovery has one writer, and the one that lost it is refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import TextClause, text

from upright.adapters.store import PostgresStore, commands, learning, recoveries
from upright.adapters.store.database import Transaction
from upright.domain.verdict import Evidence, Status, Verdict
from upright.errors import NotFound, RecoveryInFlight, StaleEpoch
from upright.services.ports import ActionRecord, AlertRecord, RecoveryRecord
from upright.testing.intake import Replica, a_running_recovery, accept, an_event


async def begin(store: PostgresStore, error_id: UUID, flow_run_id: UUID, **changes: Any) -> RecoveryRecord:
    options: dict[str, Any] = {"attempt": 1, "runner": "runner-1", "lease_s": 30, "runbook": "database-error"}
    return await store.begin_run(error_id, flow_run_id=flow_run_id, **{**options, **changes})


async def conclude(store: PostgresStore, recovery: RecoveryRecord, status: Status = Status.RECOVERED) -> RecoveryRecord:
    return await store.conclude(recovery.id, epoch=recovery.epoch, status=status, message="m", explanation={"why": 1})


async def test_a_run_goes_on_with_the_recovery_that_is_bound_to_it(store: PostgresStore) -> None:
    bound = await a_running_recovery(store)
    begun = await begin(store, bound.error_id, bound.flow_run_id)
    assert (begun.id, begun.epoch, begun.flow_run_attempt) == (bound.id, bound.epoch, 1)


async def test_a_run_takes_the_recovery_that_still_waits(store: PostgresStore) -> None:
    accepted = await accept(store)
    run = uuid4()
    begun = await begin(store, accepted.error_id, run)
    assert begun.id == accepted.recovery.id
    assert (begun.status, begun.flow_run_id) == (Status.RUNNING, run)
    with pytest.raises(StaleEpoch):
        await store.bind(begun.id, flow_run_id=uuid4(), runner="runner-2", lease_s=30)


async def test_a_retry_of_a_finished_run_is_a_new_recovery_of_the_same_error(store: PostgresStore) -> None:
    first = await a_running_recovery(store)
    await store.record_own_result(first.error_id, True)
    await conclude(store, first)
    await store.close(first.id, epoch=first.epoch)
    again = await begin(store, first.error_id, first.flow_run_id, attempt=2)
    assert again.id != first.id
    assert (again.error_id, again.flow_run_id, again.flow_run_attempt) == (first.error_id, first.flow_run_id, 2)
    assert again.status is Status.RUNNING
    state = await store.error_state(first.error_id)
    assert (state.recovery.id, state.own_result) == (again.id, None)


async def test_a_rerun_while_another_recovery_of_the_incident_is_in_flight_is_told_so(store: PostgresStore) -> None:
    first = await a_running_recovery(store)
    await conclude(store, first)
    other = await a_running_recovery(store)
    with pytest.raises(RecoveryInFlight, match=str(other.id)):
        await begin(store, first.error_id, uuid4())
    with pytest.raises(RecoveryInFlight):
        await begin(store, other.error_id, uuid4())


async def test_reruns_at_the_same_time_open_one_recovery(replica_of, database_url: str) -> None:
    replicas = [await replica_of(database_url) for _ in range(2)]
    first = await a_running_recovery(replicas[0].store)
    await conclude(replicas[0].store, first)
    found = await asyncio.gather(
        *(begin(replicas[index % 2].store, first.error_id, uuid4()) for index in range(8)), return_exceptions=True
    )
    assert sum(isinstance(one, RecoveryRecord) for one in found) == 1
    assert sum(isinstance(one, RecoveryInFlight) for one in found) == 7


async def test_an_unknown_error_can_not_be_run(store: PostgresStore) -> None:
    with pytest.raises(NotFound):
        await begin(store, uuid4(), uuid4())
    with pytest.raises(NotFound):
        await store.recovery(uuid4())


async def test_two_runners_that_bind_the_same_recovery(replica_of, database_url: str) -> None:
    replicas = [await replica_of(database_url) for _ in range(2)]
    accepted = await accept(replicas[0].store)
    found = await asyncio.gather(
        *(
            one.store.bind(accepted.recovery.id, flow_run_id=uuid4(), runner=f"runner-{index}", lease_s=30)
            for index, one in enumerate(replicas)
        ),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in found) == ["RecoveryRecord", "StaleEpoch"]


async def test_what_a_dead_runner_still_writes_is_refused(store: PostgresStore) -> None:
    old = await a_running_recovery(store)
    await store.renew("runner-1", [old.id], 0)
    (taken,) = await store.take_expired("runner-2", 30, 10)
    assert (taken.id, taken.epoch) == (old.id, old.epoch + 1)
    action = ActionRecord(old.id, 0, "retry", Verdict.RECOVERED)
    with pytest.raises(StaleEpoch):
        await store.record_action(action, epoch=old.epoch)
    with pytest.raises(StaleEpoch):
        await conclude(store, old)
    with pytest.raises(StaleEpoch):
        await store.put_directive(
            "default", "shop", "pool_increase", "default",
            values={}, ttl_s=10, recovery_id=old.id, epoch=old.epoch,
        )  # fmt: skip
    assert (await store.recovery(old.id)).actions == ()
    resumed = await begin(store, old.error_id, old.flow_run_id, runner="runner-2", attempt=2)
    assert resumed.id == old.id
    await store.record_action(action, epoch=resumed.epoch)
    assert (await conclude(store, resumed)).status is Status.RECOVERED


async def test_a_lease_that_is_renewed_is_not_taken(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    await store.renew("runner-2", [recovery.id], 0)
    assert await store.take_expired("runner-2", 30, 10) == []
    await store.renew("runner-1", [recovery.id], 0)
    await store.renew("runner-1", [recovery.id], 30)
    assert await store.take_expired("runner-2", 30, 10) == []


async def test_an_expired_recovery_is_taken_by_one_runner(replica_of, database_url: str) -> None:
    replicas = [await replica_of(database_url) for _ in range(3)]
    recovery = await a_running_recovery(replicas[0].store)
    await replicas[0].store.renew("runner-1", [recovery.id], 0)
    taken = await asyncio.gather(
        *(one.store.take_expired(f"taker-{index}", 30, 10) for index, one in enumerate(replicas))
    )
    assert sum(len(one) for one in taken) == 1


async def test_a_concluded_recovery_is_taken_up_until_it_is_closed(store: PostgresStore) -> None:
    old = await a_running_recovery(store)
    await conclude(store, old)
    assert await store.take_expired("runner-2", 30, 10) == []
    await store.renew("runner-1", [old.id], 0)
    (taken,) = await store.take_expired("runner-2", 30, 10)
    assert (taken.id, taken.status, taken.epoch) == (old.id, Status.RECOVERED, old.epoch + 1)
    begun = await begin(store, old.error_id, old.flow_run_id, runner="runner-2", attempt=2)
    assert (begun.id, begun.status, begun.finished_at) == (old.id, Status.RECOVERED, taken.finished_at)
    await store.close(old.id, epoch=old.epoch)  # the dead one's late write
    await store.renew("runner-2", [old.id], 0)
    assert [one.id for one in await store.take_expired("runner-3", 30, 10)] == [old.id]
    await store.close(old.id, epoch=begun.epoch + 1)
    await store.renew("runner-3", [old.id], 0)
    assert await store.take_expired("runner-4", 30, 10) == []


async def test_frequent_looks_go_by_indexes(replica: Replica) -> None:
    async def plan(statement: TextClause, **parameters: object) -> str:
        async def explained(tx: Transaction) -> str:
            await tx.run(text("SET LOCAL enable_seqscan = off"))
            return str(await tx.rows(text(f"EXPLAIN {statement.text}"), **parameters))

        return await replica.database.run(explained)

    asked = await plan(commands._ASKED, error_id=uuid4(), kind="replay", since=datetime.now(UTC))
    assert "command_error_id_idx" in asked
    expired = await plan(recoveries._EXPIRED, runner="me", lease_s=10, limit=4)
    assert {name for name in ("recovery_open_idx", "recovery_unfinished_idx") if name in expired} == {
        "recovery_open_idx",
        "recovery_unfinished_idx",
    }
    assert "recovery_finished_at_idx" in await plan(learning._LATEST)
    outcomes = await plan(learning._OUTCOMES, since=None, limit=100, relapse_s=900)
    assert {name for name in ("recovery_finished_at_idx", "error_incident_id_idx") if name in outcomes} == {
        "recovery_finished_at_idx",
        "error_incident_id_idx",
    }


async def test_a_recovery_that_was_never_begun_is_taken_after_a_lease(replica: Replica) -> None:
    accepted = await accept(replica.store, queued=False)
    assert await replica.store.take_expired("runner-2", 30, 10) == []
    age = text("UPDATE upright.recovery SET created_at = created_at - interval '31 s'")
    await replica.database.run(lambda tx: tx.run(age))
    (taken,) = await replica.store.take_expired("runner-2", 30, 10)
    assert taken.id == accepted.recovery.id


async def test_an_action_is_one_row_at_its_position(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    done = ActionRecord(
        recovery.id, 1, "timeout_increase", Verdict.RECOVERED, "it passed", {"timeout_ms": 15000},
        {"timeout_ms": 400}, {"timeout_ms": 15000}, Evidence(kind="replay", outcome="passed", status_code=200),
        0.65, 1.0, 12.5, 3,
    )  # fmt: skip
    await store.record_action(ActionRecord(recovery.id, 1, "timeout_increase", Verdict.UNKNOWN), epoch=recovery.epoch)
    await store.record_action(done, epoch=recovery.epoch)
    await store.record_action(ActionRecord(recovery.id, 0, "pool_increase", Verdict.SKIPPED), epoch=recovery.epoch)
    assert (await store.recovery(recovery.id)).actions[1] == done
    assert [one.position for one in (await store.recovery(recovery.id)).actions] == [0, 1]


async def test_a_conclusion_may_be_repeated_but_not_changed(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    first = await conclude(store, recovery, Status.UNKNOWN)
    assert first.finished_at is not None
    assert await conclude(store, recovery, Status.UNKNOWN) == first
    with pytest.raises(StaleEpoch):
        await conclude(store, recovery, Status.RECOVERED)
    with pytest.raises(StaleEpoch):
        await store.record_action(ActionRecord(recovery.id, 0, "retry", Verdict.RECOVERED), epoch=recovery.epoch)


async def test_one_recovery_at_a_time_holds_an_actuator(store: PostgresStore) -> None:
    one = await a_running_recovery(store)
    two = await a_running_recovery(store, an_event(), fingerprint="another")

    async def lock(recovery: RecoveryRecord, target: str = "default", ttl_s: float = 30) -> bool:
        return await store.lock_actuator(
            "default", "shop", "pool_increase", target, recovery_id=recovery.id, ttl_s=ttl_s
        )

    assert await lock(one)
    assert await lock(one)
    assert not await lock(two)
    assert await lock(two, "replica")
    await store.unlock_actuators(one.id)
    assert await lock(two, ttl_s=0)
    assert await lock(one)
    await conclude(store, one)
    assert await lock(two)


async def test_alerts_are_kept_in_order(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    alerts = [
        AlertRecord(recovery.id, "alert", "email", ("ops@example.com",), "It broke", "sent"),
        AlertRecord(
            recovery.id, "escalation", "email", ("a@example.com", "b@example.com"), "Still", "failed", "refused"
        ),
    ]
    for one in alerts:
        await store.record_alert(one)
    assert list(await store.alerts(recovery.id)) == alerts


async def test_the_audit_trail_can_not_be_rewritten(replica: Replica) -> None:
    recovery = await a_running_recovery(replica.store)
    await conclude(replica.store, recovery)
    trail = text("SELECT what, who FROM upright.audit WHERE subject = :id ORDER BY id")
    found = await replica.database.run(lambda tx: tx.rows(trail, id=str(recovery.id)))
    assert [row["what"] for row in found] == ["recovery.opened", "recovery.concluded"]
    for statement in ("UPDATE upright.audit SET who = 'me'", "DELETE FROM upright.audit", "TRUNCATE upright.audit"):
        with pytest.raises(Exception, match="append-only"):
            await replica.database.run(lambda tx, said=statement: tx.run(text(said)))


async def test_the_errors_of_an_incident_within_the_last_minute_are_counted(store: PostgresStore) -> None:
    first = await accept(store)
    await accept(store)
    await accept(store, an_event(age_ms=120_000))
    await accept(store, fingerprint="another")
    assert first.recovery is not None
    assert await store.recurrences(first.recovery.incident_id, 60) == 2
    assert await store.recurrences(first.recovery.incident_id, 600) == 3
