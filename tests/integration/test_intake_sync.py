"""POST /v1/sync: held until there is news."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from upright.domain.directive import Command, CommandResult, Directive, SyncAnswer, SyncRequest
from upright.domain.verdict import Status
from upright.testing.intake import Service, a_running_recovery, accept, an_event, eventually, service_on


def sync(instance: str = "host:1:a", hold_ms: int = 20_000, **changes: Any) -> SyncRequest:
    return SyncRequest(service="shop", instance=instance, hold_ms=hold_ms, **changes)


async def post(service: Service, body: SyncRequest) -> SyncAnswer:
    response = await service.sender.post("/v1/sync", body)
    assert response.status_code == 200, response.text
    return SyncAnswer.model_validate_json(response.content)


async def put(service: Service, strategy: str = "pool_increase") -> Directive:
    recovery = await a_running_recovery(service.store, fingerprint=str(uuid4()))
    return await service.store.put_directive(
        "default", "shop", strategy, "default",
        values={"max_size": 10}, ttl_s=900, recovery_id=recovery.id, epoch=recovery.epoch,
    )  # fmt: skip


async def live(service: Service) -> bool:
    return bool(await service.store.live_instances("default", "shop"))


async def test_nothing_new_at_the_end_of_the_hold(service: Service) -> None:
    answer = await post(service, sync(hold_ms=0))
    assert (answer.version, answer.desired, answer.commands, answer.outcomes) == (0, [], [], [])
    assert await live(service)


async def test_a_new_directive_ends_the_hold(service: Service) -> None:
    held = asyncio.create_task(post(service, sync()))
    await eventually(lambda: live(service))
    directive = await put(service)
    answer = await held
    assert (answer.version, [one.id for one in answer.desired]) == (1, [directive.id])
    # It has that version now, and waits for the next; what is in force is always told in full.
    again = await post(service, sync(hold_ms=50, desired_version=1))
    assert [one.id for one in again.desired] == [directive.id]
    held = asyncio.create_task(post(service, sync(desired_version=1)))
    await service.store.withdraw_directive(directive.id)
    answer = await held
    assert (answer.version, answer.desired) == (2, [])


async def test_news_from_another_replica(service: Service, replica_of: Any, database_url: str) -> None:
    other = service_on(await replica_of(database_url))
    held = asyncio.create_task(post(service, sync()))
    await eventually(lambda: live(service))
    directive = await put(other)
    assert [one.id for one in (await held).desired] == [directive.id]
    await other.sender.http.aclose()


async def test_a_command_for_any_process_goes_to_one(service: Service) -> None:
    capable: dict[str, Any] = {"capabilities": {"commands": ["probe"]}}
    holds = [asyncio.create_task(post(service, sync(name, 1000, **capable))) for name in ("a", "b", "c")]

    async def all_live() -> bool:
        return len(await service.store.live_instances("default", "shop")) == 3

    await eventually(all_live)
    command = Command(id=uuid4(), kind="probe", deadline_ms=20_000)
    asked = asyncio.create_task(service.replica.dispatch.to_agent("default", "shop", command))
    answers = await asyncio.gather(*holds)
    assert [one.id for answer in answers for one in answer.commands] == [command.id]
    result = CommandResult(command_id=command.id, status="done")
    await post(service, sync("b", 0, results=[result], **capable))
    assert await asked == result


async def test_outcomes_are_brought_until_acknowledged(service: Service) -> None:
    event = an_event()
    recovery = await a_running_recovery(service.store, event)
    joined = await accept(service.store)
    held = asyncio.create_task(post(service, sync()))
    await eventually(lambda: live(service))
    await service.store.conclude(
        recovery.id, epoch=recovery.epoch, status=Status.NOT_RECOVERED, message="", explanation={}
    )
    answer = await held
    assert {one.error_id for one in answer.outcomes} == {event.error_id, joined.error_id}
    assert {one.recovery_id for one in answer.outcomes} == {recovery.id}
    assert (await post(service, sync(hold_ms=0, outcomes_received=[recovery.id]))).outcomes == []
    assert list(await service.store.undelivered_outcomes("default", "shop")) == []


async def test_no_outcome_is_lost_with_an_answer(service: Service) -> None:
    recovery = await a_running_recovery(service.store)
    errors = {recovery.error_id, *[(await accept(service.store)).error_id for _ in range(119)]}
    await service.store.conclude(
        recovery.id, epoch=recovery.epoch, status=Status.NOT_RECOVERED, message="", explanation={}
    )
    answer = await post(service, sync())
    heard = {one.error_id for one in answer.outcomes}
    await post(service, sync(outcomes_received=[recovery.id]))  # this answer gets lost, so it is said once more
    received = [recovery.id]
    while heard != errors:
        answer = await post(service, sync(hold_ms=0, outcomes_received=received))
        assert answer.outcomes or received, f"{len(errors - heard)} outcomes were lost"
        heard |= {one.error_id for one in answer.outcomes}
        received = list({one.recovery_id for one in answer.outcomes})


async def test_a_later_sync_of_the_same_process_takes_over(service: Service) -> None:
    first = asyncio.create_task(post(service, sync()))
    await eventually(lambda: live(service))
    second = asyncio.create_task(post(service, sync()))
    assert (await first).commands == []
    await service.store.put_agent_command("default", "shop", Command(id=uuid4(), kind="probe", deadline_ms=9000), None)
    assert len((await second).commands) == 1


async def test_holds_end_when_the_service_stops(service: Service) -> None:
    held = asyncio.create_task(post(service, sync(hold_ms=60_000)))
    await eventually(lambda: live(service))
    service.replica.bus.drain()
    assert (await held).desired == []


async def test_a_process_names_itself(service: Service) -> None:
    for field, value in (("instance", ""), ("instance", "x" * 301), ("service", ""), ("service", "x" * 201)):
        body = {**sync(hold_ms=0).model_dump(mode="json"), field: value}
        response = await service.sender.post("/v1/sync", body)
        assert (response.status_code, response.json()["error"]["field"]) == (400, field)
