"""The guard of one recovery: asked before it begins, before each action, and told how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Protocol

from upright.domain.guardrails import Guardrails, Trust, lowest
from upright.domain.runbook import Runbook, Step
from upright.domain.verdict import Verdict
from upright.errors import Stopped, Unavailable
from upright.services.guardrails.limits import scopes
from upright.services.guardrails.ports import Approval, GuardStore, Hold, Occupant, TrustSetting
from upright.services.guardrails.trust import demotion

if TYPE_CHECKING:
    from upright.services.ports import ActionRecord, RecoveryRecord

_WHO = "upright"
_INCIDENTAL = frozenset({"prober"})
"""Values that say who does it rather than what is done."""


class Intention(Protocol):
    """A strategy's plan, as far as it is judged here."""

    @property
    def target(self) -> str: ...

    @property
    def values(self) -> Mapping[str, Any]: ...

    @property
    def why(self) -> str: ...


@dataclass(frozen=True)
class Refusal:
    verdict: Verdict
    reason: str


class Guard:
    def __init__(self, store: GuardStore, guardrails: Guardrails, recovery: RecoveryRecord, runbook: Runbook) -> None:
        self._store, self._guardrails = store, guardrails
        self._recovery, self._runbook = recovery, runbook
        self.begun: list[Hold] = []
        """Holds that this recovery's end has begun."""
        self.demoted: list[str] = []
        """Strategies that lost their trust by it, each with why."""

    async def withheld(self) -> tuple[str, bool] | None:
        """Why nothing may be done in this recovery, and whether people have been told since; None where all is well."""
        record = self._recovery
        stopped = await self._store.stopped(record.tenant, record.service)
        if stopped is not None:
            why = stop_reason(stopped.by, stopped.why, stopped.where)
            return why, await self._store.told_since(record.incident_id, stopped.at)
        hold = await self._store.hold(record.tenant, record.service, record.fingerprint, self._guardrails)
        if hold is not None:
            return hold_reason(hold), await self._store.told_since(record.incident_id, hold.began_at)
        return None

    async def levels(self, steps: Iterable[Step]) -> dict[str, Trust]:
        """How far each strategy is trusted here and now."""
        settings = await self._store.trust(self._runbook.name)
        return {step.strategy: trusted(self._guardrails, self._runbook, step, settings) for step in steps}

    async def question(self, step: Step, plan: Intention) -> Approval | None:
        """The approval that is to be waited for, or None where there is nothing to ask, or nobody to answer."""
        if (await self.levels([step]))[step.strategy] is not Trust.APPROVE:
            return None
        asked = await self._store.approvals_of(self._recovery.id)
        known = asked.get(step.strategy)
        if known is not None:
            return known if known.status == "waiting" else None
        if any(one.status == "expired" for one in asked.values()):
            return None
        return await self._store.ask(
            self._recovery.id,
            step.strategy,
            epoch=self._recovery.epoch,
            target=plan.target,
            values=dict(plan.values),
            plan=plan.why,
            within_s=self._guardrails.trust.approval_s,
        )

    async def review(self, step: Step, plan: Intention) -> Refusal | None:
        """Whether trust lets this plan be carried out."""
        level = (await self.levels([step]))[step.strategy]
        if level is Trust.AUTO:
            return None
        if level is Trust.SHADOW:
            return Refusal(Verdict.SKIPPED, f"shadow: would have done this: {plan.why}")
        asked = await self._store.approvals_of(self._recovery.id)
        return approved(asked.get(step.strategy), plan)

    async def admit(self, step: Step) -> Refusal | None:
        """Take a place within the limits, at the moment of acting."""
        record = self._recovery
        try:
            reason = await self._store.admit(
                Occupant(
                    record.id,
                    record.tenant,
                    record.service,
                    record.fingerprint,
                    self._runbook.name,
                    step.strategy,
                    scopes(self._guardrails, self._runbook, step, record.service),
                )
            )
        except Stopped as stopped:
            reason = str(stopped)
        return None if reason is None else Refusal(Verdict.REFUSED, reason)

    async def give_back(self, step: Step) -> None:
        await self._store.give_back(self._recovery.id, step.strategy)

    async def stopped(self) -> bool:
        return await self._store.stopped(self._recovery.tenant, self._recovery.service) is not None

    async def learn(self, actions: Iterable[ActionRecord]) -> None:
        """After the end: begin holds that are due, and take trust from what keeps failing. What can't be noted now is
        noted by the next recovery."""
        failed = {one.strategy for one in actions if one.verdict in (Verdict.NOT_RECOVERED, Verdict.RELAPSED)}
        with contextlib.suppress(Unavailable):
            hold = await self._store.hold(
                self._recovery.tenant, self._recovery.service, self._recovery.fingerprint, self._guardrails
            )
            if hold is not None and hold.recovery_id == self._recovery.id:
                self.begun.append(hold)
            await asyncio.gather(*(self._demote(one) for one in failed))

    async def _demote(self, strategy: str) -> None:
        rules, name = self._guardrails.trust, self._runbook.name
        step = next((one for one in self._runbook.steps if one.strategy == strategy), None)
        if step is None:
            return
        level = (await self.levels([step]))[strategy]
        why = demotion(rules, level, await self._store.track_record(name, strategy, rules.window))
        if why is not None:
            await self._store.set_trust(name, strategy, Trust.APPROVE, by=_WHO, why=why)
            self.demoted.append(f"{strategy} asks for approval from now on: {why}")


def trusted(guardrails: Guardrails, runbook: Runbook, step: Step, settings: Iterable[TrustSetting]) -> Trust:
    """The files are the ceiling; what was decided since lies below it."""
    decided = [one.level for one in settings if one.runbook == runbook.name and one.strategy in ("", step.strategy)]
    return lowest(ceiling(guardrails, runbook, step), *decided)


def ceiling(guardrails: Guardrails, runbook: Runbook, step: Step) -> Trust:
    return lowest(runbook.trust, step.trust, guardrails.strategy(step.strategy).trust)


def approved(approval: Approval | None, plan: Intention) -> Refusal | None:
    """What a person has said of the plan."""
    if approval is None:
        return Refusal(Verdict.REFUSED, "it needs approval, and nobody has answered")
    if approval.status == "rejected":
        why = f": {approval.why}" if approval.why else ""
        return Refusal(Verdict.REFUSED, f"rejected by {approval.decided_by}{why}")
    if approval.status != "approved":
        return Refusal(Verdict.REFUSED, "it needs approval, and nobody answered in time")
    if (approval.target, _deed(approval.values)) != (plan.target, _deed(plan.values)):
        return Refusal(
            Verdict.REFUSED, f"what was approved ({approval.plan}) is not what would be done now ({plan.why})"
        )
    return None


def _deed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _INCIDENTAL}


def stop_reason(by: str, why: str, where: str) -> str:
    return f"recovery is stopped {where} by {by}{': ' + why if why else ''}"


def hold_reason(hold: Hold) -> str:
    what = "this error" if hold.fingerprint else "this service"
    until = f"{hold.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return (
        f"{hold.reason}; recoveries of {what} are on hold until {until}, or until someone says: "
        f"upright guardrails reset {hold.fingerprint or hold.service} --by NAME"
    )
