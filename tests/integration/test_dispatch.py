"""Commands reach one process, and their results come back, whichever replica holds which end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from upright.domain.directive import Acknowledgement, Command, CommandResult, SyncRequest
from upright.domain.event import Waiter
from upright.domain.verdict import Evidence
from upright.testing.intake import Replica, a_running_recovery, accept, an_event, eventually, waiting

Replicas = Callable[..., Awaitable[Replica]]


def command(kind: str = "replay", deadline_ms: int = 8000, **changes: Any) -> Command:
    return Command(id=uuid4(), kind=kind, deadline_ms=deadline_ms, **changes)


def done(one: Command, outcome: str = "passed") -> CommandResult:
    return CommandResult(command_id=one.id, status="done", evidence=Evidence(kind="replay", outcome=outcome))


async def carry_out(replica: Replica, error_id: UUID, outcome: str = "passed") -> Command:
    claimed = await eventually(lambda: replica.store.claim_waiter_command(error_id))
    await replica.store.record_results(error_id, "default", "host:1:a", [done(claimed, outcome)], wait_s=5)
    return claimed


@pytest.mark.parametrize("listen", [True, False], ids=["notify", "polling"])
async def test_a_command_goes_to_the_waiter_and_its_result_comes_back(
    replica_of: Replicas, database_url: str, listen: bool
) -> None:
    """Also with no notifications, as behind a transaction pooler."""
    runner, holder = await replica_of(database_url, listen=listen), await replica_of(database_url, listen=listen)
    accepted = await accept(holder.store, waiting())
    assert await runner.dispatch.waiter_present(accepted.error_id)
    asked = command(error_types=["OperationalError"])
    claimed, result = await asyncio.gather(
        carry_out(holder, accepted.error_id), runner.dispatch.to_waiter(accepted.error_id, asked)
    )
    assert (claimed.id, claimed.kind, claimed.error_types) == (asked.id, asked.kind, asked.error_types)
    assert 0 < claimed.deadline_ms <= asked.deadline_ms
    assert result == done(asked)
    assert (await holder.store.error_state(accepted.error_id)).own_result is True


async def test_nobody_waits(replica: Replica) -> None:
    accepted = await accept(replica.store, an_event())
    assert not await replica.dispatch.waiter_present(accepted.error_id)
    assert await replica.dispatch.to_waiter(accepted.error_id, command()) is None
    assert await replica.dispatch.to_waiter(uuid4(), command()) is None


async def test_the_waiter_is_given_no_more_time_than_it_has(replica: Replica) -> None:
    accepted = await accept(replica.store, an_event(waiter=Waiter(budget_ms=3000, can=["replay"])))
    await replica.store.put_waiter_command(accepted.error_id, command(deadline_ms=60_000))
    claimed = await replica.store.claim_waiter_command(accepted.error_id)
    assert 0 < claimed.deadline_ms <= 3000


async def test_the_waiter_is_not_asked_what_it_can_not_do(replica: Replica) -> None:
    accepted = await accept(replica.store, an_event(waiter=Waiter(budget_ms=60_000, can=["probe"])))
    assert await replica.dispatch.to_waiter(accepted.error_id, command("replay", 60_000)) is None


async def test_the_waiter_leaves_before_it_takes_the_command(replica: Replica) -> None:
    accepted = await accept(replica.store, waiting())
    pending = asyncio.create_task(replica.dispatch.to_waiter(accepted.error_id, command(deadline_ms=60_000)))
    await eventually(lambda: has_command(replica, accepted.error_id))
    await replica.store.settle(accepted.error_id, waited=True, delivered=None)
    assert await pending is None
    assert await replica.store.claim_waiter_command(accepted.error_id) is None


async def has_command(replica: Replica, error_id: UUID) -> bool:
    return (await replica.store.error_state(error_id)).has_command


async def test_past_the_deadline_nobody_takes_it_any_more(replica: Replica) -> None:
    accepted = await accept(replica.store, waiting())
    assert await replica.dispatch.to_waiter(accepted.error_id, command(deadline_ms=20)) is None
    assert await replica.store.claim_waiter_command(accepted.error_id) is None


async def test_a_waiter_is_present_while_it_is_busy(replica: Replica) -> None:
    accepted = await accept(replica.store, an_event(waiter=Waiter(budget_ms=60, can=["replay"])))
    asked = command(deadline_ms=60_000)
    pending = asyncio.create_task(replica.dispatch.to_waiter(accepted.error_id, asked))
    await eventually(lambda: replica.store.claim_waiter_command(accepted.error_id))
    assert await replica.dispatch.waiter_present(accepted.error_id)
    await replica.store.record_results(accepted.error_id, "default", "", [done(asked, "failed")], wait_s=0)
    assert (await pending).evidence.outcome == "failed"
    assert not await replica.dispatch.waiter_present(accepted.error_id)
    assert (await replica.store.error_state(accepted.error_id)).own_result is False


async def test_evidence_that_is_not_first_hand_says_nothing_of_the_callers_operation(replica: Replica) -> None:
    accepted = await accept(replica.store, waiting())
    for evidence in (None, Evidence(kind="probe", outcome="passed"), Evidence(kind="replay", outcome="inconclusive")):
        result = CommandResult(command_id=uuid4(), status="done", evidence=evidence)
        await replica.store.record_results(accepted.error_id, "default", "", [result], wait_s=5)
        assert (await replica.store.error_state(accepted.error_id)).own_result is None
    own = CommandResult(command_id=uuid4(), status="done", evidence=Evidence(kind="caller_probe", outcome="passed"))
    await replica.store.record_results(accepted.error_id, "default", "", [own], wait_s=5)
    assert (await replica.store.error_state(accepted.error_id)).own_result is True


def agent(instance: str, commands: list[str] | None = None, **changes: Any) -> SyncRequest:
    capabilities = {} if commands is None else {"commands": commands}
    return SyncRequest(service="shop", instance=instance, hold_ms=0, capabilities=capabilities, **changes)


async def test_a_command_for_any_agent_is_taken_by_one(replica_of: Replicas, database_url: str) -> None:
    runner, one, two = [await replica_of(database_url) for _ in range(3)]
    await one.store.sync("default", agent("a"))
    await two.store.sync("default", agent("b"))
    asked = command("probe")
    pending = asyncio.create_task(runner.dispatch.to_agent("default", "shop", asked))

    async def claimed() -> list[Command]:
        found = await asyncio.gather(
            *(side.store.claim_agent_commands("default", "shop", name, None) for side, name in ((one, "a"), (two, "b")))
        )
        return [command for commands in found for command in commands]

    assert [one.id for one in await eventually(claimed)] == [asked.id]
    assert await claimed() == []
    await two.store.sync("default", agent("b", results=[done(asked)]))
    assert await pending == done(asked)


async def test_a_command_goes_to_the_agent_that_is_named(replica: Replica) -> None:
    store = replica.store
    await store.sync("default", agent("a"))
    await store.sync("default", agent("b"))
    asked = command("apply")
    pending = asyncio.create_task(replica.dispatch.to_agent("default", "shop", asked, "b"))

    async def claimed() -> list[Command]:
        assert await store.claim_agent_commands("default", "shop", "a", None) == []
        return await store.claim_agent_commands("default", "shop", "b", None)

    await eventually(claimed)
    await store.sync("default", agent("b", results=[done(asked)]))
    assert await pending == done(asked)


async def test_no_agent_can_do_it(replica: Replica) -> None:
    to_agent = replica.dispatch.to_agent
    assert await to_agent("default", "shop", command("send_email", 60_000)) is None
    await replica.store.sync("default", agent("a", ["probe"]))
    assert await to_agent("default", "shop", command("send_email", 60_000)) is None
    assert await to_agent("default", "shop", command("probe", 60_000), "gone") is None
    assert await to_agent("default", "elsewhere", command("probe", 60_000)) is None
    assert await to_agent("other", "shop", command("probe", 60_000)) is None


async def test_an_agent_is_given_only_what_it_announces(replica: Replica) -> None:
    await replica.store.sync("default", agent("a", ["probe"]))
    await replica.store.put_agent_command("default", "shop", command("send_email"), None)
    assert await replica.store.claim_agent_commands("default", "shop", "a", ["probe"]) == []
    assert len(await replica.store.claim_agent_commands("default", "shop", "b", ["probe", "send_email"])) == 1


async def test_the_agent_goes_away(replica: Replica) -> None:
    await replica.store.sync("default", agent("a"))
    pending = asyncio.create_task(replica.dispatch.to_agent("default", "shop", command("probe", 60_000)))
    await eventually(lambda: replica.store.claim_agent_commands("default", "shop", "a", None))
    await replica.store.forget_instance("default", "shop", "a")
    assert await pending is None


async def test_results_of_foreign_commands_are_ignored(replica: Replica) -> None:
    mine, theirs = await accept(replica.store, waiting()), await accept(replica.store, waiting())
    asked = command(deadline_ms=60_000)
    await replica.store.put_waiter_command(mine.error_id, asked)
    await replica.store.record_results(theirs.error_id, "default", "", [done(asked)], wait_s=5)
    await replica.store.sync("default", agent("a", results=[done(asked)]))
    await replica.store.sync("other", agent("a", results=[done(asked)]))
    assert await replica.store.command_progress(asked.id) == (None, False)


async def test_acknowledgements_come_with_results(replica: Replica) -> None:
    store = replica.store
    recovery = await a_running_recovery(store, waiting())
    directive = await store.put_directive(
        "default", "shop", "timeout_increase", "default",
        values={"timeout_ms": 15_000}, ttl_s=60, recovery_id=recovery.id, epoch=recovery.epoch,
    )  # fmt: skip
    asked = command("apply", directives=[directive])
    applied = Acknowledgement(directive_id=directive.id, version=directive.version, status="applied")
    result = done(asked).model_copy(update={"acknowledgements": [applied]})
    await store.put_waiter_command(recovery.error_id, asked)
    await store.record_results(recovery.error_id, "default", "host:1:a", [result], wait_s=5)
    assert list(await store.acknowledgements(directive.id)) == [("host:1:a", applied)]


async def test_cancelling_the_wait_withdraws_the_command(replica: Replica) -> None:
    accepted = await accept(replica.store, waiting())
    pending = asyncio.create_task(replica.dispatch.to_waiter(accepted.error_id, command(deadline_ms=60_000)))
    await eventually(lambda: has_command(replica, accepted.error_id))
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending
    assert await replica.store.claim_waiter_command(accepted.error_id) is None


async def test_the_bus_listens_again_after_its_connection_is_cut(replica: Replica) -> None:
    async def listening() -> bool:
        return replica.bus.listening

    await eventually(listening)
    cut = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'upright bus' "
               "AND datname = current_database()")  # fmt: skip
    await replica.database.run(lambda tx: tx.rows(cut))

    async def deaf() -> bool:
        return not replica.bus.listening

    await eventually(deaf)
    await eventually(listening)


async def test_a_lost_connection_is_replaced(replica: Replica) -> None:
    await accept(replica.store)
    cut = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
               "AND pid <> pg_backend_pid() AND application_name <> 'upright bus'")  # fmt: skip
    await asyncio.gather(*(accept(replica.store) for _ in range(8)))
    await replica.database.run(lambda tx: tx.rows(cut))
    assert (await asyncio.gather(*(accept(replica.store) for _ in range(8))))[0].role == "joined_running"
