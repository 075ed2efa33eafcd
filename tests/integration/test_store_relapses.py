"""Relapses: who is told, what counts against a strategy, and what is no relapse."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from upright.adapters.store import PostgresStore
from upright.domain.directive import SyncRequest
from upright.domain.guardrails import Guardrails
from upright.domain.verdict import Status, Verdict
from upright.services.guardrails.ports import Occupant
from upright.services.guardrails.trust import Record
from upright.services.ports import ActionRecord, RecoveryRecord
from upright.testing.intake import Service, a_running_recovery, accept, an_event, eventually


async def recovered(
    store: PostgresStore, strategy: str = "pool_increase", *, ttl_s: float = 900, event=None, acts: bool = False
) -> RecoveryRecord:
    """A recovery by a directive (a retry: by none), whose caller has heard of it."""
    recovery = await a_running_recovery(store, event)
    version = None
    if acts:
        names = (recovery.tenant, recovery.service, recovery.fingerprint, recovery.runbook)
        assert await store.admit(Occupant(recovery.id, *names, strategy)) is None
    if strategy != "retry":
        directive = await store.put_directive(
            "default", "shop", strategy, "default", values={"max_size": 10}, ttl_s=ttl_s, recovery_id=recovery.id,
            epoch=recovery.epoch,
        )  # fmt: skip
        version = directive.version
    action = ActionRecord(
        recovery.id, 0, strategy, Verdict.RECOVERED, reason="replay passed", directive_version=version
    )
    await store.record_action(action, epoch=recovery.epoch)
    concluded = await store.conclude(
        recovery.id, epoch=recovery.epoch, status=Status.RECOVERED, message="Recovery successful", explanation={}
    )
    await store.settle(concluded.error_id, waited=True, delivered=concluded.id)
    return concluded


async def again(store: PostgresStore, **changes):
    """The same error once more, in a process that holds whatever there is."""
    event = an_event(desired_version=changes.pop("desired_version", 10**6), age_ms=changes.pop("age_ms", 0))
    return await accept(store, event, **changes)


async def test_an_error_that_comes_back_turns_recovered_into_relapsed(store: PostgresStore) -> None:
    first = await recovered(store)
    accepted = await again(store)
    assert accepted.role == "opened"
    assert accepted.recovery.relapse_of == first.id
    was = await store.recovery(first.id)
    assert was.status is Status.RELAPSED
    assert was.relapse == "the error came back 0 s after it"
    [action] = was.actions
    assert (action.verdict, action.reason) == (Verdict.RELAPSED, f"replay passed; {was.relapse}")
    assert await store.relapses(first.incident_id, 3600) == {"pool_increase": 1}
    [trail] = [one for one in await store.audit(since_s=60, service="shop") if one["what"] == "recovery.relapsed"]
    assert trail["subject"] == str(first.id)


async def test_whoever_was_told_that_it_recovered_is_told_otherwise(store: PostgresStore) -> None:
    first = await recovered(store)
    joined = await again(store, age_ms=60_000)
    assert joined.role == "joined_closed"
    await store.settle(joined.error_id, waited=False, delivered=first.id)
    assert await store.undelivered_outcomes("default", "shop") == []
    await again(store)
    outcomes = await store.undelivered_outcomes("default", "shop", instance="one")
    assert {one.error_id for one in outcomes} == {first.error_id, joined.error_id}
    for one in outcomes:
        assert (one.report["status"], one.report["success"]) == ("relapsed", False)
        assert one.report["message"] == "Relapsed: the error came back 0 s after it"
        assert one.strategy == "pool_increase"


async def test_an_answer_that_was_on_its_way_meanwhile_is_not_the_last_word(store: PostgresStore) -> None:
    first = await recovered(store)
    await again(store)
    await store.settle(first.error_id, waited=True, delivered=first.id)
    [told] = await store.undelivered_outcomes("default", "shop", instance="one")
    assert (told.error_id, told.report["status"]) == (first.error_id, "relapsed")


async def test_an_acknowledgement_of_the_former_end_is_none_of_the_relapse(store: PostgresStore) -> None:
    event = an_event()
    first = await recovered(store, event=event)
    joined = await again(store, age_ms=60_000)
    [handed] = await store.undelivered_outcomes("default", "shop", instance="one")
    assert (handed.error_id, handed.report["status"]) == (joined.error_id, "recovered")
    await again(store)
    received = SyncRequest(service="shop", instance="one", outcomes_received=[first.id])
    await store.sync("default", received)
    told = await store.undelivered_outcomes("default", "shop", instance="one")
    assert {(one.error_id, one.report["status"]) for one in told} == {
        (joined.error_id, "relapsed"), (event.error_id, "relapsed"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"age_ms": 60_000},  # it began before the recovery ended
        {"desired_version": 0},  # its process did not hold the change yet
        {"relapse_window_s": 0},
        {"rerun": True},
    ],
    ids=str,
)
async def test_what_is_no_relapse(store: PostgresStore, changes: dict) -> None:
    first = await recovered(store)
    await again(store, **changes)
    assert (await store.recovery(first.id)).status is Status.RECOVERED
    assert await store.relapses(first.incident_id, 3600) == {}


async def test_a_recovery_that_failed_does_not_relapse(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    await store.conclude(recovery.id, epoch=recovery.epoch, status=Status.NOT_RECOVERED, message="", explanation={})
    accepted = await again(store, cooldown_s=0)
    assert (accepted.role, accepted.recovery.relapse_of) == ("opened", None)


async def test_what_comes_back_after_its_change_has_expired_does_not_count_against_the_strategy(
    store: PostgresStore,
) -> None:
    first = await recovered(store, ttl_s=0)
    await again(store)
    was = await store.recovery(first.id)
    assert was.status is Status.RELAPSED
    assert was.relapse == "the error came back 0 s after it, when the change expired"
    assert was.actions[0].verdict is Verdict.RECOVERED
    assert await store.relapses(first.incident_id, 3600) == {}


async def test_a_retry_repaired_its_one_request(store: PostgresStore) -> None:
    first = await recovered(store, "retry")
    await again(store)
    was = await store.recovery(first.id)
    assert (was.status, was.actions[0].verdict) == (Status.RELAPSED, Verdict.RECOVERED)
    assert await store.relapses(first.incident_id, 3600) == {"retry": 1}


async def came_back_thrice(store: PostgresStore, strategy: str) -> RecoveryRecord:
    """Three recoveries that acted, each followed by the same error again."""
    for _ in range(3):
        event = an_event(desired_version=10**6)
        first = await recovered(store, strategy, event=event, acts=True)
    await again(store)
    return first


async def test_retries_that_are_needed_again_and_again_are_not_taken_from_the_application(store: PostgresStore) -> None:
    first = await came_back_thrice(store, "retry")
    assert (await store.recovery(first.id)).status is Status.RELAPSED
    assert await store.hold("default", "shop", first.fingerprint, Guardrails()) is None
    assert await store.track_record(first.runbook, "retry", 20) == Record(3, 0)


async def test_a_change_that_never_lasts_is_left_to_people(store: PostgresStore) -> None:
    first = await came_back_thrice(store, "pool_increase")
    hold = await store.hold("default", "shop", first.fingerprint, Guardrails())
    assert hold is not None
    assert hold.reason == "the last 3 recoveries of this error failed"
    assert await store.track_record(first.runbook, "pool_increase", 20) == Record(0, 3)


async def test_many_that_come_back_at_once_are_one_relapse(store: PostgresStore) -> None:
    first = await recovered(store)
    accepted = await asyncio.gather(*(again(store) for _ in range(8)))
    assert sorted(one.role for one in accepted) == ["joined_running"] * 7 + ["opened"]
    assert len({one.recovery.id for one in accepted}) == 1
    assert (await store.relapses(first.incident_id, 3600)) == {"pool_increase": 1}


async def test_over_http_a_relapse_reaches_the_application(service: Service) -> None:
    """As an application sees it: an error that recovered, the same one again, and news of the first."""
    first = an_event()
    await service.sender.post("/v1/errors", first)
    recovery = await service.running()
    await service.store.record_action(
        ActionRecord(recovery.id, 0, "cache_clear", Verdict.RECOVERED), epoch=recovery.epoch
    )
    await service.store.conclude(
        recovery.id, epoch=recovery.epoch, status=Status.RECOVERED, message="Recovery successful", explanation={}
    )
    body = {"service": "shop", "instance": "one", "hold_ms": 0}
    [told] = (await service.sender.post("/v1/sync", body)).json()["outcomes"]
    assert told["report"]["status"] == "recovered"
    await service.sender.post("/v1/sync", {**body, "outcomes_received": [told["recovery_id"]]})
    await service.sender.post("/v1/errors", an_event())
    opened = await service.running()
    assert opened.relapse_of == UUID(told["recovery_id"])

    async def news():
        return (await service.sender.post("/v1/sync", body)).json()["outcomes"]

    [again_told] = await eventually(news)
    assert again_told["error_id"] == str(first.error_id)
    assert (again_told["report"]["status"], again_told["report"]["success"]) == ("relapsed", False)
    assert again_told["report"]["actions"][0]["verdict"] == "relapsed"
