"""A change that is for some processes first: the others don't get it, and lose nothing."""

from __future__ import annotations

from typing import Any

from upright.adapters.store import PostgresStore
from upright.domain.directive import Directive
from upright.domain.verdict import Status, Verdict
from upright.services.ports import ActionRecord, RecoveryRecord
from upright.testing.intake import Service, a_running_recovery, accept, an_event, waiting


async def put(store: PostgresStore, recovery: RecoveryRecord, **changes: Any) -> Directive:
    options: dict[str, Any] = {"values": {"max_size": 10}, "ttl_s": 900}
    return await store.put_directive(
        "default", "shop", "pool_increase", "default", recovery_id=recovery.id, epoch=recovery.epoch,
        **{**options, **changes},
    )  # fmt: skip


async def held(store: PostgresStore, instance: str) -> list[Any]:
    return [one.values["max_size"] for one in (await store.desired("default", "shop", instance))[1]]


async def test_only_the_first_share_gets_it_until_it_is_for_all(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    directive = await put(store, recovery, instances=["a"])
    assert (await held(store, "a"), await held(store, "b")) == ([10], [])
    assert (await store.desired("default", "shop"))[1][0].instances == ["a"]
    version = await store.widen_directive(directive.id)
    assert version == directive.version + 1
    assert (await held(store, "a"), await held(store, "b")) == ([10], [10])
    assert (await store.desired("default", "shop", "b"))[0] == version
    assert await store.widen_directive(directive.id) == version


async def test_the_others_keep_what_it_replaces(store: PostgresStore) -> None:
    first = await a_running_recovery(store)
    former = await put(store, first)
    second = await a_running_recovery(store, fingerprint="e" * 32)
    trial = await put(store, second, values={"max_size": 20}, instances=["a"])
    assert (await held(store, "a"), await held(store, "b")) == ([20], [10])
    assert (await store.desired("default", "shop", "b"))[1][0].version == former.version
    # A trial after a trial, as when a run is taken up again.
    trial = await put(store, second, values={"max_size": 30}, instances=["a"])
    assert (await held(store, "a"), await held(store, "b")) == ([30], [10])
    await store.widen_directive(trial.id)
    assert (await held(store, "a"), await held(store, "b")) == ([30], [30])


async def test_what_is_widened_when_it_is_over_stays_over(store: PostgresStore) -> None:
    directive = await put(store, await a_running_recovery(store), instances=["a"])
    await store.withdraw_directive(directive.id)
    assert await store.widen_directive(directive.id) is None
    assert (await held(store, "a"), await held(store, "b")) == ([], [])


async def test_errors_of_processes_that_did_not_have_it_yet_are_no_relapse(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    directive = await put(store, recovery, instances=["a"])
    # The other process has dealt with this version of the list, which held nothing for it.
    meanwhile = (await store.desired("default", "shop", "b"))[0]
    version = await store.widen_directive(directive.id)
    action = ActionRecord(recovery.id, 0, "pool_increase", Verdict.RECOVERED, directive_version=version)
    await store.record_action(action, epoch=recovery.epoch)
    await store.conclude(recovery.id, epoch=recovery.epoch, status=Status.RECOVERED, message="", explanation={})
    assert (await accept(store, an_event(instance="b", desired_version=meanwhile))).role == "joined_closed"
    assert (await store.recovery(recovery.id)).status is Status.RECOVERED
    assert (await accept(store, an_event(instance="b", desired_version=version))).role == "opened"
    assert (await store.recovery(recovery.id)).status is Status.RELAPSED


async def test_a_process_is_sent_what_is_for_it(service: Service) -> None:
    recovery = await a_running_recovery(service.store)
    await put(service.store, recovery, instances=["a"])

    async def sent(instance: str) -> list[Any]:
        body = {"service": "shop", "instance": instance, "hold_ms": 0}
        return (await service.sender.post("/v1/sync", body)).json()["desired"]

    assert [one["instances"] for one in await sent("a")] == [["a"]]
    assert await sent("b") == []


async def test_a_caller_that_checks_itself_gets_what_is_for_its_process(service: Service) -> None:
    """Another recovery tries something in another process meanwhile."""
    await service.sender.post("/v1/errors", an_event())
    recovery = await service.running()
    trial = await a_running_recovery(service.store, fingerprint="e" * 32)
    await put(service.store, trial, instances=["a"])
    await service.store.conclude(recovery.id, epoch=recovery.epoch, status=Status.RECOVERED, message="", explanation={})

    async def asked(instance: str) -> list[Any]:
        joined = waiting(instance=instance, age_ms=60_000)
        command = (await service.sender.post("/v1/errors", joined, wait_ms=3000)).json()["command"]
        assert command["kind"] == "replay"
        return [one["instances"] for one in command["directives"]]

    assert await asked("a") == [["a"]]
    assert await asked("b") == []


async def test_recurrences_are_those_of_processes_that_hold_the_change(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store, an_event(instance="a", desired_version=3))
    await accept(store, an_event(instance="a", desired_version=4))
    await accept(store, an_event(instance="b", desired_version=4))
    await accept(store, an_event(instance="a", desired_version=4, age_ms=600_000))

    async def count(**restricted: Any) -> int:
        return await store.recurrences(recovery.incident_id, 60, **restricted)

    assert await count() == 3
    assert await count(version=4) == 2
    assert await count(version=4, instances=["a"]) == 1
    assert await count(instances=[]) == 0
    assert await store.recurrences(recovery.incident_id, 3600) == 4
