"""What guardrails decide, over counts; and what a recovery does with it, with the ports in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from upright.adapters import runbook_files
from upright.adapters.report import report
from upright.config import Settings
from upright.domain.directive import Acknowledgement, Command, CommandResult
from upright.domain.event import Event
from upright.domain.guardrails import (
    FailingService,
    Guardrails,
    Limits,
    RepeatedFailures,
    StrategyGuardrail,
    Trust,
    TrustRules,
    lowest,
)
from upright.domain.runbook import Runbook, Step
from upright.domain.verdict import Evidence, Status, Verdict
from upright.errors import NotFound, RunbookError
from upright.services import alerts
from upright.services.dependencies import Dependencies
from upright.services.guardrails import EVERY, Approval, links
from upright.services.guardrails.holds import failing_service, repeated_failures
from upright.services.guardrails.limits import Count, refusal, scopes
from upright.services.guardrails.trust import Record, demotion, promotion
from upright.services.recovery import Recovery
from upright.services.routing import Router
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, EXHAUSTED, error_event
from upright.testing.ports import InMemoryStore, ScriptedDispatch

PROJECT = Path(__file__).parents[2]
BOOK = runbook_files.load(PROJECT)

# Limits


def of(limits: Limits, count: Count) -> str | None:
    guardrails = Guardrails(everything=Limits(), service=Limits(), runbook=Limits(), strategies={})
    step = Step(strategy="pool_increase", limits=limits)
    [scope, *_] = scopes(guardrails, Runbook(name="database-error", steps=[step]), step, "shop")
    return refusal([(scope, count)])


def test_a_limit_says_what_is_full() -> None:
    what = "pool_increase actions of database-error in shop"
    assert of(Limits(actions_per_hour=3), Count(last_hour=3)) == f"3 of 3 {what} this hour"
    assert of(Limits(actions_per_hour=3), Count(last_hour=2)) is None
    assert of(Limits(concurrent=1), Count(under_way=1)) == f"1 of 1 {what} at the same time"
    told = of(Limits(cooldown_s=60), Count(since_last_s=12.4))
    assert told == f"the last of the {what} was 12 s ago; 60 s must pass"
    assert of(Limits(cooldown_s=60), Count(since_last_s=60)) is None
    assert of(Limits(cooldown_s=60), Count()) is None
    assert of(Limits(actions_per_hour=0), Count()) is not None


def test_every_scope_counts_and_runbooks_only_narrow() -> None:
    guardrails = Guardrails(
        runbook=Limits(actions_per_hour=10, cooldown_s=5),
        strategies={"retry": StrategyGuardrail(actions_per_hour=4)},
    )
    step = Step(strategy="retry", limits=Limits(actions_per_hour=9))
    runbook = Runbook(name="mine", steps=[step], limits=Limits(actions_per_hour=50, cooldown_s=1))
    found = scopes(guardrails, runbook, step, "shop")
    assert [(one.service, one.runbook, one.strategy) for one in found] == [
        ("shop", "mine", "retry"),
        ("shop", None, "retry"),
        ("shop", "mine", None),
        ("shop", None, None),
        (None, None, None),
    ]
    assert found[1].limits.actions_per_hour == 4
    assert (found[2].limits.actions_per_hour, found[2].limits.cooldown_s) == (10, 5)


# Holds


def test_an_error_is_left_to_people_after_failures_in_a_row() -> None:
    rules = RepeatedFailures(failures=3)
    assert repeated_failures(rules, [True, True]) is None
    assert repeated_failures(rules, [True, True, True]) == "the last 3 recoveries of this error failed"
    assert repeated_failures(rules, [False, True, True, True]) is None
    assert repeated_failures(rules, [True, True, False, True]) is None


def test_a_service_is_left_to_people_when_most_of_its_recoveries_failed() -> None:
    rules = FailingService(window=10, at_least=6, share=0.5)
    assert failing_service(rules, [True] * 5) is None
    assert failing_service(rules, [True] * 4 + [False] * 2) == "4 of the last 6 recoveries of this service failed"
    assert failing_service(rules, [True] * 5 + [False] * 5) is None, "not more than half"
    assert failing_service(rules, [True] * 6 + [False] * 10) == "6 of the last 10 recoveries of this service failed"
    assert failing_service(rules, [False] + [True] * 9) is None, "the last one recovered"


# Trust


def test_the_lowest_trust_counts() -> None:
    assert lowest(None, Trust.AUTO, Trust.APPROVE) is Trust.APPROVE
    assert lowest(Trust.APPROVE, Trust.SHADOW) is Trust.SHADOW
    assert lowest() is Trust.AUTO


def test_wilsons_interval() -> None:
    assert Record().surely == (0, 1)
    low, high = Record(9, 1).surely
    assert (round(low, 4), round(high, 4)) == (0.5958, 0.9821)
    low, high = Record(0, 10).surely
    assert (low, round(high, 4)) == (0, 0.2775)


def test_trust_is_lost_by_failures_and_more_is_proposed_by_success() -> None:
    rules = TrustRules(promote_from=0.7, demote_below=0.5)
    assert demotion(rules, Trust.AUTO, Record(0, 3)) is None
    assert (demotion(rules, Trust.AUTO, Record(0, 4)) or "").startswith("4 of 4 verified outcomes failed")
    assert demotion(rules, Trust.APPROVE, Record(0, 10)) is None
    assert demotion(rules, Trust.AUTO, Record(10, 10)) is None
    assert promotion(rules, Trust.APPROVE, Trust.AUTO, Record(8, 0)) is None
    assert (promotion(rules, Trust.APPROVE, Trust.AUTO, Record(9, 0)) or "").startswith("9 of 9 verified outcomes")
    assert promotion(rules, Trust.AUTO, Trust.AUTO, Record(20, 0)) is None
    assert promotion(rules, Trust.SHADOW, Trust.AUTO, Record(20, 0)) is None
    assert "allows no more than approve" in (promotion(rules, Trust.APPROVE, Trust.APPROVE, Record(9, 0)) or "")


# Links


def test_a_link_opens_its_approval_only_while_it_holds() -> None:
    secret, approval_id = "s" * 24, uuid4()
    now = datetime.now(UTC)
    good = links.token(secret, approval_id, (now + timedelta(minutes=1)).timestamp())
    assert links.opened(secret, good) == approval_id
    said, _, signature = good.rpartition(".")
    forged = [
        "",
        "x",
        f"{said}.",
        f"{said}.{signature[:-1]}",
        f"{said}0.{signature}",
        f"{uuid4().hex}.{said.partition('.')[2]}.{signature}",
        f"{said}.\u00e4",
    ]
    for one in forged:
        with pytest.raises(NotFound, match="not valid"):
            links.opened(secret, one)
    with pytest.raises(NotFound, match="not valid"):
        links.opened("t" * 24, good)
    with pytest.raises(NotFound, match="expired"):
        links.opened(secret, links.token(secret, approval_id, (now - timedelta(minutes=1)).timestamp()))


# The file


def test_the_defaults_that_ship_are_the_built_in_ones() -> None:
    assert BOOK.guardrails == Guardrails()


MISTAKES = [
    ("strategies: {retri: {trust: auto}}", "unknown strategy 'retri'; did you mean 'retry'? allowed: retry, "),
    ("service: {actions_an_hour: 3}", "unknown key 'actions_an_hour'; did you mean 'actions_per_hour'? allowed: "),
    (
        "strategies: {retry: {trust: automatic}}",
        "strategies.retry.trust: Input should be 'shadow', 'approve' or 'auto'",
    ),
    ("failing_service: {share: 2}", "failing_service.share: Input should be less than or equal to 1 (given: 2)"),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES)
def test_mistakes_in_guardrails_are_told_with_their_line(tmp_path: Path, text: str, told: str) -> None:
    runbooks = tmp_path / "runbooks"
    runbooks.mkdir()
    (runbooks / "severity.yaml").write_text((PROJECT / "runbooks" / "severity.yaml").read_text())
    (runbooks / "guardrails.yaml").write_text(f"# mine\n{text}\n")
    with pytest.raises(RunbookError) as caught:
        runbook_files.load(tmp_path)
    [problem] = caught.value.problems
    assert problem.startswith(f"{runbooks}/guardrails.yaml:2: {told}")


# A recovery


class Bench:
    """A recovery's surroundings; `replays` is what the waiting caller sees after each action."""

    def __init__(self, outcome: str = "passed", **guardrails: Any) -> None:
        self.outcome = outcome
        self.store = InMemoryStore()
        self.dispatch = ScriptedDispatch(self._answer)
        book = replace(BOOK, guardrails=BOOK.guardrails.model_copy(update=guardrails))
        self.dependencies = Dependencies(self.store, self.dispatch, book, Settings(), "this")

    async def _answer(self, command: Command) -> CommandResult:
        done = [
            Acknowledgement(directive_id=one.id, version=one.version, status="applied") for one in command.directives
        ]
        evidence = Evidence.model_validate({"kind": "replay", "outcome": self.outcome})
        return CommandResult(command_id=command.id, status="done", acknowledgements=done, evidence=evidence)

    async def recover(
        self, event: Event, fingerprint: str = "f", *, approve: bool | None = None, relapse_of: UUID | None = None
    ) -> Recovery:
        """What the flow does, without Prefect. `approve`: what a person says when asked; None: nothing."""
        routing = Router(self.dependencies.book).route(event)
        accepted = await self.store.accept(
            "default",
            str(uuid4()),
            event,
            fingerprint=fingerprint,
            runbook=routing.runbook,
            severity=routing.severity,
            cooldown_s=0,
        )
        assert accepted.recovery is not None
        recovery = await Recovery.begin(
            self.dependencies, str(event.error_id), runbook=routing.runbook, flow_run_id=uuid4(), attempt=1
        )
        recovery.record = self.store.records[recovery.record.id] = replace(recovery.record, relapse_of=relapse_of)
        for choice in (await recovery.score()).tried:
            question = await recovery.question(choice)
            if question is not None and approve is not None:
                await self.store.decide(question.id, approve=approve, by="ann", via="link", why="because")
            acted = await recovery.act(choice)
            if acted.settled is None and (await recovery.verify(acted)).verdict is Verdict.RECOVERED:
                break
        await recovery.conclude()
        return recovery

    async def desired(self) -> list[str]:
        return [one.strategy for one in (await self.store.desired("default", "django"))[1]]


def slow_query(**fields: Any) -> Event:
    return error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT, **fields)


def of_strategy(recovery: Recovery, strategy: str = "timeout_increase") -> tuple[Verdict, str]:
    [found] = [one for one in recovery.actions if one.strategy == strategy]
    return found.verdict, found.reason


def limited(**limits: Any) -> dict[str, Any]:
    return {"strategies": {"timeout_increase": StrategyGuardrail(**limits)}}


async def test_what_has_no_place_is_refused_with_the_reason_and_changes_nothing() -> None:
    bench = Bench("failed", **limited(actions_per_hour=1))
    await bench.recover(slow_query(), "one")
    sent = len(bench.dispatch.to_waiters)
    recovery = await bench.recover(slow_query(), "two")
    assert of_strategy(recovery) == (Verdict.REFUSED, "1 of 1 timeout_increase actions in django this hour")
    assert len(bench.dispatch.to_waiters) == sent
    assert await bench.desired() == []
    assert recovery.record.status is Status.NOT_RECOVERED


async def test_joining_a_change_that_is_in_force_takes_no_place() -> None:
    bench = Bench(**limited(actions_per_hour=1))
    await bench.recover(slow_query(), "one")
    assert await bench.desired() == ["timeout_increase"]
    joined = await bench.recover(slow_query(), "two")
    assert joined.record.status is Status.RECOVERED


async def test_after_three_failures_an_error_goes_straight_to_people_until_reset() -> None:
    bench = Bench("failed")
    failed = [await bench.recover(slow_query()) for _ in range(3)]
    assert [len(one.guard.begun) for one in failed] == [0, 0, 1]
    assert alerts.due("escalation", failed[-1]) is None
    sent = len(bench.dispatch.to_waiters)
    held = await bench.recover(slow_query())
    assert len(bench.dispatch.to_waiters) == sent
    assert held.record.message.startswith("Recovery not attempted: the last 3 recoveries of this error failed; ")
    assert "upright guardrails reset f" in held.record.message
    assert {one.verdict for one in held.actions} == {Verdict.REFUSED}
    told = report(held.record, error_id=held.record.error_id, own_result=None)
    assert (told.attempted, told.success, told.message) == (False, False, held.record.message)
    assert held.record.message in held.report()
    bench.outcome = "passed"
    assert (await bench.recover(slow_query(), "another error")).record.status is Status.RECOVERED
    await bench.store.reset("f", by="ann")
    assert (await bench.recover(slow_query())).record.status is Status.RECOVERED


async def test_people_are_told_of_a_hold_whatever_the_severity() -> None:
    bench = Bench("failed")
    recoveries = [await bench.recover(slow_query(environment="development")) for _ in range(4)]
    assert [alerts.due("escalation", one) for one in recoveries[2:]] == [None, None]
    recoveries[3].told = True
    assert alerts.due("alert", recoveries[3]) == "people know of this error since recovery was stopped or put on hold"


async def test_a_service_whose_recoveries_fail_is_held_as_a_whole() -> None:
    bench = Bench("failed", failing_service=FailingService(window=10, at_least=4, share=0.5))
    for index in range(4):
        await bench.recover(slow_query(), f"error {index}")
    held = await bench.recover(slow_query(), "one more")
    assert held.record.withheld.startswith("4 of the last 4 recoveries of this service failed; ")


async def test_recoveries_that_could_do_nothing_are_no_failures() -> None:
    bench = Bench("failed")
    for _ in range(4):
        recovery = await bench.recover(error_event(("builtins.ValueError",)))
        assert recovery.record.withheld == ""


async def test_in_shadow_it_is_decided_and_recorded_and_nothing_is_touched() -> None:
    bench = Bench(**limited(trust=Trust.SHADOW))
    recovery = await bench.recover(slow_query())
    verdict, reason = of_strategy(recovery)
    assert verdict is Verdict.SKIPPED
    assert reason.startswith("shadow: would have done this: ")
    assert "1200" in reason
    assert bench.dispatch.to_waiters == []
    assert await bench.desired() == []
    assert await bench.store.shadow_decisions("database-error", "timeout_increase") == 1


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        (True, Verdict.RECOVERED, "replay passed"),
        (False, Verdict.REFUSED, "rejected by ann: because"),
        (None, Verdict.REFUSED, "it needs approval, and nobody answered in time"),
    ],
)
async def test_what_needs_approval_is_done_with_it_only(answer: bool | None, verdict: Verdict, reason: str) -> None:
    bench = Bench(**limited(trust=Trust.APPROVE))
    assert of_strategy(await bench.recover(slow_query(), approve=answer)) == (verdict, reason)
    assert await bench.desired() == (["timeout_increase"] if answer else [])


async def test_something_else_than_what_was_approved_is_not_done() -> None:
    bench = Bench(**limited(trust=Trust.APPROVE))
    ask = bench.store.ask

    async def of_another_value(*args: Any, **fields: Any) -> Approval:
        return await ask(*args, **{**fields, "values": {"timeout_ms": 800}, "plan": "to 800 ms"})

    bench.store.ask = of_another_value  # type: ignore[method-assign]
    verdict, reason = of_strategy(await bench.recover(slow_query(), approve=True))
    assert verdict is Verdict.REFUSED
    assert reason.startswith("what was approved (to 800 ms) is not what would be done now (")


async def test_what_needs_no_approval_is_tried_first() -> None:
    measurements = {**EXHAUSTED, "cache": {"alias": "default", "key": "catalog:42"}}
    bench = Bench(strategies={"cache_clear": StrategyGuardrail(trust=Trust.APPROVE)})
    recovery = await bench.recover(error_event(DJANGO_OPERATIONAL_ERROR, measurements=measurements))
    assert recovery.record.message == "Recovery successful: Pool Increase"
    assert bench.store.asked == {}


async def test_failures_lower_trust_with_the_reason_and_nothing_raises_it() -> None:
    bench = Bench("failed", trust=TrustRules(demote_below=0.5))
    for index in range(4):
        recovery = await bench.recover(slow_query(), f"error {index}")
    [setting] = bench.store.settings.values()
    assert (setting.runbook, setting.strategy, setting.level) == ("database-error", "timeout_increase", Trust.APPROVE)
    assert "4 of 4 verified outcomes failed" in setting.why
    assert "timeout_increase asks for approval from now on" in recovery.report()
    verdict, reason = of_strategy(await bench.recover(slow_query(), "another"))
    assert (verdict, reason) == (Verdict.REFUSED, "it needs approval, and nobody answered in time")


async def test_what_recovers_and_never_lasts_loses_trust_too() -> None:
    bench = Bench(trust=TrustRules(demote_below=0.7), repeated_failures=RepeatedFailures(failures=100))
    for index in range(4):
        done = await bench.recover(slow_query(), f"error {index}")
        [action] = [one for one in done.actions if one.verdict is Verdict.RECOVERED]
        gone = replace(action, verdict=Verdict.RELAPSED)
        bench.store.records[done.record.id] = replace(done.record, status=Status.RELAPSED, actions=(gone,))
    assert bench.store.settings == {}
    await bench.recover(slow_query(), "it came back", relapse_of=done.record.id)
    [setting] = bench.store.settings.values()
    assert (setting.strategy, setting.level) == ("timeout_increase", Trust.APPROVE)


async def test_the_file_is_the_ceiling_of_trust() -> None:
    bench = Bench(**limited(trust=Trust.APPROVE))
    await bench.store.set_trust("database-error", "timeout_increase", Trust.AUTO, by="ann", why="it works")
    assert of_strategy(await bench.recover(slow_query()))[0] is Verdict.REFUSED
    await bench.store.set_trust("database-error", "", Trust.SHADOW, by="ann", why="a rest")
    assert of_strategy(await bench.recover(slow_query(), "other"))[0] is Verdict.SKIPPED


async def test_while_stopped_errors_are_answered_and_nothing_is_touched() -> None:
    bench = Bench()
    await bench.recover(slow_query(), "before")
    assert await bench.store.stop(EVERY, EVERY, origin="operator", by="ann", why="deploy") == 1
    assert await bench.desired() == []
    sent = len(bench.dispatch.to_waiters)
    recovery = await bench.recover(slow_query())
    assert len(bench.dispatch.to_waiters) == sent
    assert recovery.record.message == "Recovery not attempted: recovery is stopped everywhere by ann: deploy"
    assert alerts.due("escalation", recovery) is None
    await bench.store.start(EVERY, EVERY, origin="operator", by="ann", why="")
    assert (await bench.recover(slow_query(), "after")).record.status is Status.RECOVERED


async def test_a_stop_in_the_middle_takes_the_change_back_and_claims_nothing() -> None:
    bench = Bench()
    answer = bench.dispatch.waiter
    assert answer is not None

    async def stopped_meanwhile(command: Command) -> CommandResult | None:
        await bench.store.stop("default", "django", origin="operator", by="ann", why="deploy")
        return await answer(command)

    bench.dispatch.waiter = stopped_meanwhile
    recovery = await bench.recover(slow_query())
    assert of_strategy(recovery)[0] is Verdict.UNKNOWN
    assert "recovery was stopped meanwhile" in of_strategy(recovery)[1]
    assert await bench.desired() == []
    assert recovery.record.status is Status.UNKNOWN


async def test_a_recovery_that_began_to_be_refused_is_refused_to_its_end() -> None:
    bench = Bench()
    event = slow_query()
    accepted = await bench.store.accept(
        "default", "one", event, fingerprint="f", runbook="database-error", severity=Router(BOOK).route(event).severity,
        cooldown_s=0,
    )  # fmt: skip
    assert accepted.recovery is not None
    await bench.store.withhold(accepted.recovery.id, epoch=1, why="recovery is stopped")
    again = await Recovery.begin(
        bench.dependencies, str(event.error_id), runbook="database-error", flow_run_id=uuid4(), attempt=2
    )
    assert list((await again.score()).tried) == []
    assert {one.reason for one in again.actions} == {"recovery is stopped"}
