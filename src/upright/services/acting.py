"""Acting: carry a strategy's plan out, in the process that failed or in another of its service.

Two ways lead to the application. A caller that waits applies and replays its own operation: first-hand evidence. Where
nobody waits, one agent does it, and is asked for a reading before and after.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal
from uuid import uuid4

from upright.domain.directive import Acknowledgement, Command, CommandResult, Directive
from upright.domain.event import Event
from upright.domain.message import Json
from upright.domain.runbook import Runbook
from upright.domain.verdict import Checked, Evidence, Verdict
from upright.errors import Stopped, Unavailable
from upright.services.blast_radius import first_share
from upright.services.dependencies import Dependencies
from upright.services.guardrails import Guard
from upright.services.operating import Operator
from upright.services.ports import ActionRecord, Instance, RecoveryRecord
from upright.services.scoring import Choice
from upright.services.strategies import Fleet, Plan
from upright.services.strategies.base import as_mapping
from upright.services.verification import Checks, Readings

NOBODY = "no process of the service is connected"
SAFE = ("GET", "HEAD")
"""What a process other than the caller's may request: it has neither the body nor the headers of the request."""
LOCK_POLL_S = 0.05
SETTLE_POLL_S = 0.25
RECENT_S = 60.0
LOCK_PATIENCE_S = 3.0
"""How long to wait for another recovery that acts on the same target."""
_USABLE = 0.9
"""Share of its time that an action plans with, so that a late answer still finds it."""
_SHARE_OF_READINGS = 0.3
"""Share of that which readings before the action may take."""
_NOT_DONE = {"refused": Verdict.REFUSED, "unsupported": Verdict.SKIPPED, "failed": Verdict.FAILED}


@dataclass(frozen=True)
class Acted:
    """A strategy that was considered: carried out and to be verified, or settled with a verdict already."""

    choice: Choice
    position: int
    plan: Plan | None = None
    settled: Verdict | None = None
    reason: str = ""
    directive: Directive | None = None
    own: bool = True
    """False where the directive is another recovery's, which then decides about its end."""
    previous: Directive | None = None
    """What ours replaced; it comes back for the time that it had left, if ours is withdrawn."""
    replaced_at: float = 0.0
    """On time.monotonic()."""
    acknowledgement: Acknowledgement | None = None
    evidence: Evidence | None = None
    baseline: Evidence | None = None
    agent: Instance | None = None
    """Who is to be asked for evidence; None where the waiting caller gave it."""
    witness: Literal["", "waiter", "agent", "health"] = ""
    """Of an action on the platform: who has seen the failure, and is asked again."""
    health: Mapping[str, Evidence] = field(default_factory=dict[str, Evidence])
    """What the health addresses said before it, by replica."""
    old: frozenset[str] = frozenset()
    """Ids and pids of the processes that were there before it."""
    after: Json = field(default_factory=dict[str, object])
    """What was measured after it, where no process of the application tells."""
    readings: Readings = field(default_factory=dict[int, Evidence])
    """What the runbook's own checks saw before it."""
    checks: tuple[Checked, ...] = ()
    fate: Literal["withdrawn", "standing", "kept"] = "withdrawn"
    """What became of its change, if it did not recover."""
    duration_ms: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether there is something to take back."""
        return self.directive is not None or (self.plan is not None and self.plan.command == "platform")

    def record(self, recovery: RecoveryRecord, verdict: Verdict, reason: str = "") -> ActionRecord:
        plan, acknowledgement = self.plan, self.acknowledgement
        return ActionRecord(
            recovery_id=recovery.id,
            position=self.position,
            strategy=self.choice.strategy,
            verdict=verdict,
            reason=reason or self.reason,
            values=plan.values if plan else {},
            before={**(plan.before if plan else {}), **(acknowledgement.before if acknowledgement else {})},
            after=acknowledgement.after if acknowledgement else self.after,
            evidence=self.evidence,
            score=self.choice.score,
            cost_s=self.choice.cost_s,
            duration_ms=round(self.duration_ms, 1),
            directive_version=self.directive.version if self.directive else None,
            propensity=self.choice.propensity,
            attributed=self.own,
            checks=self.checks,
        )


async def fleet_of(dependencies: Dependencies, recovery: RecoveryRecord, runbook: Runbook) -> Fleet:
    store = dependencies.store
    asks = any(dependencies.book.strategies[step.strategy].on_platform for step in runbook.steps)
    platform = dependencies.platforms.get((recovery.tenant, recovery.service)) if asks else None
    instances, (_, desired), waits, state, errors = await asyncio.gather(
        store.live_instances(recovery.tenant, recovery.service),
        store.desired(recovery.tenant, recovery.service),
        dependencies.dispatch.waiter_present(recovery.error_id),
        platform.state(store) if platform is not None else _nothing(),
        store.recurrences(recovery.incident_id, RECENT_S),
    )
    return Fleet(instances, desired, waits, state, errors)


async def _nothing() -> None:
    return None


def error_types(event: Event) -> list[str]:
    return [name for chain in event.error.classes for name in chain] or [event.error.type]


@dataclass(frozen=True)
class Withdrawn:
    """A change that was taken back."""

    strategy: str
    directive: Directive
    restored: Directive | None = None
    """What had been in force before it, and is again."""


class Actor:
    """Acts for one recovery."""

    def __init__(self, dependencies: Dependencies, recovery: RecoveryRecord, event: Event, runbook: Runbook) -> None:
        self._store, self._dispatch = dependencies.store, dependencies.dispatch
        self._strategies = dependencies.book.strategies
        self._recovery, self._event, self._runbook = recovery, event, runbook
        self.guard = Guard(dependencies.store, dependencies.book.guardrails, recovery, runbook)
        self.in_force: Acted | None = None
        """The action whose change holds but is not verified yet: to be taken back if the recovery ends here."""
        self._operator = Operator(dependencies, recovery, event, runbook, self.witness)
        self.withdrawn: list[Withdrawn] = []
        self.checks = Checks(dependencies, recovery, event, runbook)
        self._until = 0.0
        """When the action that is under way must have ended."""

    async def act(self, choice: Choice, position: int, fleet: Fleet) -> Acted:
        """Raises Unavailable where trying again may help."""
        began = time.monotonic()
        self._until = began + choice.step.timeout_s * _USABLE
        strategy = self._strategies[choice.strategy]
        unmet = strategy.precondition(self._event, fleet, choice.parameters)
        unmet = unmet or strategy.not_yet(self._event, fleet, choice.parameters)
        if unmet is not None:
            return Acted(choice, position, settled=Verdict.SKIPPED, reason=unmet)
        plan = strategy.plan(self._event, fleet, choice.parameters)
        acted = Acted(choice, position, plan)
        refusal = await self.guard.review(choice.step, plan)
        if refusal is None and plan.command != "apply":  # else once it is known that something is to be put in force
            refusal = await self.guard.admit(choice.step)
        if refusal is not None:
            return replace(acted, settled=refusal.verdict, reason=refusal.reason)
        if self._runbook.verification.checks:
            within_s = self._left_ms() / 1000 * _SHARE_OF_READINGS
            acted = replace(acted, readings=await self.checks.before(fleet, within_s))
        match plan.command:
            case "retry":
                acted = await self._retry(acted, fleet)
            case "platform":
                acted = await self._operate(acted, fleet)
            case _:
                acted = await self._apply(acted, fleet)
        if acted.settled is Verdict.UNKNOWN:  # it worked already, so nothing was done
            await self.guard.give_back(choice.step)
        acted = replace(acted, duration_ms=(time.monotonic() - began) * 1000)
        self.in_force = acted if acted.holds and (acted.directive is not None or acted.settled is None) else None
        return acted

    async def see(self, acted: Acted) -> Evidence | None:
        """Evidence for an action that came without its own."""
        if acted.plan is not None and acted.plan.command == "platform":
            return await self._operator.evidence(acted)
        return await self.witness(acted.agent) if acted.agent is not None else None

    def plan(self, choice: Choice, fleet: Fleet) -> Plan | None:
        """What it would do, or None where it does not apply."""
        strategy = self._strategies[choice.strategy]
        if strategy.precondition(self._event, fleet, choice.parameters) is not None:
            return None
        return strategy.plan(self._event, fleet, choice.parameters)

    async def withdraw(self, acted: Acted) -> None:
        """Take a change back in every process; put back what it had replaced."""
        self.in_force = None
        if acted.plan is not None and acted.plan.command == "platform":
            await self._operator.withdraw(acted)
        if acted.directive is None or not acted.own or acted.directive.scope == "once":
            return
        restored = None
        before = acted.previous
        left_s = 0.0 if before is None else before.ttl_s - (time.monotonic() - acted.replaced_at)
        if before is not None and left_s > 0:
            try:
                restored = await self._put(before.strategy, before.target, before, left_s, before.instances)
            except Stopped:
                await self._store.withdraw_directive(acted.directive.id)
        else:
            await self._store.withdraw_directive(acted.directive.id)
        self.withdrawn.append(Withdrawn(acted.choice.strategy, acted.directive, restored))

    async def undone(self, acted: Acted) -> bool:
        """Whether recovery was stopped meanwhile, which takes every change back."""
        held = acted.directive is not None and acted.directive.scope == "process"
        added = acted.plan is not None and acted.plan.command == "platform" and acted.plan.target == "scale"
        if not (held or added) or not await self.guard.stopped():
            return False
        if held:
            # The process may have been told to apply it before the stop, and have done it after.
            await self._store.recall(self._recovery.tenant, self._recovery.service)
        return True

    async def widen(self, acted: Acted) -> Acted:
        """What was verified in some processes is for all of them."""
        directive = acted.directive
        if directive is None or directive.instances is None or not acted.own:
            return acted
        version = await self._store.widen_directive(directive.id)
        if version is None:
            return acted
        return replace(acted, directive=directive.model_copy(update={"instances": None, "version": version}))

    async def witness(self, agent: Instance, *, within_ms: int | None = None) -> Evidence | None:
        """What another process of the service sees of the failed operation now."""
        rules, request = self._runbook.verification, self._event.request
        if not rules.replays:
            return None
        replayable = request is not None and request.replayable and request.path_intact and request.method in SAFE
        kind = "replay" if rules.anonymous_replay and replayable and "replay" in _commands(agent) else "probe"
        if kind == "probe" and (not rules.probe or "probe" not in _commands(agent)):
            return None
        deadline_ms = round(rules.timeout_s * 1000)
        command = Command(
            id=uuid4(),
            kind=kind,
            deadline_ms=deadline_ms if within_ms is None else min(deadline_ms, within_ms),
            request=request if kind == "replay" else None,
            error_types=error_types(self._event),
        )
        result = await self._to_agent(command, agent)
        return result.evidence if result is not None and result.status == "done" else None

    async def settled(self, acted: Acted) -> Acted:
        """What is seen of the failed operation once a change has had its time: by the caller, if it still waits, by the
        first users that a half-open circuit lets through, or by another process."""
        plan = acted.plan
        assert plan is not None  # noqa: S101 (it has been carried out)
        await asyncio.sleep(plan.settle_s)
        until = time.monotonic() + self._runbook.verification.timeout_s
        witnessed = False
        while True:
            seen = await self._again(acted)
            if seen is not None:
                return replace(acted, evidence=seen)
            seen = await self._half_open(acted) if plan.half_open else None
            if seen is not None:
                errors = plan.before.get("recent_errors")
                before = Evidence(kind="probe", outcome="failed", detail=f"{errors} failures within a minute")
                return replace(acted, evidence=seen, baseline=before)
            if acted.agent is not None and acted.baseline is not None and not witnessed:
                witnessed = True
                seen = await self.witness(await self._first_to_try(acted.agent, plan))
                if seen is not None and seen.outcome != "inconclusive":
                    return replace(acted, evidence=seen)
            if time.monotonic() >= until:
                return acted
            await asyncio.sleep(SETTLE_POLL_S)

    async def _again(self, acted: Acted) -> Evidence | None:
        """The waiting caller's own operation, once more."""
        waiter = self._event.waiter
        if waiter is None or "replay" not in waiter.can or acted.agent is not None:
            return None
        if not await self._dispatch.waiter_present(self._recovery.error_id):
            return None
        deadline_ms = round(self._runbook.verification.timeout_s * 1000)
        command = Command(id=uuid4(), kind="replay", deadline_ms=deadline_ms, error_types=error_types(self._event))
        result = await self._dispatch.to_waiter(self._recovery.error_id, command)
        seen = result.evidence if result is not None and result.status == "done" else None
        return seen if seen is not None and seen.outcome != "inconclusive" else None

    async def _first_to_try(self, agent: Instance, plan: Plan) -> Instance:
        """The process whose circuit half-opens before the others' do."""
        living = await self._store.live_instances(self._recovery.tenant, self._recovery.service)
        return next((one for one in living if one.id == plan.values.get("prober")), agent)

    async def _half_open(self, acted: Acted) -> Evidence | None:
        """How the circuit was tried, as the processes tell it. What they told before they had the directive is about an
        earlier one."""
        directive = acted.directive
        if directive is None:
            return None
        found: list[tuple[str, str]] = []
        for instance in await self._store.live_instances(self._recovery.tenant, self._recovery.service):
            told = as_mapping(as_mapping(instance.measurements.get("circuits")).get(directive.target))
            tried = told.get("probe")
            if instance.desired_version < directive.version or tried not in ("passed", "failed"):
                continue
            if tried == "failed" or told.get("state") == "closed":
                found.append((tried, instance.id))
        if not found:
            return None
        tried, instance_id = next((one for one in found if one[0] == "failed"), found[0])
        detail = f"requests that {instance_id} let through to try it"
        return Evidence(kind="probe", outcome="failed" if tried == "failed" else "passed", detail=detail)

    async def _baseline(self, acted: Acted, agent: Instance) -> Acted:
        """A reading before the action. What works already can't be shown to have been repaired."""
        baseline = await self.witness(agent, within_ms=round(self._left_ms() * _USABLE))
        seen = [one for one in (baseline, *acted.readings.values()) if one is not None]
        if not seen or any(one.outcome != "passed" for one in seen):
            return replace(acted, agent=agent, baseline=baseline)
        what = " and ".join(f"a {one.kind}" for one in seen)
        reason = f"not carried out: {what} worked before it, so that success could not be shown"
        return replace(acted, settled=Verdict.UNKNOWN, reason=reason, baseline=baseline)

    async def _retry(self, acted: Acted, fleet: Fleet) -> Acted:
        assert acted.plan is not None  # noqa: S101 (act() has made it)
        command = Command(
            id=uuid4(),
            kind="retry",
            deadline_ms=self._left_ms(),
            retry=acted.plan.retry,
            request=self._event.request,
            error_types=error_types(self._event),
        )
        result = await self._dispatch.to_waiter(self._recovery.error_id, command) if fleet.waiter_present else None
        if result is not None and result.status != "too_late":
            return _with_result(acted, result)
        request = self._event.request
        repeatable = request is not None and request.path_intact and request.replayable and request.method in SAFE
        agents = fleet.able("retry") if repeatable else []
        if not agents:
            why = "the caller's time ran out" if fleet.waiter_present else NOBODY
            return replace(acted, settled=Verdict.SKIPPED, reason=why)
        if not self._runbook.verification.anonymous_replay:
            why = "nobody waits, and the runbook allows no anonymous replay"
            return replace(acted, settled=Verdict.SKIPPED, reason=why)
        acted = await self._baseline(acted, agents[0])
        if acted.settled is not None:
            return acted
        again = command.model_copy(update={"id": uuid4(), "deadline_ms": self._left_ms()})
        result = await self._to_agent(again, agents[0])
        if result is None:
            raise Unavailable(f"{agents[0].id} did not answer in time")
        if result.evidence is not None:
            # Nobody's own operation: it is a witness like any other.
            witnessed = result.evidence.model_copy(update={"kind": "anonymous_replay"})
            result = result.model_copy(update={"evidence": witnessed})
        return _with_result(acted, result)

    async def _operate(self, acted: Acted, fleet: Fleet) -> Acted:
        def hold(acted: Acted) -> None:
            self.in_force = acted

        platform = fleet.platform
        pids = [str(process.pid) for one in platform.replicas for process in one.processes] if platform else []
        acted = replace(acted, old=frozenset([*pids, *(one.id for one in fleet.instances)]))
        return await self._operator.act(acted, fleet, self._until, hold)

    async def _apply(self, acted: Acted, fleet: Fleet) -> Acted:
        agents = fleet.able("apply")
        agents.sort(key=lambda one: one.id != self._event.instance)
        agent = None if fleet.waiter_present else next(iter(agents), None)
        if not fleet.waiter_present and agent is None:
            return replace(acted, settled=Verdict.SKIPPED, reason=NOBODY)
        if agent is not None:
            acted = await self._baseline(acted, agent)
            if acted.settled is not None:
                return acted
        where = agent.id if agent is not None else self._event.instance
        live = [one.id for one in fleet.instances]
        share = first_share(self._runbook.blast_radius, acted.choice.strategy, live, where)
        claimed = await self._claim(acted, where, share)
        if claimed.settled is not None:
            return claimed
        self.in_force = claimed
        result = None
        if fleet.waiter_present:
            result = await self._dispatch.to_waiter(
                self._recovery.error_id, self._command(claimed, verify=not _settles(claimed))
            )
        if result is None or result.status == "too_late":
            # The caller has gone: the change is made all the same, but what it does can't be shown any more.
            share = claimed.directive.instances if claimed.directive is not None else None
            agent = agent or next((one for one in agents if share is None or one.id in share), None)
            if agent is None:
                await self.withdraw(claimed)
                return replace(claimed, settled=Verdict.SKIPPED, reason="the caller's time ran out")
            claimed = replace(claimed, agent=agent)
            result = await self._to_agent(self._command(claimed, verify=False), agent)
            if result is None:
                raise Unavailable(f"{agent.id} did not answer in time")
        done = _with_result(claimed, result)
        if done.settled is not None:
            await self.withdraw(done)
        return done

    def _command(self, acted: Acted, *, verify: bool) -> Command:
        assert acted.directive is not None  # noqa: S101 (_claim() has set it)
        return Command(
            id=uuid4(),
            kind="apply",
            deadline_ms=self._left_ms(),
            directives=[acted.directive],
            verify=verify,
            error_types=error_types(self._event),
        )

    async def _claim(self, acted: Acted, where: str, share: list[str] | None) -> Acted:
        """The directive to apply: ours, or one that another recovery has put in force since the error began. `where`:
        the process that applies it first; `share`: those that it is for."""
        plan, recovery = acted.plan, self._recovery
        assert plan is not None  # noqa: S101 (act() has made it)
        step = acted.choice.step
        ttl_s = step.timeout_s + plan.settle_s + self._runbook.verification.longest_s + 5
        patience = time.monotonic() + min(LOCK_PATIENCE_S, step.timeout_s / 2)
        while not (
            locked := await self._store.lock_actuator(
                recovery.tenant, recovery.service, step.strategy, plan.target, recovery_id=recovery.id, ttl_s=ttl_s
            )
        ):
            if time.monotonic() >= patience:
                break
            await asyncio.sleep(LOCK_POLL_S)
        _, desired = await self._store.desired(recovery.tenant, recovery.service)
        active = Fleet(desired=desired).active(step.strategy, plan.target)
        held = self.in_force
        if held is not None and held.directive is not None and active is not None and active.id == held.directive.id:
            # An earlier attempt of this task has put it in force.
            return replace(
                acted, directive=active, own=held.own, previous=held.previous, replaced_at=held.replaced_at,
                reason=held.reason,
            )  # fmt: skip
        # A recovery that was taken over, or whose last write got no answer, finds its own directive and goes on.
        inherited = active is not None and await self._store.put_by(active.id) == recovery.id
        if (
            plan.scope == "process"
            and active is not None
            and active.version > self._event.desired_version
            and not inherited
            and (plan.shared or active.values == plan.values)
        ):
            if active.instances is not None and where not in active.instances:
                why = "another recovery is trying a change of it in other processes"
                return replace(acted, settled=Verdict.SKIPPED, reason=why)
            reason = "a change of it was already in force"
            return replace(acted, directive=active, own=False, plan=replace(plan, values=active.values), reason=reason)
        if not locked:
            return replace(acted, settled=Verdict.SKIPPED, reason="another recovery is acting on it")
        refusal = await self.guard.admit(step)
        if refusal is not None:
            return replace(acted, settled=refusal.verdict, reason=refusal.reason)
        try:
            directive = await self._put(step.strategy, plan.target, plan, step.ttl_s, share)
        except Stopped as stopped:
            return replace(acted, settled=Verdict.REFUSED, reason=str(stopped))
        return replace(acted, directive=directive, previous=None if inherited else active, replaced_at=time.monotonic())

    async def _put(
        self, strategy: str, target: str, what: Plan | Directive, ttl_s: float, instances: list[str] | None = None
    ) -> Directive:
        return await self._store.put_directive(
            self._recovery.tenant,
            self._recovery.service,
            strategy,
            target,
            values=what.values,
            ttl_s=ttl_s,
            recovery_id=self._recovery.id,
            epoch=self._recovery.epoch,
            scope=what.scope,
            instances=instances,
        )

    def _left_ms(self) -> int:
        return max(0, round((self._until - time.monotonic()) * 1000))

    async def _to_agent(self, command: Command, agent: Instance) -> CommandResult | None:
        return await self._dispatch.to_agent(self._recovery.tenant, self._recovery.service, command, agent.id)


def _settles(acted: Acted) -> bool:
    return acted.plan is not None and acted.plan.settle_s > 0


def _with_result(acted: Acted, result: CommandResult) -> Acted:
    wanted = acted.directive.id if acted.directive is not None else None
    acknowledgement = next((one for one in result.acknowledgements if one.directive_id == wanted), None)
    acted = replace(acted, acknowledgement=acknowledgement, evidence=result.evidence)
    status, reason = result.status, result.reason
    if acknowledgement is not None and acknowledgement.status in _NOT_DONE:
        status, reason = acknowledgement.status, acknowledgement.reason or reason
    if status in _NOT_DONE:
        return replace(acted, settled=_NOT_DONE[status], reason=reason or f"the application answered {status!r}")
    return acted


def _commands(agent: Instance) -> list[str]:
    announced = agent.capabilities.get("commands")
    return [str(one) for one in announced] if isinstance(announced, list) else ["apply", "replay", "retry", "probe"]  # pyright: ignore
