"""A recovery's way from scoring to its verdict, with the ports in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from upright.adapters import runbook_files
from upright.config import Settings
from upright.domain.directive import Acknowledgement, AlertSettings, Command, CommandResult, SyncRequest
from upright.domain.event import Event
from upright.domain.runbook import Runbook
from upright.domain.verdict import Evidence, Status, Verdict
from upright.errors import NotFound, StaleEpoch, Unavailable
from upright.services.dependencies import Dependencies
from upright.services.learning import Attempt, Beta, Costs, Episode, Learned
from upright.services.learning.context import context_of
from upright.services.learning.scorer import Scorer
from upright.services.recovery import Recovery
from upright.services.routing import Router
from upright.testing.events import (
    ALL_COMMANDS,
    CANCELLED_FOR_TIMEOUT,
    DJANGO_OPERATIONAL_ERROR,
    EXHAUSTED,
    error_event,
    page,
)
from upright.testing.ports import InMemoryStore, ScriptedDispatch

BOOK = runbook_files.load(Path(__file__).parents[2])
PASSED = Evidence(kind="replay", outcome="passed", status_code=200)
FAILED = Evidence(kind="replay", outcome="failed", detail="the same error")
RUN = UUID(int=1)

Answerer = Callable[[Command], Awaitable[CommandResult | None]]


def answering(evidence: Evidence | None, status: Any = "applied", **fields: Any) -> Answerer:
    """An application that carries every command out, and sees this afterwards."""

    async def answer(command: Command) -> CommandResult:
        acknowledgements = [
            Acknowledgement(
                directive_id=one.id,
                version=one.version,
                status=status,
                before={"measured": "before"},
                after=one.values,
                **fields,
            )
            for one in command.directives
        ]
        return CommandResult(command_id=command.id, status="done", acknowledgements=acknowledgements, evidence=evidence)

    return answer


class Bench:
    """A recovery's surroundings."""

    def __init__(self, waiter: Answerer | None = None, agent: Answerer | None = None) -> None:
        self.store = InMemoryStore()
        self.dispatch = ScriptedDispatch(waiter, agent)
        self.dependencies = Dependencies(self.store, self.dispatch, BOOK, Settings(), "this")

    async def connect(self, *instances: str, commands: list[str] | None = None, **measurements: Any) -> None:
        for one in instances:
            request = SyncRequest(
                service="django",
                instance=one,
                measurements=measurements,
                capabilities={"commands": commands or [*ALL_COMMANDS, "send_email"]},
                settings=AlertSettings(alert_recipients=["ops@example.com"]),
            )
            await self.store.sync("default", request)

    async def tell(self, instance: str, version: int = 0, **measurements: Any) -> None:
        """A sync of a process that can break circuits."""
        strategies = {"circuit_break": {"targets": ["route:*"]}}
        request = SyncRequest(
            service="django",
            instance=instance,
            desired_version=version,
            measurements=measurements,
            capabilities={"commands": ALL_COMMANDS, "strategies": strategies},
        )
        await self.store.sync("default", request)

    async def open(self, event: Event, fingerprint: str | None = None) -> Recovery:
        routing = Router(BOOK).route(event)
        acceptance = await self.store.accept(
            "default",
            str(uuid4()),
            event,
            fingerprint=fingerprint or str(uuid4()),
            runbook=routing.runbook,
            severity=routing.severity,
            cooldown_s=60,
        )
        assert acceptance.recovery is not None
        return await self.begin(acceptance.recovery.error_id, acceptance.recovery.runbook)

    async def begin(self, error_id: UUID, runbook: str, flow_run_id: UUID | None = None) -> Recovery:
        return await Recovery.begin(
            self.dependencies, str(error_id), runbook=runbook, flow_run_id=flow_run_id or uuid4(), attempt=1
        )

    async def desired(self) -> dict[str, Any]:
        return {one.strategy: one.values for one in (await self.store.desired("default", "django"))[1]}


async def carry_out(recovery: Recovery) -> None:
    """What the flow does, without Prefect."""
    ranking = await recovery.score()
    for choice in ranking.tried:
        acted = await recovery.act(choice)
        if acted.settled is None and (await recovery.verify(acted)).verdict is Verdict.RECOVERED:
            break
    await recovery.conclude()


def slow_query(**fields: Any) -> Event:
    return error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT, **fields)


def verdicts(recovery: Recovery) -> dict[str, Verdict]:
    return {action.strategy: action.verdict for action in recovery.actions}


async def test_the_waiting_caller_applies_and_its_replay_is_the_verdict() -> None:
    bench = Bench(waiter=answering(PASSED))
    recovery = await bench.open(slow_query())
    await carry_out(recovery)
    assert recovery.record.status is Status.RECOVERED
    assert recovery.record.message == "Recovery successful: Timeout Increase"
    [command] = bench.dispatch.to_waiters
    assert (command.kind, command.verify, command.directives[0].values) == ("apply", True, {"timeout_ms": 1200})
    assert verdicts(recovery) == {
        "timeout_increase": Verdict.RECOVERED,
        "pool_increase": Verdict.SKIPPED,
        "cache_clear": Verdict.SKIPPED,
    }
    action = recovery.actions[0]
    assert action.before == {"timeout_ms": 400, "measured": "before"}
    assert action.after == {"timeout_ms": 1200}
    assert action.evidence == PASSED
    assert await bench.desired() == {"timeout_increase": {"timeout_ms": 1200}}
    assert not bench.store.locks


@pytest.mark.parametrize("evidence", [FAILED, None, Evidence(kind="replay", outcome="inconclusive")])
async def test_a_change_that_is_not_seen_to_help_is_withdrawn(evidence: Evidence | None) -> None:
    bench = Bench(waiter=answering(evidence))
    recovery = await bench.open(slow_query())
    await carry_out(recovery)
    assert recovery.record.status is (Status.NOT_RECOVERED if evidence is FAILED else Status.UNKNOWN)
    assert await bench.desired() == {}
    assert "the change was withdrawn" in recovery.actions[0].reason
    assert not bench.store.locks


async def test_the_next_strategy_is_tried_after_one_that_did_not_help() -> None:
    measurements = {**EXHAUSTED, "cache": {"alias": "default", "key": "catalog:42"}}
    seen: list[str] = []

    async def second_time_lucky(command: Command) -> CommandResult | None:
        seen.append(command.directives[0].strategy)
        return await answering(FAILED if len(seen) == 1 else PASSED)(command)

    bench = Bench(waiter=second_time_lucky)
    recovery = await bench.open(error_event(DJANGO_OPERATIONAL_ERROR, measurements=measurements))
    await carry_out(recovery)
    assert seen == ["cache_clear", "pool_increase"]
    assert recovery.record.status is Status.RECOVERED
    assert recovery.record.message == "Recovery successful: Pool Increase"
    assert await bench.desired() == {"pool_increase": {"max_size": 5}}


async def test_nothing_that_applies_is_not_a_recovery() -> None:
    bench = Bench(waiter=answering(PASSED))
    recovery = await bench.open(error_event(("builtins.ValueError",)))
    await carry_out(recovery)
    assert recovery.record.status is Status.NOT_RECOVERED
    assert recovery.record.message == "Recovery failed: no strategy could be carried out"
    assert bench.dispatch.to_waiters == []
    assert {action.verdict for action in recovery.actions} == {Verdict.SKIPPED}


@pytest.mark.parametrize(
    ("status", "verdict"),
    [("refused", Verdict.REFUSED), ("unsupported", Verdict.SKIPPED), ("failed", Verdict.FAILED)],
)
async def test_what_the_application_does_not_do_is_shown_and_taken_back(status: str, verdict: Verdict) -> None:
    bench = Bench(waiter=answering(None, status, reason="timeout_ms is limited to 1000"))
    recovery = await bench.open(slow_query())
    await carry_out(recovery)
    assert recovery.actions[0].verdict is verdict
    assert recovery.actions[0].reason == "timeout_ms is limited to 1000"
    assert recovery.record.status is Status.NOT_RECOVERED
    assert await bench.desired() == {}


async def test_without_any_process_nothing_is_put_in_force() -> None:
    bench = Bench()
    recovery = await bench.open(slow_query(waits=False))
    await carry_out(recovery)
    assert recovery.actions[0].reason == "no process of the service is connected"
    assert bench.store.versions == {}
    assert recovery.record.status is Status.NOT_RECOVERED


# Where nobody waits


def witnessing(*outcomes: str) -> Answerer:
    """An agent whose anonymous replays end like this, one after another."""
    left = list(outcomes)

    async def answer(command: Command) -> CommandResult | None:
        if command.kind != "replay":
            return await answering(None)(command)
        evidence = Evidence.model_validate({"kind": "anonymous_replay", "outcome": left.pop(0)})
        return CommandResult(command_id=command.id, status="done", evidence=evidence)

    return answer


async def test_a_witness_that_saw_the_failure_before_may_see_the_recovery() -> None:
    bench = Bench(agent=witnessing("failed", "passed"))
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False))
    await carry_out(recovery)
    assert [one.kind for one in bench.dispatch.to_agents] == ["replay", "apply", "replay"]
    assert bench.dispatch.to_agents[0].request is not None
    assert "django.db.utils.OperationalError" in bench.dispatch.to_agents[0].error_types
    assert recovery.record.status is Status.RECOVERED


async def test_a_witness_that_never_saw_the_failure_proves_nothing_and_nothing_is_changed() -> None:
    bench = Bench(agent=witnessing("passed"))
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False))
    await carry_out(recovery)
    assert [one.kind for one in bench.dispatch.to_agents] == ["replay"]
    assert recovery.record.status is Status.UNKNOWN
    assert recovery.record.message == "Nothing was done: the operation worked when it was tried again"


async def test_a_request_that_can_not_be_repeated_is_probed() -> None:
    kinds: list[str] = []

    async def agent(command: Command) -> CommandResult | None:
        kinds.append(command.kind)
        if command.kind != "probe":
            return await answering(None)(command)
        outcome = "failed" if kinds.count("probe") == 1 else "passed"
        evidence = Evidence.model_validate({"kind": "probe", "outcome": outcome})
        return CommandResult(command_id=command.id, status="done", evidence=evidence)

    bench = Bench(agent=agent)
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False, request=page("POST", replayable=False)))
    await carry_out(recovery)
    assert kinds == ["probe", "apply", "probe"]
    assert recovery.record.status is Status.RECOVERED


async def test_an_agent_that_does_not_answer_is_a_failure_to_act_that_may_be_repeated() -> None:
    async def silent(command: Command) -> CommandResult | None:
        return None

    bench = Bench(agent=silent)
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False))
    ranking = await recovery.score()
    with pytest.raises(Unavailable):
        await recovery.act(ranking.tried[0])
    await recovery.give_up(ranking.tried[0], "host:1:boot did not answer in time")
    await recovery.conclude()
    assert recovery.actions[0].verdict is Verdict.FAILED
    assert await bench.desired() == {}
    assert recovery.record.status is Status.NOT_RECOVERED


async def test_what_an_earlier_attempt_has_put_in_force_is_withdrawn_too() -> None:
    applied: list[Command] = []

    async def agent(command: Command) -> CommandResult | None:
        if command.kind == "replay":
            evidence = Evidence(kind="anonymous_replay", outcome="failed")
            return CommandResult(command_id=command.id, status="done", evidence=evidence)
        applied.append(command)
        return None if len(applied) == 1 else await answering(None)(command)

    bench = Bench(agent=agent)
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False))
    ranking = await recovery.score()
    with pytest.raises(Unavailable):
        await recovery.act(ranking.tried[0])
    acted = await recovery.act(ranking.tried[0])
    await recovery.verify(acted)
    await recovery.conclude()
    assert [command.directives[0].id for command in applied] == [applied[0].directives[0].id] * 2
    assert recovery.record.status is Status.NOT_RECOVERED
    assert "the change was withdrawn" in recovery.actions[0].reason
    assert await bench.desired() == {}


async def test_an_action_leaves_time_for_each_of_its_parts() -> None:
    async def agent(command: Command) -> CommandResult | None:
        commands.append(command)
        return await witness(command)

    commands: list[Command] = []
    witness = witnessing("failed", "passed")
    bench = Bench(agent=agent)
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False))
    await carry_out(recovery)
    assert recovery.record.status is Status.RECOVERED
    step = next(one for one in recovery.runbook.steps if one.strategy == "timeout_increase")
    assert commands[0].deadline_ms < step.timeout_s * 1000 - 1000, "time is left to act"
    assert commands[1].deadline_ms < step.timeout_s * 1000


async def test_a_caller_that_leaves_in_the_middle_leaves_no_proof() -> None:
    async def gone(command: Command) -> CommandResult | None:
        return None

    bench = Bench(waiter=gone, agent=witnessing("passed"))
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query())
    await carry_out(recovery)
    assert recovery.record.status is Status.UNKNOWN
    assert "it had not been seen to fail before" in recovery.actions[0].reason
    assert await bench.desired() == {}


# Retry


async def test_a_repetition_that_works_is_its_own_evidence() -> None:
    worked = Evidence(kind="retry", outcome="passed", attempts=3, status_code=200)
    bench = Bench(waiter=answering(worked))
    recovery = await bench.open(error_event(("builtins.ConnectionRefusedError", "builtins.ConnectionError")))
    await carry_out(recovery)
    [command] = bench.dispatch.to_waiters
    assert command.kind == "retry"
    assert command.retry is not None
    assert recovery.record.message == "Recovery successful: Retry"
    assert recovery.actions[0].reason == "retry of 3 attempts passed with status 200"


def refused_connection(**fields: Any) -> Event:
    return error_event(("builtins.ConnectionRefusedError", "builtins.ConnectionError"), waits=False, **fields)


@pytest.mark.parametrize(
    ("before", "kinds", "status"),
    [("passed", ["replay"], Status.UNKNOWN), ("failed", ["replay", "retry"], Status.RECOVERED)],
)
async def test_where_nobody_waits_a_repetition_counts_only_after_a_failure(
    before: str, kinds: list[str], status: Status
) -> None:
    async def agent(command: Command) -> CommandResult | None:
        outcome = before if command.kind == "replay" else "passed"
        kind = "anonymous_replay" if command.kind == "replay" else "retry"
        evidence = Evidence.model_validate({"kind": kind, "outcome": outcome})
        return CommandResult(command_id=command.id, status="done", evidence=evidence)

    bench = Bench(agent=agent)
    await bench.connect("host:1:boot")
    recovery = await bench.open(refused_connection())
    await carry_out(recovery)
    assert [one.kind for one in bench.dispatch.to_agents] == kinds
    assert recovery.record.status is status


async def test_a_runbook_without_anonymous_replays_repeats_nothing_for_nobody() -> None:
    bench = Bench(agent=witnessing())
    await bench.connect("host:1:boot")
    recovery = await bench.open(refused_connection())
    rules = recovery.runbook.verification.model_copy(update={"anonymous_replay": False})
    runbook = recovery.runbook.model_copy(update={"verification": rules})
    recovery = Recovery(bench.dependencies, recovery.record, recovery.event, runbook)
    await carry_out(recovery)
    assert bench.dispatch.to_agents == []
    assert "no anonymous replay" in recovery.actions[0].reason


# Several at once


async def test_ten_fingerprints_of_one_pool_raise_it_once() -> None:
    applied: list[int] = []

    async def waiter(command: Command) -> CommandResult | None:
        applied.append(command.directives[0].version)
        await asyncio.sleep(0.01)
        return await answering(PASSED)(command)

    bench = Bench(waiter=waiter)
    events = [error_event(DJANGO_OPERATIONAL_ERROR, measurements=EXHAUSTED) for _ in range(10)]
    recoveries = [await bench.open(event) for event in events]
    await asyncio.gather(*(carry_out(one) for one in recoveries))
    assert {one.record.status for one in recoveries} == {Status.RECOVERED}
    assert bench.store.versions == {("default", "django"): 1}
    assert set(applied) == {1}
    assert len(applied) == 10
    reasons = [one.actions[0].reason for one in recoveries]
    assert sum("was already in force" in reason for reason in reasons) == 9


async def test_another_recoverys_change_is_not_withdrawn_by_one_that_it_did_not_help() -> None:
    bench = Bench(waiter=answering(PASSED))
    await carry_out(await bench.open(slow_query()))
    bench.dispatch.waiter = answering(FAILED)
    late = await bench.open(slow_query(desired_version=0))
    await carry_out(late)
    assert late.record.status is Status.NOT_RECOVERED
    assert await bench.desired() == {"timeout_increase": {"timeout_ms": 1200}}


async def test_a_raise_that_did_not_help_gives_way_to_the_one_it_replaced() -> None:
    bench = Bench(waiter=answering(PASSED))
    await carry_out(await bench.open(slow_query()))
    bench.dispatch.waiter = answering(FAILED)
    again = await bench.open(slow_query(desired_version=1))
    await carry_out(again)
    assert bench.dispatch.to_waiters[-1].directives[0].values == {"timeout_ms": 3600}
    assert await bench.desired() == {"timeout_increase": {"timeout_ms": 1200}}


@pytest.mark.parametrize("left_s", [600.0, 1e-9])
async def test_what_comes_back_ends_when_it_would_have(left_s: float) -> None:
    bench = Bench(waiter=answering(PASSED))
    await carry_out(await bench.open(slow_query()))
    [(place, held)] = bench.store.directives["default", "django"].items()
    bench.store.directives["default", "django"][place] = held.model_copy(update={"ttl_s": left_s})
    bench.dispatch.waiter = answering(FAILED)
    await carry_out(await bench.open(slow_query(desired_version=1)))
    _, desired = await bench.store.desired("default", "django")
    assert all(one.ttl_s < left_s for one in desired)
    assert len(desired) == (1 if left_s > 1 else 0)


# Runs that end before their time


async def test_a_run_that_is_taken_up_again_does_not_repeat_what_is_finished() -> None:
    measurements = {**EXHAUSTED, "cache": {"alias": "default", "key": "catalog:42"}}
    bench = Bench(waiter=answering(FAILED))
    first = await bench.open(error_event(DJANGO_OPERATIONAL_ERROR, measurements=measurements))
    ranking = await first.score()
    await first.verify(await first.act(ranking.tried[0]))
    record = bench.store.records[first.record.id]
    bench.store.records[record.id] = replace(record, epoch=2)

    bench.dispatch.waiter = answering(PASSED)
    assert record.flow_run_id is not None
    second = await bench.begin(record.error_id, record.runbook, record.flow_run_id)
    await carry_out(second)
    assert second.record.id == first.record.id
    assert [one.directives[0].strategy for one in bench.dispatch.to_waiters] == ["cache_clear", "pool_increase"]
    assert verdicts(second) == {
        "cache_clear": Verdict.NOT_RECOVERED,
        "timeout_increase": Verdict.SKIPPED,
        "pool_increase": Verdict.RECOVERED,
    }
    with pytest.raises(StaleEpoch):
        await first.conclude()


async def test_a_successor_goes_on_with_the_change_that_its_predecessor_made() -> None:
    bench = Bench(waiter=answering(FAILED))
    first = await bench.open(slow_query())
    await first.act((await first.score()).tried[0])
    record = bench.store.records[first.record.id]
    bench.store.records[record.id] = replace(record, epoch=2)
    assert await bench.desired()
    second = await bench.begin(record.error_id, record.runbook, record.flow_run_id)
    await carry_out(second)
    assert await bench.desired() == {}


async def test_a_successor_leaves_another_recoverys_change_alone() -> None:
    bench = Bench(waiter=answering(PASSED))
    await carry_out(await bench.open(slow_query()))
    verified = await bench.desired()
    bench.dispatch.waiter = answering(FAILED)
    taken_over = await bench.open(slow_query())
    taken_over.record = bench.store.records[taken_over.record.id] = replace(taken_over.record, epoch=2)
    second = Recovery(bench.dependencies, taken_over.record, taken_over.event, taken_over.runbook)
    await carry_out(second)
    assert second.record.status is Status.NOT_RECOVERED
    assert await bench.desired() == verified


async def test_a_cancelled_recovery_takes_back_what_is_not_verified() -> None:
    holding = asyncio.Event()

    async def stuck(command: Command) -> CommandResult | None:
        holding.set()
        await asyncio.Event().wait()

    bench = Bench(waiter=stuck)
    recovery = await bench.open(slow_query())
    acting = asyncio.create_task(carry_out(recovery))
    await holding.wait()
    assert await bench.desired()
    acting.cancel()
    await asyncio.gather(acting, return_exceptions=True)
    await recovery.cancel()
    assert recovery.record.status is Status.CANCELLED
    assert await bench.desired() == {}
    assert not bench.store.locks


async def test_an_error_of_our_own_is_no_verdict_and_leaves_nothing_behind() -> None:
    bench = Bench(waiter=answering(None))
    recovery = await bench.open(slow_query())
    await recovery.act((await recovery.score()).tried[0])
    await recovery.abandon("Upright failed: it broke")
    assert recovery.record.status is Status.UNKNOWN
    assert await bench.desired() == {}


async def test_a_second_run_of_an_error_is_a_recovery_of_its_own() -> None:
    bench = Bench(waiter=answering(PASSED))
    first = await bench.open(slow_query())
    await carry_out(first)
    second = await bench.begin(first.record.error_id, first.record.runbook)
    assert second.record.id != first.record.id
    await carry_out(second)
    assert len(bench.dispatch.to_waiters) == 2


@pytest.mark.parametrize("error_id", ["no-id", str(uuid4())])
async def test_an_error_that_is_not_known_is_told(error_id: str) -> None:
    with pytest.raises(NotFound):
        await Recovery.begin(Bench().dependencies, error_id, runbook="database-error", flow_run_id=uuid4(), attempt=1)


async def test_the_report_says_how_many_processes_hold_the_change() -> None:
    bench = Bench(waiter=answering(PASSED))
    await bench.connect("host:1:boot", "host:2:boot")
    recovery = await bench.open(slow_query())
    await carry_out(recovery)
    directive = bench.dispatch.to_waiters[0].directives[0]
    bench.store.acks[directive.id] = {
        "host:1:boot": Acknowledgement(directive_id=directive.id, version=1, status="applied")
    }
    await recovery.converge(patience_s=0)
    assert recovery.converged == {"timeout_increase": "1 of 2 processes"}
    report = recovery.report()
    assert "in force in 1 of 2 processes" in report
    assert "1. `timeout_increase`: 65% expected at 4 s" in report


async def test_the_report_can_not_be_broken_by_what_the_error_says() -> None:
    bench = Bench(waiter=answering(PASSED))
    recovery = await bench.open(slow_query(message="a | b\n# Recovered\n`code`"))
    await carry_out(recovery)
    assert "> a \\| b # Recovered 'code'\n" in recovery.report()


# What is verified later: an open circuit, a throttle


BREAKING = Runbook.model_validate(
    {
        "name": "connection-error",
        "steps": [{"strategy": "circuit_break", "parameters": {"failure_threshold": 1, "timeout_seconds": 0.05}}],
        "verification": {"timeout_s": 1},
    }
)


async def circuit_broken(bench: Bench) -> Recovery:
    """A recovery that opened a circuit for a moment."""
    await bench.tell("host:1:boot")
    recovery = await bench.open(error_event(("builtins.ConnectionRefusedError", "builtins.ConnectionError")))
    recovery = Recovery(bench.dependencies, recovery.record, recovery.event, BREAKING)
    await carry_out(recovery)
    return recovery


async def test_a_caller_that_still_waits_tries_the_half_open_circuit() -> None:
    bench = Bench(waiter=answering(PASSED))
    recovery = await circuit_broken(bench)
    assert [(one.kind, one.verify) for one in bench.dispatch.to_waiters] == [("apply", False), ("replay", True)]
    assert recovery.record.status is Status.RECOVERED
    assert recovery.record.message == "Recovery successful: Circuit Break"
    assert "needed no longer" in recovery.actions[0].reason
    assert await bench.desired() == {}, "it is closed in every process"


async def test_a_circuit_whose_trial_fails_is_not_a_repair() -> None:
    recovery = await circuit_broken(Bench(waiter=answering(FAILED)))
    assert recovery.record.status is Status.NOT_RECOVERED


@pytest.mark.parametrize(("tried", "status"), [("passed", Status.RECOVERED), ("failed", Status.NOT_RECOVERED)])
async def test_without_the_caller_the_first_users_that_are_let_through_tell(tried: str, status: Status) -> None:
    bench = Bench()

    async def applies_and_leaves(command: Command) -> CommandResult | None:
        if command.kind != "apply":
            return None
        [directive] = command.directives
        state = "closed" if tried == "passed" else "open"
        await bench.tell(
            "host:1:boot", version=directive.version, circuits={directive.target: {"state": state, "probe": tried}}
        )
        return await answering(None)(command)

    bench.dispatch.waiter = applies_and_leaves
    recovery = await circuit_broken(bench)
    assert recovery.record.status is status
    assert recovery.actions[0].evidence is not None
    assert recovery.actions[0].evidence.kind == "probe"
    assert await bench.desired() == {}


async def test_what_was_told_of_an_earlier_circuit_is_no_evidence() -> None:
    bench = Bench()

    async def applies_and_leaves(command: Command) -> CommandResult | None:
        if command.kind != "apply":
            return None
        [directive] = command.directives
        await bench.tell("host:1:boot", circuits={directive.target: {"state": "closed", "probe": "passed"}})
        return await answering(None)(command)

    bench.dispatch.waiter = applies_and_leaves
    recovery = await circuit_broken(bench)
    assert recovery.record.status is Status.UNKNOWN
    assert "the change was withdrawn" in recovery.actions[0].reason


# Learning


class Scores:
    """A scorer that knows this."""

    def __init__(self, learned: Learned) -> None:
        self._learned = learned

    def learned(self, tenant: str) -> Learned:
        return self._learned


def two_ways(**fields: Any) -> Event:
    """An error that cache_clear and timeout_increase apply to, and that is not critical."""
    measurements = {**CANCELLED_FOR_TIMEOUT, "cache": {"alias": "default", "key": "catalog:42"}}
    return error_event(DJANGO_OPERATIONAL_ERROR, measurements=measurements, environment="staging", **fields)


def scoring(bench: Bench, learned: Learned) -> None:
    bench.dependencies = replace(bench.dependencies, scorer=cast(Scorer, Scores(learned)))


async def test_a_repeated_scoring_explores_as_it_did_the_first_time() -> None:
    bench = Bench(answering(PASSED))
    scoring(bench, Learned(Beta(BOOK.priors), Costs(BOOK.priors), epsilon=0.5))
    orders: set[tuple[str, ...]] = set()
    for _ in range(20):
        recovery = await bench.open(two_ways())
        first = [one.strategy for one in (await recovery.score()).tried]
        assert [one.strategy for one in (await recovery.score()).tried] == first
        orders.add(tuple(first))
        await recovery.conclude()
    assert orders == {("cache_clear", "timeout_increase"), ("timeout_increase", "cache_clear")}


async def test_an_action_tells_how_likely_it_was_and_the_explanation_what_it_was_chosen_by() -> None:
    bench = Bench(answering(FAILED))
    scoring(bench, Learned(Beta(BOOK.priors), Costs(BOOK.priors), epsilon=0.05))
    recovery = await bench.open(two_ways())
    await carry_out(recovery)
    done = {one.strategy: one.propensity for one in recovery.actions if one.verdict is Verdict.NOT_RECOVERED}
    assert done in ({"cache_clear": 0.95, "timeout_increase": 0.95}, {"cache_clear": 0.05, "timeout_increase": 0.05})
    learning = cast(dict[str, Any], recovery.explanation()["learning"])
    assert learning["propensity"] == done["cache_clear"]
    assert learning["candidates"] == ["timeout_increase", "cache_clear"]
    assert (learning["context"]["severity"], learning["context"]["situation"]) == ("high", "cancelled")


async def test_what_is_not_worth_its_cost_is_skipped_with_the_reason() -> None:
    bench = Bench(answering(PASSED))
    learned = Learned(Beta(BOOK.priors), Costs(BOOK.priors), escalation_s=1)
    recovery = await bench.open(two_ways())
    context = context_of(two_ways(), recovery.record.severity)
    for _ in range(40):
        attempt = Attempt("cache_clear", success=False, cost_s=3)
        learned.learn(Episode(context, ("cache_clear",), (attempt,), at=datetime.now(UTC).timestamp()))
    scoring(bench, learned)
    recovery = await bench.open(two_ways())
    ranking = await recovery.score()
    assert [one.strategy for one in ranking.tried] == ["timeout_increase"]
    found = recovery.finished("cache_clear")
    assert found is not None
    assert found.verdict is Verdict.SKIPPED
    assert found.reason.startswith("left out: 0 of 40 in this service")


async def test_a_run_that_is_taken_up_again_does_not_explore() -> None:
    bench = Bench(answering(PASSED))
    scoring(bench, Learned(Beta(BOOK.priors), Costs(BOOK.priors), epsilon=1.0))
    recovery = await bench.open(two_ways())
    assert [one.strategy for one in (await recovery.score()).tried] == ["timeout_increase", "cache_clear"]
    record = recovery.record
    again = await bench.begin(record.error_id, record.runbook, record.flow_run_id)
    assert again.record.id == record.id
    ranking = await again.score()
    assert [one.strategy for one in ranking.tried] == ["cache_clear", "timeout_increase"]
    assert ranking.learning["resumed"] is True
