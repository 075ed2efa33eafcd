"""Desired state, instances, acknowledgements and outcomes."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import text

from upright.adapters.store import PostgresStore
from upright.domain.directive import Acknowledgement, AlertSettings, Directive, SyncRequest
from upright.domain.verdict import Status, Verdict
from upright.services.ports import ActionRecord, RecoveryRecord
from upright.testing.intake import Replica, a_running_recovery, accept, an_event, waiting


def sync(instance: str = "host:1:a", **changes: Any) -> SyncRequest:
    return SyncRequest(**{"service": "shop", "instance": instance, "hold_ms": 0, **changes})


async def put(store: PostgresStore, recovery: RecoveryRecord, **changes: Any) -> Directive:
    options: dict[str, Any] = {
        "values": {"max_size": 10}, "ttl_s": 900, "recovery_id": recovery.id, "epoch": recovery.epoch,
    }  # fmt: skip
    strategy = changes.pop("strategy", "pool_increase")
    return await store.put_directive("default", "shop", strategy, "default", **{**options, **changes})


async def test_desired_state_grows_by_versions(store: PostgresStore) -> None:
    assert await store.desired("default", "shop") == (0, [])
    recovery = await a_running_recovery(store)
    first = await put(store, recovery)
    other = await put(store, recovery, strategy="timeout_increase")
    second = await put(store, recovery, values={"max_size": 20})
    assert (first.version, other.version, second.version) == (1, 2, 3)
    version, desired = await store.desired("default", "shop")
    assert version == 3
    assert [(one.id, one.values) for one in desired] == [(other.id, other.values), (second.id, {"max_size": 20})]
    assert all(890 < one.ttl_s <= 900 for one in desired)
    await store.withdraw_directive(second.id)
    version, desired = await store.desired("default", "shop")
    assert (version, [one.id for one in desired]) == (4, [other.id])
    await store.withdraw_directive(second.id)
    assert (await store.desired("default", "shop"))[0] == 4


async def test_what_is_done_once_is_no_part_of_the_desired_state(store: PostgresStore) -> None:
    directive = await put(store, await a_running_recovery(store), strategy="cache_clear", scope="once")
    assert directive.version == 1
    assert await store.desired("default", "shop") == (1, [])


async def test_an_expired_directive_is_desired_no_more(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    await put(store, recovery, ttl_s=0)
    assert await store.desired("default", "shop") == (1, [])
    replaced = await put(store, recovery)
    assert [one.id for one in (await store.desired("default", "shop"))[1]] == [replaced.id]


async def test_desired_state_is_a_tenants_own(store: PostgresStore) -> None:
    await put(store, await a_running_recovery(store))
    assert await store.desired("other", "shop") == (0, [])


async def test_instances_live_by_their_syncs(replica: Replica) -> None:
    store = replica.store
    first = sync(
        desired_version=3,
        measurements={"pools": {}},
        capabilities={"commands": ["probe"]},
        settings=AlertSettings(alert_recipients=["ops@example.com"]),
    )
    await store.sync("default", first)
    await store.sync("default", sync("host:2:b"))
    live = await store.live_instances("default", "shop")
    assert [one.id for one in live] == ["host:1:a", "host:2:b"]
    assert (live[0].desired_version, live[0].capabilities) == (3, {"commands": ["probe"]})
    assert live[0].settings["alert_recipients"] == ["ops@example.com"]
    await store.forget_instance("default", "shop", "host:2:b")
    assert [one.id for one in await store.live_instances("default", "shop")] == ["host:1:a"]
    await replica.database.run(
        lambda tx: tx.run(text("UPDATE upright.instance SET seen_at = now() - interval '61 s', held_until = NULL"))
    )
    assert await store.live_instances("default", "shop") == []
    await store.sync("default", sync("host:2:b"))
    assert [one.id for one in await store.live_instances("default", "shop")] == ["host:2:b"]


async def test_a_held_sync_keeps_an_instance_alive(replica_of, database_url: str) -> None:
    store = (await replica_of(database_url, instance_ttl_s=0)).store
    await store.sync("default", sync())
    assert await store.live_instances("default", "shop") == []
    await store.sync("default", sync(hold_ms=20_000))
    assert len(await store.live_instances("default", "shop")) == 1


async def test_the_end_of_an_older_sync_does_not_speak_for_the_process(store: PostgresStore) -> None:
    first = await store.arrive("default", sync())
    second = await store.arrive("default", sync())
    await store.forget_instance("default", "shop", "host:1:a", sync=first)
    assert len(await store.live_instances("default", "shop")) == 1
    await store.forget_instance("default", "shop", "host:1:a", sync=second)
    assert await store.live_instances("default", "shop") == []


async def test_processes_of_the_day_before_are_forgotten_when_a_new_one_comes(replica: Replica) -> None:
    async def known() -> set[str]:
        found = await replica.database.run(lambda tx: tx.rows(text("SELECT id FROM upright.instance")))
        return {row["id"] for row in found}

    await replica.store.sync("default", sync("host:1:old"))
    past = text("UPDATE upright.instance SET seen_at = seen_at - interval '2 d', held_until = NULL")
    await replica.database.run(lambda tx: tx.run(past))
    await replica.store.sync("default", sync("host:2:new"))
    assert await known() == {"host:2:new"}


async def test_acknowledgements_are_kept_by_instance_and_status(store: PostgresStore) -> None:
    directive = await put(store, await a_running_recovery(store))

    def ack(status: str, **changes: Any) -> Acknowledgement:
        return Acknowledgement(directive_id=directive.id, version=directive.version, status=status, **changes)

    applied = ack("applied", before={"max": 2}, after={"max": 10})
    await store.sync("default", sync(acknowledgements=[ack("failed", reason="busy"), applied]))
    await store.sync("default", sync("host:2:b", acknowledgements=[applied]))
    await store.sync("default", sync(acknowledgements=[applied, ack("reverted", after={"max": 2})]))
    found = await store.acknowledgements(directive.id)
    assert sorted((instance, one.status) for instance, one in found) == [
        ("host:1:a", "applied"), ("host:1:a", "failed"), ("host:1:a", "reverted"), ("host:2:b", "applied"),
    ]  # fmt: skip
    assert ("host:1:a", applied) in found


async def test_acknowledgements_of_unknown_or_foreign_directives_are_ignored(store: PostgresStore) -> None:
    directive = await put(store, await a_running_recovery(store))
    await store.sync("other", sync(acknowledgements=[
        Acknowledgement(directive_id=directive.id, version=10**30, status="applied"),
        Acknowledgement(directive_id=uuid4(), version=1, status="applied"),
    ]))  # fmt: skip
    assert list(await store.acknowledgements(directive.id)) == []


async def ended(store: PostgresStore, recovery: RecoveryRecord, status: Status = Status.RECOVERED) -> None:
    action = ActionRecord(recovery.id, 0, "pool_increase", Verdict(status.value))
    await store.record_action(action, epoch=recovery.epoch)
    await store.conclude(recovery.id, epoch=recovery.epoch, status=status, message="", explanation={})


async def age_handing(replica: Replica) -> None:
    later = text("UPDATE upright.error SET outcome_handed_at = outcome_handed_at - interval '6 s'")
    await replica.database.run(lambda tx: tx.run(later))


async def test_outcomes_are_delivered_until_they_are_acknowledged(replica: Replica) -> None:
    store = replica.store
    opener = an_event()
    recovery = await a_running_recovery(store, opener)
    joined = await accept(store)
    assert list(await store.undelivered_outcomes("default", "shop")) == []
    await ended(store, recovery)
    outcomes = {one.error_id: one for one in await store.undelivered_outcomes("default", "shop", instance="a")}
    assert set(outcomes) == {opener.error_id, joined.error_id}
    own, other = outcomes[opener.error_id], outcomes[joined.error_id]
    assert (own.recovery_id, own.strategy) == (recovery.id, "pool_increase")
    assert own.report["success"] is True
    assert own.report["message"] == "Recovery successful: Pool Increase"
    assert other.report["success"] is False
    assert (other.report["status"], other.report["message"]) == ("recovered", "Recovery not verified")
    # One process has them; another gets them only if that one stays silent.
    assert list(await store.undelivered_outcomes("default", "shop", instance="b")) == []
    await age_handing(replica)
    assert len(await store.undelivered_outcomes("default", "shop", instance="b")) == 2
    await store.sync("default", sync("b", outcomes_received=[recovery.id]))
    await age_handing(replica)
    assert list(await store.undelivered_outcomes("default", "shop")) == []


async def test_an_acknowledgement_covers_only_what_was_handed_over(replica: Replica) -> None:
    store = replica.store
    recovery = await a_running_recovery(store)
    for _ in range(4):
        await accept(store)
    await ended(store, recovery, Status.NOT_RECOVERED)
    first = await store.undelivered_outcomes("default", "shop", 3, instance="a")
    await store.sync("default", sync("a", outcomes_received=[recovery.id]))
    rest = await store.undelivered_outcomes("default", "shop", 10, instance="a")
    assert (len(first), len(rest)) == (3, 2)
    assert not {one.error_id for one in first} & {one.error_id for one in rest}


async def test_a_caller_that_was_told_gets_no_outcome_but_one_of_a_rerun(store: PostgresStore) -> None:
    event = waiting()
    recovery = await a_running_recovery(store, event)
    await ended(store, recovery, Status.NOT_RECOVERED)
    assert list(await store.undelivered_outcomes("default", "shop")) == []  # it waits for its answer
    await store.settle(event.error_id, waited=True, delivered=recovery.id)
    assert list(await store.undelivered_outcomes("default", "shop")) == []
    again = await store.begin_run(
        event.error_id, flow_run_id=uuid4(), attempt=1, runner="runner-1", lease_s=30, runbook="database-error"
    )
    await ended(store, again)
    (outcome,) = await store.undelivered_outcomes("default", "shop")
    assert (outcome.error_id, outcome.recovery_id) == (event.error_id, again.id)
