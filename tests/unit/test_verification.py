"""What a runbook's checks say together, how far a change goes at first, and how it is undone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from upright.adapters import runbook_files
from upright.domain.check import HttpCheck, SqlCheck, TcpCheck
from upright.domain.directive import Acknowledgement, Command, CommandResult
from upright.domain.event import Event
from upright.domain.runbook import Runbook
from upright.domain.verdict import Checked, Evidence, Status, Verdict, judge_all
from upright.services import alerts
from upright.services.blast_radius import first_share
from upright.services.recovery import Recovery
from upright.testing import bench as benches
from upright.testing.bench import Answerer, answering, carry_out
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, EXHAUSTED, error_event

BOOK = runbook_files.load(Path(__file__).parents[2])
PASSED = Evidence(kind="replay", outcome="passed", status_code=200)
FAILED = Evidence(kind="replay", outcome="failed", detail="the same error")


def Bench(waiter: Answerer | None = None) -> benches.Bench:  # noqa: N802 (of this project's runbooks)
    return benches.Bench(BOOK, waiter)


def slow_query(**fields: Any) -> Event:
    return error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT, **fields)


OUTCOMES: dict[str, Evidence] = {
    outcome: Evidence(kind="http", outcome=outcome)  # type: ignore[arg-type]
    for outcome in ("passed", "failed", "inconclusive")
}


def checked(before: str | None, after: str, kind: Any = "http") -> Checked:
    was = None if before is None else OUTCOMES[before].model_copy(update={"kind": kind})
    return Checked(name=kind, before=was, after=OUTCOMES[after].model_copy(update={"kind": kind}))


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([], Verdict.UNKNOWN),
        ([checked("failed", "passed")], Verdict.RECOVERED),
        ([checked("passed", "passed")], Verdict.UNKNOWN),
        ([checked("inconclusive", "passed")], Verdict.UNKNOWN),
        ([checked(None, "passed")], Verdict.UNKNOWN),
        ([checked(None, "passed", "replay")], Verdict.RECOVERED),
        ([checked(None, "passed", "replay"), checked("passed", "passed")], Verdict.RECOVERED),
        ([checked(None, "passed", "replay"), checked("passed", "inconclusive")], Verdict.UNKNOWN),
        ([checked(None, "passed", "replay"), checked("passed", "failed")], Verdict.NOT_RECOVERED),
        ([checked("failed", "passed"), checked("failed", "failed")], Verdict.NOT_RECOVERED),
        ([checked("failed", "inconclusive"), checked("passed", "failed")], Verdict.NOT_RECOVERED),
        ([checked("failed", "passed", "quiet"), checked("passed", "passed")], Verdict.RECOVERED),
        ([checked("inconclusive", "passed", "quiet"), checked("passed", "passed")], Verdict.UNKNOWN),
        ([checked("passed", "passed", "anonymous_replay"), checked(None, "passed", "tcp")], Verdict.UNKNOWN),
    ],
)
def test_a_chain_is_judged_by_all_of_its_checks(checks: list[Checked], verdict: Verdict) -> None:
    assert judge_all(checks) is verdict


@pytest.mark.parametrize(
    ("radius", "strategy", "live", "share"),
    [
        (1, "pool_increase", ["a", "b", "c"], ["b"]),
        (2, "pool_increase", ["a", "b", "c"], ["b", "a"]),
        (3, "pool_increase", ["a", "b", "c"], None),
        ("25%", "pool_increase", ["a", "b", "c", "d", "e"], ["b", "a"]),
        ("1%", "pool_increase", ["a", "b"], ["b"]),
        ("100%", "pool_increase", ["a", "b"], None),
        (1, "pool_increase", ["b"], None),
        (1, "pool_increase", [], None),
        (1, "pool_increase", ["a"], ["b"]),
        (1, "circuit_break", ["a", "b"], None),
        (1, "request_throttle", ["a", "b"], None),
    ],
)
def test_the_first_share_begins_where_it_failed(
    radius: int | str, strategy: str, live: list[str], share: list[str] | None
) -> None:
    assert first_share(radius, strategy, live, "b") == share


class Site:
    """A service's processes: each carries commands out; what a probe sees depends on whether a change is in force."""

    def __init__(self, bench: benches.Bench, *, broken_until: str | None = "timeout_increase") -> None:
        self.bench = bench
        self.broken_until = broken_until
        self.made: list[Any] = []

    async def works(self) -> bool:
        return self.broken_until is None or self.broken_until in await self.bench.desired()

    async def probe(self, check: HttpCheck | SqlCheck | TcpCheck) -> Evidence:
        self.made.append(check)
        return Evidence(kind=check.kind, outcome="passed" if await self.works() else "failed", detail="asked")

    async def __call__(self, command: Command) -> CommandResult:
        done = CommandResult(command_id=command.id, status="done")
        if command.kind == "traffic":
            return done.model_copy(update={"counts": {"succeeded": 20 if self.made else 0, "failed": 0}})
        if command.kind == "check":
            self.made.append(command.check)
            seen = Evidence(kind="check", outcome="passed" if await self.works() else "failed")
            return done.model_copy(update={"evidence": seen})
        if command.kind in ("replay", "probe"):
            seen = Evidence(kind="probe", outcome="passed" if await self.works() else "failed")
            return done.model_copy(update={"evidence": seen})
        result = await answering(None)(command)
        assert result is not None
        return result


def verification(*checks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"timeout_s": 5, **fields, "checks": list(checks)}


HTTP = {"kind": "http", "url": "http://shop.example/healthz"}
QUIET = {"kind": "quiet", "window_s": 1, "min_requests": 10}


async def test_where_nobody_waits_a_check_that_failed_before_and_passes_after_is_a_recovery() -> None:
    bench = Bench()
    site = bench.dispatch.agent = Site(bench)
    bench.prober = site
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False), verification=verification(HTTP))
    await carry_out(recovery)
    assert recovery.record.status is Status.RECOVERED
    [action] = [one for one in recovery.actions if one.checks]
    [check] = action.checks
    assert (check.before and check.before.outcome, check.after.outcome) == ("failed", "passed")
    assert [command.kind for command in bench.dispatch.to_agents] == ["apply"]
    assert "http http://shop.example/healthz passed (asked)" in action.reason
    assert "| `timeout_increase` | http http://shop.example/healthz | **failed** asked | **passed** asked |" in (
        recovery.report()
    )


async def test_what_works_already_is_not_acted_upon_where_nobody_waits() -> None:
    bench = Bench()
    site = bench.dispatch.agent = Site(bench, broken_until=None)
    bench.prober = site
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False), verification=verification(HTTP))
    await carry_out(recovery)
    assert recovery.record.status is Status.UNKNOWN
    assert "a http worked before it" in recovery.actions[0].reason
    assert bench.store.versions == {}


async def test_the_callers_own_replay_counts_though_the_runbook_does_not_ask_for_it() -> None:
    bench = Bench(waiter=answering(FAILED))
    site = Site(bench)
    bench.prober = site
    recovery = await bench.open(slow_query(), verification=verification(HTTP))
    await carry_out(recovery)
    assert recovery.record.status is Status.NOT_RECOVERED
    assert [one.name for one in recovery.actions[0].checks] == ["replay"]


async def test_a_check_that_fails_after_a_replay_that_passed_is_no_recovery() -> None:
    bench = Bench(waiter=answering(PASSED))
    site = Site(bench, broken_until="nothing that is tried")
    bench.prober = site
    recovery = await bench.open(slow_query(), verification=verification({"kind": "replay"}, HTTP))
    await carry_out(recovery)
    assert recovery.record.status is Status.NOT_RECOVERED
    assert await bench.desired() == {}


async def test_a_registered_check_is_made_where_it_failed() -> None:
    bench = Bench(waiter=answering(PASSED))
    site = bench.dispatch.agent = Site(bench)
    await bench.connect("host:2:boot", "host:1:boot")
    rules = verification({"kind": "replay"}, {"kind": "check", "name": "queue_drained"})
    recovery = await bench.open(slow_query(), verification=rules)
    await carry_out(recovery)
    assert recovery.record.status is Status.RECOVERED
    assert [one["name"] for one in site.made] == ["queue_drained"] * 2


async def test_a_check_that_nobody_can_make_is_unknown() -> None:
    bench = Bench(waiter=answering(PASSED))
    rules = verification({"kind": "replay"}, {"kind": "check", "name": "queue_drained"})
    recovery = await bench.open(slow_query(), verification=rules)
    await carry_out(recovery)
    assert recovery.record.status is Status.UNKNOWN
    assert "no process of the service can carry it out" in recovery.actions[0].reason


@pytest.mark.parametrize(
    ("before", "again", "succeeded", "status"),
    [
        (3, 0, 10, Status.RECOVERED),
        (2, 0, 10, Status.UNKNOWN),  # it was quiet enough before
        (3, 0, 9, Status.UNKNOWN),  # too little traffic
        (3, 1, 10, Status.NOT_RECOVERED),
    ],
)
async def test_silence_counts_where_there_was_noise_and_is_traffic(
    before: int, again: int, succeeded: int, status: Status
) -> None:
    bench = Bench()

    async def agent(command: Command) -> CommandResult | None:
        if command.kind == "apply":
            bench.store.errors_again = again
            [directive] = command.directives
            ack = Acknowledgement(directive_id=directive.id, version=directive.version, status="applied")
            bench.store.acks[directive.id] = {"host:1:boot": ack}
            return CommandResult(command_id=command.id, status="done", acknowledgements=[ack])
        assert command.kind == "traffic"
        counts = {"succeeded": succeeded, "failed": 0, "failed_otherwise": 0}
        return CommandResult(command_id=command.id, status="done", counts=counts)

    bench.dispatch.agent = agent
    bench.store.errors_again = before
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query(waits=False), verification=verification(QUIET))
    await carry_out(recovery)
    assert recovery.record.status is status


async def test_a_change_is_tried_in_the_process_that_failed_and_then_goes_to_all() -> None:
    bench = Bench(waiter=answering(PASSED))
    await bench.connect("host:1:boot", "host:2:boot", "host:3:boot")
    recovery = await bench.open(slow_query())
    await carry_out(recovery)
    [command] = bench.dispatch.to_waiters
    assert command.directives[0].instances == ["host:1:boot"]
    [directive] = (await bench.store.desired("default", "django"))[1]
    assert directive.instances is None
    assert directive.version > command.directives[0].version
    assert recovery.actions[0].directive_version == directive.version


async def test_a_change_that_another_recovery_tries_elsewhere_is_not_taken_over() -> None:
    bench = Bench(waiter=answering(PASSED))
    await bench.connect("host:1:boot", "host:2:boot")
    first = await bench.open(slow_query())
    other = await first.dependencies.store.put_directive(
        "default", "django", "timeout_increase", "default", values={"timeout_ms": 900}, ttl_s=60,
        recovery_id=first.record.id, epoch=first.record.epoch, instances=["host:2:boot"],
    )  # fmt: skip
    second = await bench.open(slow_query())
    await carry_out(second)
    assert second.actions[0].verdict is Verdict.SKIPPED
    assert "in other processes" in second.actions[0].reason
    assert (await bench.store.desired("default", "django"))[1] == [other]


def exhausted() -> Event:
    measurements = {**EXHAUSTED, "cache": {"alias": "default", "key": "catalog:42"}}
    return error_event(DJANGO_OPERATIONAL_ERROR, measurements={**measurements, "query_cancelled": "statement_timeout"})


def steps(*strategies: str, keep: str = "") -> dict[str, Any]:
    return {"order": "fixed", "steps": [{"strategy": one, "keep": one == keep} for one in strategies]}


async def test_in_reverse_every_change_stands_until_the_end_and_the_last_is_undone_first() -> None:
    bench = Bench(waiter=answering(FAILED))
    recovery = await bench.open(exhausted(), **steps("timeout_increase", "pool_increase"), rollback="reverse")
    taken: list[str] = []
    withdraw = bench.store.withdraw_directive

    async def watched(directive_id: Any) -> None:
        taken.extend(one.strategy for one in (await bench.store.desired("default", "django"))[1]
                     if one.id == directive_id)  # fmt: skip
        await withdraw(directive_id)

    bench.store.withdraw_directive = watched  # type: ignore[method-assign]
    ranking = await recovery.score()
    for choice in ranking.tried:
        await recovery.verify(await recovery.act(choice))
    assert set(await bench.desired()) == {"timeout_increase", "pool_increase"}
    await recovery.conclude()
    assert taken == ["pool_increase", "timeout_increase"]
    assert await bench.desired() == {}
    assert all("undone when no later step recovered" in one.reason for one in recovery.actions)


async def test_a_run_that_is_taken_up_again_undoes_what_the_first_one_left_standing() -> None:
    bench = Bench(waiter=answering(FAILED))
    rules = {**steps("timeout_increase", "pool_increase"), "rollback": "reverse"}
    recovery = await bench.open(exhausted(), **rules)
    ranking = await recovery.score()
    await recovery.verify(await recovery.act(ranking.tried[0]))
    assert set(await bench.desired()) == {"timeout_increase"}
    record = await bench.store.recovery(recovery.record.id)
    again = Recovery(recovery.dependencies, record, recovery.event, recovery.runbook)
    await carry_out(again)
    assert await bench.desired() == {}


async def test_what_a_later_step_builds_on_stays_with_it() -> None:
    evidence: Iterator[Evidence] = iter([FAILED, PASSED])

    async def application(command: Command) -> CommandResult | None:
        return await answering(next(evidence))(command)

    bench = Bench(waiter=application)
    await bench.connect("host:1:boot", "host:2:boot")
    recovery = await bench.open(exhausted(), **steps("timeout_increase", "pool_increase"), rollback="reverse")
    await carry_out(recovery)
    assert recovery.record.status is Status.RECOVERED
    assert set(await bench.desired()) == {"timeout_increase", "pool_increase"}
    assert [one.instances for one in (await bench.store.desired("default", "django"))[1]] == [None, None]


async def test_what_the_runbook_keeps_is_kept_and_told() -> None:
    bench = Bench(waiter=answering(FAILED))
    recovery = await bench.open(exhausted(), **steps("timeout_increase", "pool_increase", keep="timeout_increase"))
    await carry_out(recovery)
    assert set(await bench.desired()) == {"timeout_increase"}
    assert "the change is kept until it expires" in recovery.actions[0].reason
    assert recovery.record.status is Status.NOT_RECOVERED


def told(directive: Any, status: Any, reason: str = "") -> Acknowledgement:
    return Acknowledgement(directive_id=directive.id, version=directive.version, status=status, reason=reason)


async def test_reverts_are_counted_as_the_processes_tell_them() -> None:
    bench = Bench(waiter=answering(FAILED))
    recovery = await bench.open(slow_query(), **steps("timeout_increase"))
    await carry_out(recovery)
    directive = bench.dispatch.to_waiters[0].directives[0]
    for instance in ("host:1:boot", "host:2:boot"):
        await bench.acknowledge(instance, told(directive, "applied"))
        await bench.acknowledge(instance, told(directive, "reverted"))
    await recovery.converge(patience_s=0)
    assert recovery.reverted == {"timeout_increase": "reverted in 2 of 2 processes"}
    assert "reverted in 2 of 2 processes" in recovery.report()
    assert recovery.not_reverted == []


async def test_what_could_not_be_reverted_is_told_loudly() -> None:
    bench = Bench(waiter=answering(FAILED))
    recovery = await bench.open(slow_query(), **steps("timeout_increase"), alert={"on": [], "escalate_on": []})
    await carry_out(recovery)
    directive = bench.dispatch.to_waiters[0].directives[0]
    await bench.acknowledge("host:1:boot", told(directive, "applied"))
    await bench.acknowledge("host:2:boot", told(directive, "applied"))
    await bench.acknowledge("host:2:boot", told(directive, "failed", "OperationalError: gone"))
    await recovery.converge(patience_s=0)
    assert recovery.reverted == {"timeout_increase": "reverted in 0 of 2 processes"}
    assert "## Not reverted" in recovery.report()
    for kind in ("alert", "escalation"):
        await alerts.send(kind, recovery)
    assert [to for to, _, _ in bench.mailer.sent] == [("ops@example.com",), ("boss@example.com",)]
    assert all("Not reverted: " in subject for _, subject, _ in bench.mailer.sent)
    assert "timeout_increase of 'default' in host:2:boot: OperationalError: gone" in bench.mailer.sent[0][2]


async def order_after(relapses: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    bench = Bench(waiter=answering(PASSED))
    bench.store.relapsed = relapses
    recovery = await bench.open(exhausted(), **steps("timeout_increase", "pool_increase", "retry"))
    ranking = await recovery.score()
    return [one.strategy for one in ranking.tried], {one.strategy: one.unmet or "" for one in ranking.skipped}


async def test_what_did_not_last_goes_last_and_is_not_tried_a_third_time() -> None:
    assert await order_after({}) == (["timeout_increase", "pool_increase", "retry"], {})
    assert await order_after({"timeout_increase": 1}) == (["pool_increase", "retry", "timeout_increase"], {})
    tried, skipped = await order_after({"timeout_increase": 2})
    assert tried == ["pool_increase", "retry"]
    assert "recovered this 2 times within the last hour, and it came back" in skipped["timeout_increase"]
    assert (await order_after({"retry": 1}))[0] == ["timeout_increase", "pool_increase", "retry"]
    assert (await order_after({"retry": 5}))[0] == ["timeout_increase", "pool_increase", "retry"]


async def test_those_who_were_told_of_the_recovery_hear_that_it_came_back() -> None:
    bench = Bench(waiter=answering(PASSED))
    await bench.connect("host:1:boot")
    first = await bench.open(slow_query())
    await carry_out(first)
    await alerts.send("alert", first)
    why = "the error came back 42 s after it"
    bench.store.records[first.record.id] = replace(
        bench.store.records[first.record.id], status=Status.RELAPSED, relapse=why
    )
    second = await bench.open(slow_query())
    second.record = bench.store.records[second.record.id] = replace(second.record, relapse_of=first.record.id)
    await carry_out(second)
    for _ in range(2):
        await alerts.follow_up(second)
    [(_, first_subject, _), (to, subject, text)] = bench.mailer.sent
    assert "Recovered: " in first_subject
    assert (to, "Relapsed: OperationalError in django" in subject) == (("ops@example.com",), True)
    assert "You were told: Recovery successful: Timeout Increase. It did not last: " + why in text
    assert "A relapse: Recovery successful: Timeout Increase" in second.report()


async def test_a_run_whose_recovery_has_relapsed_meanwhile_tells_nobody_that_it_recovered() -> None:
    bench = Bench(waiter=answering(PASSED))
    await bench.connect("host:1:boot")
    recovery = await bench.open(slow_query())
    await carry_out(recovery)
    bench.store.records[recovery.record.id] = replace(bench.store.records[recovery.record.id], status=Status.RELAPSED)
    assert await alerts.send("alert", recovery) == []
    assert bench.mailer.sent == []


def test_a_quiet_window_must_be_over_before_the_change_is() -> None:
    with pytest.raises(ValueError, match="needs a longer ttl_s"):
        Runbook.model_validate(
            {"name": "demo", "steps": [{"strategy": "retry", "ttl_s": 30}],
             "verification": {"checks": [{"kind": "quiet", "window_s": 30}]}}
        )  # fmt: skip


def test_the_runbook_in_the_docs_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "verification.md").read_text("utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    runbook = Runbook.model_validate(YAML(typ="safe").load(block))  # pyright: ignore
    assert [one.kind for one in runbook.verification.checks] == ["replay", "http", "sql", "check", "quiet"]


def test_verification_must_fit_into_its_task() -> None:
    with pytest.raises(ValueError, match=r"verification may take .* s, and 590 are allowed"):
        Runbook.model_validate(
            {"name": "demo", "steps": [{"strategy": "retry"}],
             "verification": {"checks": [{"kind": "quiet", "window_s": 300}] * 2}}
        )  # fmt: skip
