"""Guardrails on PostgreSQL: counted over replicas, held, stopped, and written down for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import SecretStr

from upright.domain.directive import Command
from upright.domain.guardrails import FailingService, Guardrails, Limits, RepeatedFailures, Trust
from upright.domain.message import Json
from upright.domain.runbook import Runbook, Step
from upright.domain.switch import SwitchAnswer
from upright.domain.verdict import Evidence, Status, Verdict
from upright.errors import NotFound, StaleEpoch, Stopped
from upright.services.guardrails import EVERY, links
from upright.services.guardrails.limits import scopes
from upright.services.guardrails.ports import Occupant
from upright.services.guardrails.trust import Record
from upright.services.ports import ActionRecord, AlertRecord, RecoveryRecord
from upright.testing.intake import Replica, Service, a_running_recovery, an_event, service_on, waiting

Make = Callable[..., Awaitable[Replica]]
LOOSE = Guardrails(everything=Limits(), service=Limits(), runbook=Limits(), strategies={})


def occupant(record: RecoveryRecord, limits: Limits | None = None, strategy: str = "pool_increase") -> Occupant:
    step = Step(strategy=strategy, limits=limits)
    found = scopes(LOOSE, Runbook(name=record.runbook, steps=[step]), step, record.service)
    return Occupant(record.id, record.tenant, record.service, record.fingerprint, record.runbook, strategy, found)


async def running(store: Any, fingerprint: str | None = None, **changes: Any) -> RecoveryRecord:
    return await a_running_recovery(store, an_event(**changes), fingerprint=fingerprint or uuid4().hex)


async def ended(store: Any, record: RecoveryRecord, verdict: Verdict, strategy: str = "pool_increase") -> None:
    await store.record_action(ActionRecord(record.id, 0, strategy, verdict, "so it was"), epoch=record.epoch)
    status = Status.RECOVERED if verdict is Verdict.RECOVERED else Status.NOT_RECOVERED
    await store.conclude(record.id, epoch=record.epoch, status=status, message="", explanation={})


async def failed(store: Any, fingerprint: str, **changes: Any) -> RecoveryRecord:
    record = await a_running_recovery(store, an_event(**changes), fingerprint=fingerprint, cooldown_s=0)
    assert await store.admit(occupant(record)) is None
    await ended(store, record, Verdict.NOT_RECOVERED)
    return record


async def test_of_many_replicas_one_gets_the_last_place(database_url: str, replica_of: Make) -> None:
    replicas = [await replica_of(database_url) for _ in range(3)]
    records = [await running(replicas[0].store) for _ in range(12)]
    limits = Limits(actions_per_hour=5)
    answers = await asyncio.gather(
        *(replicas[index % 3].store.admit(occupant(one, limits)) for index, one in enumerate(records))
    )
    assert answers.count(None) == 5
    assert {one for one in answers if one is not None} == {
        "5 of 5 pool_increase actions of database-error in shop this hour"
    }


async def test_an_action_keeps_its_place_and_gives_back_what_came_to_nothing(replica: Replica) -> None:
    store = replica.store
    one, other = await running(store), await running(store)
    limits = Limits(concurrent=1)
    assert await store.admit(occupant(one, limits)) is None
    assert await store.admit(occupant(one, limits)) is None, "an attempt that is repeated"
    assert "1 of 1" in (await store.admit(occupant(other, limits)) or "")
    await store.record_action(ActionRecord(one.id, 0, "pool_increase", Verdict.FAILED), epoch=one.epoch)
    assert await store.admit(occupant(other, limits)) is None, "the first one has ended"
    third = await running(store)
    await store.record_action(ActionRecord(other.id, 0, "pool_increase", Verdict.REFUSED), epoch=other.epoch)
    assert await store.admit(occupant(third, Limits(actions_per_hour=2))) is None, "one was refused by the application"
    assert "2 of 2" in (await store.admit(occupant(await running(store), Limits(actions_per_hour=2))) or "")
    assert await store.admit(occupant(await running(store, service="other"), Limits(actions_per_hour=2))) is None


async def test_places_of_a_recovery_that_has_ended_are_free(replica: Replica) -> None:
    store = replica.store
    dead, next_one = await running(store), await running(store)
    assert await store.admit(occupant(dead, Limits(concurrent=1))) is None
    await store.conclude(dead.id, epoch=dead.epoch, status=Status.UNKNOWN, message="", explanation={})
    assert await store.admit(occupant(next_one, Limits(concurrent=1))) is None


async def test_a_cooldown_is_counted_by_the_database(replica: Replica, database_url: str) -> None:
    store = replica.store
    first, second = await running(store), await running(store)
    assert await store.admit(occupant(first, Limits(cooldown_s=60))) is None
    assert "60 s must pass" in (await store.admit(occupant(second, Limits(cooldown_s=60))) or "")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE upright.permit SET taken_at = taken_at - interval '61 seconds'")
    assert await store.admit(occupant(second, Limits(cooldown_s=60))) is None


# Holds


async def test_three_failures_hold_an_error_until_it_is_reset(replica: Replica) -> None:
    store, fingerprint = replica.store, "a" * 32
    for count in range(3):
        assert await store.hold("default", "shop", fingerprint, LOOSE) is None, count
        last = await failed(store, fingerprint)
    hold = await store.hold("default", "shop", fingerprint, LOOSE)
    assert hold is not None
    assert (hold.recovery_id, hold.reason) == (last.id, "the last 3 recoveries of this error failed")
    assert await store.hold("default", "shop", "b" * 32, LOOSE) is None
    assert await store.hold("default", "other", fingerprint, LOOSE) is None
    assert [one.fingerprint for one in await store.holds()] == [fingerprint]
    assert await store.reset(fingerprint, by="ann", why="mended") == 1
    assert await store.hold("default", "shop", fingerprint, LOOSE) is None
    assert await store.holds() == []
    await failed(store, fingerprint)
    assert await store.hold("default", "shop", fingerprint, LOOSE) is None, "failures count anew"
    with pytest.raises(NotFound):
        await store.reset("nothing", by="ann")


async def test_a_hold_ends_by_itself(replica: Replica, database_url: str) -> None:
    store, fingerprint = replica.store, "a" * 32
    for _ in range(3):
        await failed(store, fingerprint)
    assert await store.hold("default", "shop", fingerprint, LOOSE) is not None
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE upright.hold SET until = clock_timestamp()")
    assert await store.hold("default", "shop", fingerprint, LOOSE) is None


async def test_failures_of_long_ago_hold_nothing(replica: Replica, database_url: str) -> None:
    for _ in range(3):
        await failed(replica.store, "a" * 32)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE upright.recovery SET finished_at = finished_at - interval '61 minutes'")
    assert await replica.store.hold("default", "shop", "a" * 32, LOOSE) is None


async def test_a_service_is_held_when_most_of_its_recoveries_fail(replica: Replica) -> None:
    store = replica.store
    rules = LOOSE.model_copy(update={"failing_service": FailingService(window=10, at_least=4, share=0.5)})
    recovered = await running(store)
    await ended(store, recovered, Verdict.RECOVERED)
    for index in range(3):
        assert await store.hold("default", "shop", "c" * 32, rules) is None
        await failed(store, f"{index}" * 32)
    hold = await store.hold("default", "shop", "c" * 32, rules)
    assert hold is not None
    assert (hold.fingerprint, hold.reason) == ("", "3 of the last 4 recoveries of this service failed")
    assert await store.reset("shop", by="ann") >= 1
    assert await store.hold("default", "shop", "c" * 32, rules) is None


async def test_replicas_begin_one_hold(database_url: str, replica_of: Make) -> None:
    replicas = [await replica_of(database_url) for _ in range(2)]
    for _ in range(3):
        await failed(replicas[0].store, "a" * 32)
    found = await asyncio.gather(
        *(replicas[index % 2].store.hold("default", "shop", "a" * 32, LOOSE) for index in range(6))
    )
    assert len({one.began_at for one in found if one is not None}) == 1
    assert len(await replicas[0].store.holds()) == 1


async def test_people_are_told_once_of_an_error_on_hold(replica: Replica) -> None:
    store = replica.store
    last = await failed(store, "a" * 32)
    hold = await store.hold(
        "default", "shop", "a" * 32, LOOSE.model_copy(update={"repeated_failures": RepeatedFailures(failures=1)})
    )
    assert hold is not None
    assert not await store.told_since(last.incident_id, hold.began_at)
    await store.record_alert(AlertRecord(last.id, "alert", "email", ("ops@example.com",), "it", "failed"))
    assert not await store.told_since(last.incident_id, hold.began_at), "it did not go out"
    await store.record_alert(AlertRecord(last.id, "alert", "email", ("ops@example.com",), "it", "sent"))
    assert await store.told_since(last.incident_id, hold.began_at)
    assert not await store.told_since((await running(store)).incident_id, hold.began_at)


# The switch


async def in_force(store: Any, record: RecoveryRecord, target: str = "default") -> Any:
    return await store.put_directive(
        record.tenant,
        record.service,
        "pool_increase",
        target,
        values={"max_size": 5},
        ttl_s=60,
        recovery_id=record.id,
        epoch=record.epoch,
    )


async def test_a_stop_withdraws_what_is_in_force_and_lets_nothing_more_in(replica: Replica) -> None:
    store = replica.store
    record, other = await running(store), await running(store, service="other")
    await in_force(store, record)
    await in_force(store, other)
    version, _ = await store.desired("default", "shop")
    assert await store.stop("default", "shop", origin="operator", by="ann", why="deploy") == 1
    now, left = await store.desired("default", "shop")
    assert (now > version, left) == (True, [])
    assert len((await store.desired("default", "other"))[1]) == 1
    with pytest.raises(Stopped, match="recovery is stopped for shop by ann: deploy"):
        await in_force(store, record)
    with pytest.raises(Stopped):
        await store.admit(occupant(record))
    assert await store.stopped("default", "other") is None
    assert await store.start("default", "shop", origin="operator", by="ann", why="") == 1
    assert (await in_force(store, record)).values == {"max_size": 5}
    assert await store.start("default", "shop", origin="operator", by="ann", why="") == 0


async def test_nothing_slips_in_beside_a_stop(database_url: str, replica_of: Make) -> None:
    one, other = await replica_of(database_url), await replica_of(database_url)
    record = await running(one.store)

    async def put(index: int) -> None:
        await in_force(one.store, record, f"pool {index}")

    work = [asyncio.create_task(put(index)) for index in range(20)]
    await other.store.stop(EVERY, EVERY, origin="operator", by="ann", why="")
    answers = await asyncio.gather(*work, return_exceptions=True)
    assert all(one is None or isinstance(one, Stopped) for one in answers)
    assert (await one.store.desired("default", "shop"))[1] == []


async def test_a_stop_reaches_a_command_that_nobody_has_fetched(service: Service) -> None:
    store = service.store
    event = waiting()
    record = await a_running_recovery(store, event)
    directive = await in_force(store, record)
    command = Command(id=uuid4(), kind="apply", deadline_ms=5000, directives=[directive])
    assert await store.put_waiter_command(event.error_id, command)
    await store.stop(EVERY, EVERY, origin="operator", by="ann", why="")
    assert await store.claim_waiter_command(event.error_id) is None
    assert (await store.command_progress(command.id))[1], "its recovery needn't wait for it"


async def test_an_application_stops_and_starts_itself_but_lifts_no_stop_of_an_operator(service: Service) -> None:
    body = {"schema_version": 1, "service": "shop", "stopped": True, "by": "deploy.sh", "why": "release 7"}
    record = await running(service.store)
    await in_force(service.store, record)
    response = await service.sender.post("/v1/switch", body)
    answer = SwitchAnswer.model_validate(response.json())
    assert (response.status_code, answer.stopped, answer.withdrawn) == (200, True, 1)
    await service.store.stop("default", "shop", origin="operator", by="ann", why="looking")
    answer = SwitchAnswer.model_validate((await service.sender.post("/v1/switch", {**body, "stopped": False})).json())
    assert (answer.stopped, answer.by) == (True, "ann")
    assert await service.store.start("default", "shop", origin="operator", by="ann", why="done") == 1
    assert await service.store.stopped("default", "shop") is None


async def test_the_switch_is_for_those_who_speak_for_the_service(replica: Replica) -> None:
    limited = service_on(replica, tenant_services={"default": ["shop"]})
    body = {"schema_version": 1, "service": "other", "stopped": True, "by": "x"}
    assert (await limited.sender.post("/v1/switch", body)).status_code == 403
    assert (await limited.sender.post("/v1/switch", {**body, "service": "*"})).status_code == 400
    unsigned = await limited.sender.http.post("/v1/switch", json={**body, "service": "shop"})
    assert unsigned.status_code == 401
    assert await replica.store.switches() == []
    await limited.sender.http.aclose()


# Trust and approvals


async def test_outcomes_count_since_trust_was_decided(replica: Replica) -> None:
    store = replica.store
    await ended(store, await running(store), Verdict.RECOVERED)
    await ended(store, await running(store), Verdict.NOT_RECOVERED)
    await ended(store, await running(store), Verdict.UNKNOWN)
    assert await store.track_record("database-error", "pool_increase", 20) == Record(1, 1)
    assert await store.track_record("database-error", "pool_increase", 1) == Record(0, 1)
    await store.set_trust("database-error", "pool_increase", Trust.APPROVE, by="upright", why="it failed")
    assert await store.track_record("database-error", "pool_increase", 20) == Record(0, 0)
    [setting] = await store.trust("database-error")
    assert (setting.level, setting.by, setting.why) == (Trust.APPROVE, "upright", "it failed")


async def asked(store: Any, record: RecoveryRecord, within_s: float = 60) -> Any:
    return await store.ask(
        record.id,
        "pool_increase",
        epoch=record.epoch,
        target="default",
        values={"max_size": 5},
        plan="from 2 to <b>5</b>",
        within_s=within_s,
    )


async def test_the_first_decision_stands(replica: Replica) -> None:
    store = replica.store
    record = await running(store)
    question = await asked(store, record)
    assert (await asked(store, record)).id == question.id
    assert [one.id for one in await store.approvals()] == [question.id]
    answers = await asyncio.gather(
        store.decide(question.id, approve=True, by="ann", via="link"),
        store.decide(question.id, approve=False, by="bob", via="command line"),
    )
    assert len({(one.status, one.decided_by) for one in answers}) == 1
    assert await store.approvals() == []
    with pytest.raises(StaleEpoch):
        await store.ask(record.id, "retry", epoch=record.epoch - 1, target="", values={}, plan="", within_s=1)
    with pytest.raises(NotFound):
        await store.decide(uuid4(), approve=True, by="ann", via="link")


async def test_an_answer_that_comes_too_late_is_none(replica: Replica) -> None:
    question = await asked(replica.store, await running(replica.store), within_s=0)
    answer = await replica.store.decide(question.id, approve=True, by="ann", via="link")
    assert (answer.status, answer.decided_by) == ("expired", "")


SECRET = "a secret of the service's own"


async def test_a_link_shows_what_is_asked_and_decides_once(replica: Replica) -> None:
    here = service_on(replica, approval_secret=SecretStr(SECRET))
    http = here.sender.http
    question = await asked(replica.store, await running(replica.store))
    path = links.address("", SECRET, question)
    page = await http.get(path)
    assert page.status_code == 200
    assert "from 2 to &lt;b&gt;5&lt;/b&gt;" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert (await replica.store.approval(question.id)).status == "waiting", "looking decides nothing"
    assert (await http.post(path, data={"decision": "approve"})).status_code == 400
    assert (await http.post(path, data={"decision": "maybe", "by": "ann"})).status_code == 400
    done = await http.post(path, data={"decision": "approve", "by": "<ann>", "why": "fine"})
    assert (done.status_code, "Approved by &lt;ann&gt;: fine" in done.text) == (200, True)
    again = await http.post(path, data={"decision": "reject", "by": "bob"})
    assert (again.status_code, "Approved by &lt;ann&gt;" in again.text) == (409, True)
    answer = await replica.store.approval(question.id)
    assert (answer.status, answer.decided_by, answer.via) == ("approved", "<ann>", "link")
    assert (await http.get(path[:-2])).status_code == 404
    without = service_on(replica)
    assert (await without.sender.http.get(path)).status_code == 404
    for one in (here, without):
        await one.sender.http.aclose()


# Audit


async def test_everything_is_written_down_and_nothing_can_be_rewritten(replica: Replica, database_url: str) -> None:
    store = replica.store
    record = await running(store)
    directive = await in_force(store, record)
    await store.withdraw_directive(directive.id)
    question = await asked(store, record)
    await store.decide(question.id, approve=True, by="ann", via="link", why="fine")
    action = ActionRecord(
        record.id, 0, "pool_increase", Verdict.NOT_RECOVERED, "no", {"max_size": 5}, {"max_size": 2}, {"max_size": 5},
        Evidence(kind="replay", outcome="failed"),
    )  # fmt: skip
    await store.record_action(action, epoch=record.epoch)
    await store.conclude(record.id, epoch=record.epoch, status=Status.NOT_RECOVERED, message="no", explanation={})
    await store.set_trust("database-error", "", Trust.SHADOW, by="ann", why="a rest")
    await store.stop("default", "shop", origin="operator", by="bob", why="deploy")
    await store.start("default", "shop", origin="operator", by="bob", why="done")
    await store.reset("shop", by="ann", why="mended")

    found = await store.audit(since_s=60)
    assert [one["what"] for one in reversed(found)] == [
        "recovery.opened",
        "directive.put",
        "directive.withdrawn",
        "approval.asked",
        "approval.approved",
        "action.not_recovered",
        "recovery.concluded",
        "trust.set",
        "switch.stopped",
        "switch.started",
        "hold.reset",
    ]
    by_what: dict[object, Json] = {one["what"]: one for one in found}
    assert {by_what[what]["who"] for what in ("approval.approved", "trust.set", "hold.reset")} == {"ann"}
    assert by_what["switch.stopped"]["why"] == "deploy"
    acted = by_what["action.not_recovered"]
    assert (acted["before"], acted["after"], acted["why"]) == ({"max_size": 2}, {"max_size": 5}, "no")
    assert acted["subject"] == f"{record.id}/pool_increase"
    assert len(await store.audit(since_s=60, service="shop")) == 10
    assert await store.audit(since_s=60, service="other") == []
    assert len(await store.audit(since_s=60, subject=str(record.id))) == 5
    with psycopg.connect(database_url) as connection:
        for statement in ("UPDATE upright.audit SET who = 'me'", "DELETE FROM upright.audit", "TRUNCATE upright.audit"):
            with pytest.raises(psycopg.errors.RaiseException, match="append-only"), connection.transaction():
                connection.execute(statement)
