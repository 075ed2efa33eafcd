"""Recovery: one run of a runbook for one error. What the flow's tasks do.

The store remembers each finished action: a run that is taken up again returns what is recorded and goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from upright.domain.event import Event
from upright.domain.guardrails import Trust
from upright.domain.message import Json
from upright.domain.runbook import Runbook
from upright.domain.verdict import Status, Verdict, judge, judge_all
from upright.errors import NotFound
from upright.services import reporting
from upright.services.acting import Acted, Actor, Withdrawn, fleet_of
from upright.services.dependencies import Dependencies
from upright.services.guardrails import Approval, Guard
from upright.services.learning.context import context_of
from upright.services.ports import ActionRecord, RecoveryRecord
from upright.services.scoring import Choice, Ranking, arranged, rank
from upright.services.strategies import Fleet

CONVERGENCE_POLL_S = 0.1
RELAPSES_S = 3600.0
"""How long it is remembered that a strategy recovered an incident to no lasting effect."""


@contextlib.asynccontextmanager
async def leased(dependencies: Dependencies, recovery_id: UUID) -> AsyncGenerator[None]:
    """Keep the lease while the block runs. A database that is away for a moment is no reason to stop: what an overtaken
    run still writes is refused by its epoch."""
    lease_s = dependencies.settings.lease_s

    async def renew() -> None:
        while True:
            await asyncio.sleep(lease_s / 3)
            with contextlib.suppress(Exception):
                await dependencies.store.renew(dependencies.runner, [recovery_id], lease_s)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewing


class Recovery:
    """Made by `begin`; holds what one run knows."""

    def __init__(self, dependencies: Dependencies, record: RecoveryRecord, event: Event, runbook: Runbook) -> None:
        self.dependencies = dependencies
        self.record = record
        self.event = event
        self.runbook = runbook
        self.ranking: Ranking | None = None
        self.converged: dict[str, str] = {}
        """Strategy to how many processes hold its change, as `1 of 2 processes`."""
        self.reverted: dict[str, str] = {}
        """Strategy to how many of the processes that held its change have reverted it."""
        self.not_reverted: list[str] = []
        """What could not be taken back, and where."""
        self.relapsed: RecoveryRecord | None = None
        """The recovery that this one is a relapse of."""
        self._store = dependencies.store
        self._actor = Actor(dependencies, record, event, runbook)
        self._fleet: Fleet | None = None
        self._actions = {action.strategy: action for action in record.actions}
        self._positions: dict[str, int] = {}
        self._verified: list[Acted] = []
        self.told = False
        """Whether people know of this error since recovery was stopped or put on hold."""

    @classmethod
    async def begin(
        cls, dependencies: Dependencies, error_id: str, *, runbook: str, flow_run_id: UUID, attempt: int
    ) -> Recovery:
        """The recovery that a flow run carries out. Raises NotFound."""
        try:
            error = UUID(error_id)
        except ValueError:
            raise NotFound(f"{error_id!r} is not the id of an error") from None
        record = await dependencies.store.begin_run(
            error,
            flow_run_id=flow_run_id,
            attempt=attempt,
            runner=dependencies.runner,
            lease_s=dependencies.settings.lease_s,
            runbook=runbook,
        )
        event = await dependencies.store.event_of(record.error_id, record.tenant)
        return cls(dependencies, record, event, dependencies.book.runbook(runbook))

    @property
    def actions(self) -> Sequence[ActionRecord]:
        """Those that are finished, in the order in which they were considered."""
        return sorted(self._actions.values(), key=lambda action: action.position)

    @property
    def guard(self) -> Guard:
        return self._actor.guard

    def leased(self) -> contextlib.AbstractAsyncContextManager[None]:
        return leased(self.dependencies, self.record.id)

    def finished(self, strategy: str) -> ActionRecord | None:
        """The record of a strategy, once it has a verdict."""
        return self._actions.get(strategy)

    async def score(self) -> Ranking:
        """Order the steps. What does not apply is recorded as skipped, with its reason."""
        record, scorer = self.record, self.dependencies.scorer
        self._fleet, in_flight, withheld = await asyncio.gather(
            fleet_of(self.dependencies, record, self.runbook),
            self._store.in_flight(record.tenant, record.service),
            self.guard.withheld(),
        )
        left = [step for step in self.runbook.steps if step.strategy not in self._actions]
        priors = self.dependencies.book.priors
        if left:
            resumed = bool(record.actions)
            ranking = rank(
                self.runbook.model_copy(update={"steps": left}),
                self.event,
                self._fleet,
                priors,
                scorer.learned(record.tenant) if scorer is not None else None,
                context_of(self.event, record.severity, in_flight=in_flight),
                strategies=self.dependencies.book.strategies,
                # The same again when the task is repeated; and what is taken up again does not explore.
                draw=1.0 if resumed else random.Random(record.id.int).random(),  # noqa: S311 (no secret)
            )
            if resumed:
                ranking = replace(ranking, learning={**ranking.learning, "resumed": True})
        else:
            ranking = Ranking([], [], self.runbook.order)
        relapses, first_unasked = await asyncio.gather(self._relapses(), self._asked_last(ranking))
        if withheld is None and self.record.withheld:  # it began to be refused in a process that has died
            withheld = self.record.withheld, False
        ranking = arranged(ranking, lambda one: first_unasked(after_relapses(one, relapses)))
        self.ranking = ranking
        first = 1 + max((action.position for action in self._actions.values()), default=-1)
        self._positions = {one.strategy: first + index for index, one in enumerate([*ranking.tried, *ranking.skipped])}
        if withheld is not None:
            return await self._withhold(ranking, *withheld)
        await asyncio.gather(
            *(self._settle(self._considered(one), Verdict.SKIPPED, one.unmet or "") for one in ranking.skipped)
        )
        return ranking

    async def question(self, choice: Choice) -> Approval | None:
        """What a person is to be asked before the strategy is carried out, or None."""
        fleet = self._fleet or await fleet_of(self.dependencies, self.record, self.runbook)
        plan = self._actor.plan(choice, fleet)
        approval = None if plan is None else await self.guard.question(choice.step, plan)
        if approval is not None:
            self._fleet = None  # much may change while they think
        return approval

    async def act(self, choice: Choice) -> Acted:
        """Carry a strategy out. Settled outcomes are recorded at once; else verify() is to follow. Raises Unavailable
        where trying again may help."""
        # What scoring has read serves the first attempt; later ones look again.
        fleet, self._fleet = self._fleet or await fleet_of(self.dependencies, self.record, self.runbook), None
        acted = await self._actor.act(choice, self._positions[choice.strategy], fleet)
        if acted.settled is not None:
            await self._settle(acted, acted.settled, acted.reason)
        return acted

    async def verify(self, acted: Acted) -> ActionRecord:
        """The verdict on an action, by evidence. What did not help is taken back in every process."""
        began = time.monotonic()
        if acted.plan is not None and acted.plan.settle_s:
            acted = await self._actor.settled(replace(acted, evidence=None))
        elif acted.evidence is None:
            acted = replace(acted, evidence=await self._actor.see(acted))
        verdict = judge(acted.evidence, acted.baseline)
        if self.runbook.verification.checks:
            checks = await self._actor.checks.after(acted.evidence, acted.baseline, acted.readings, acted.directive)
            acted, verdict = replace(acted, checks=checks), judge_all(checks)
        if await self._actor.undone(acted):
            acted = replace(acted, reason="recovery was stopped meanwhile, and the change withdrawn")
            verdict = Verdict.UNKNOWN if verdict is Verdict.RECOVERED else verdict
        acted = replace(acted, duration_ms=acted.duration_ms + (time.monotonic() - began) * 1000)
        if verdict is Verdict.RECOVERED and acted.plan is not None and not acted.plan.lasts:
            # What it had replaced is needed no longer either.
            await self._actor.withdraw(replace(acted, previous=None))
        elif verdict is Verdict.RECOVERED:
            self._actor.in_force = None
            acted = await self._actor.widen(acted)
            # What stands beside it was verified together with it.
            for one in self._standing():
                await self._actor.widen(one)
        else:
            acted = await self._take_back(acted)
        self._verified.append(acted)
        return await self._settle(acted, verdict, reporting.with_evidence(acted, verdict))

    async def give_up(self, choice: Choice, why: str) -> ActionRecord:
        """An action that could not be carried out, or whose verification failed on our side."""
        held = self._actor.in_force
        if held is not None:
            await self._actor.withdraw(held)
        acted = held if held is not None and held.choice.strategy == choice.strategy else self._considered(choice)
        return await self._settle(acted, Verdict.FAILED, why)

    async def conclude(self) -> RecoveryRecord:
        """End the recovery by what its actions have shown, and release everyone who waits for it."""
        status = outcome(self.actions)
        if status is not Status.RECOVERED:
            await self._roll_back()
        message = reporting.message(status, self.actions)
        if self.record.withheld:
            message = f"Recovery not attempted: {self.record.withheld}"
        record = await self._end(status, message)
        came_back = self.relapsed.actions if self.relapsed is not None else ()
        await self.guard.learn([*self.actions, *came_back])
        return record

    async def cancel(self, why: str = "Cancelled") -> RecoveryRecord:
        """Stop here: what is not verified is taken back."""
        held = self._actor.in_force
        if held is not None:
            await self._actor.withdraw(held)
        await self._roll_back()
        return await self._end(Status.CANCELLED, why)

    async def abandon(self, why: str) -> None:
        """End it after an error of our own: nothing is known, and what was changed is taken back as far as we can."""
        held = self._actor.in_force
        if held is not None:
            with contextlib.suppress(Exception):
                await self._actor.withdraw(held)
        with contextlib.suppress(Exception):
            await self._roll_back()
        with contextlib.suppress(Exception):
            await self._end(Status.UNKNOWN, why)

    async def close(self) -> None:
        """Nothing of it is left to do."""
        await self._store.close(self.record.id, epoch=self.record.epoch)

    async def converge(self, patience_s: float = 2.0) -> None:
        """Wait a little for the other processes of the service to hold what was verified, and note how many do."""
        directives = [
            (one.choice.strategy, one.directive)
            for one in self._verified
            if one.directive is not None
            and one.directive.scope == "process"
            and (one.plan is None or one.plan.lasts)
            and self._actions[one.choice.strategy].verdict is Verdict.RECOVERED
        ]
        until = time.monotonic() + patience_s
        for strategy, directive in directives:
            while True:
                acknowledged, instances = await asyncio.gather(
                    self._store.acknowledgements(directive.id),
                    self._store.live_instances(self.record.tenant, self.record.service),
                )
                live = {one.id for one in instances}
                applied = {instance for instance, one in acknowledged if one.status == "applied"}
                if live | applied:
                    self.converged[strategy] = f"{len(applied)} of {len(live | applied)} processes"
                if live <= applied or time.monotonic() >= until:
                    break
                await asyncio.sleep(CONVERGENCE_POLL_S)

        await self._await_reverts(patience_s)

    async def _await_reverts(self, patience_s: float) -> None:
        """Wait a little for the processes that held a change to tell that they hold it no longer, as measured."""
        until = time.monotonic() + patience_s
        for one in self._actor.withdrawn:
            while True:
                holders, gone, failed = await self._reverts(one)
                if holders <= gone | failed.keys() or time.monotonic() >= until:
                    break
                await asyncio.sleep(CONVERGENCE_POLL_S)
            if holders:
                done = "the former value is back" if one.restored is not None else "reverted"
                self.reverted[one.strategy] = f"{done} in {len(holders & gone)} of {len(holders)} processes"
            for instance in sorted(holders - gone):
                why = failed.get(instance) or f"nothing was heard within {patience_s:g} s"
                self.not_reverted.append(f"{one.strategy} of {one.directive.target!r} in {instance}: {why}")

    async def _reverts(self, withdrawn: Withdrawn) -> tuple[set[str], set[str], dict[str, str]]:
        """The living processes that had applied it, those that have taken it back, and those that could not."""
        record, restored = self.record, withdrawn.restored
        told, after, instances = await asyncio.gather(
            self._store.acknowledgements(withdrawn.directive.id),
            self._store.acknowledgements((restored or withdrawn.directive).id),
            self._store.live_instances(record.tenant, record.service),
        )
        holders = {instance for instance, one in told if one.status in ("applied", "reverted")}
        holders &= {one.id for one in instances}
        wanted = "reverted" if restored is None else "applied"
        gone = {instance for instance, one in after if one.status == wanted}
        failed = {name: one.reason for name, one in after if one.status == "failed" and name not in gone}
        return holders, gone, failed

    async def _take_back(self, acted: Acted) -> Acted:
        """What is to become of a change that is not seen to help."""
        changed = acted.directive is not None and acted.own and acted.directive.scope == "process"
        if changed and (acted.choice.step.keep or self.runbook.rollback == "reverse"):
            self._actor.in_force = None
            return replace(acted, fate="kept" if acted.choice.step.keep else "standing")
        await self._actor.withdraw(acted)
        return acted

    def _standing(self) -> list[Acted]:
        return [one for one in self._verified if one.fate == "standing"]

    async def _roll_back(self) -> None:
        """Undo what stands, the last change first; also what an earlier run of this recovery has left."""
        if self.runbook.rollback != "reverse":
            return
        known = {one.directive.version: one for one in self._standing() if one.directive is not None}
        steps = {step.strategy: step for step in self.runbook.steps}
        undone = {one.version: one for one in await self._store.standing(self.record.id)}
        for action in reversed(self.actions):
            directive = undone.get(action.directive_version or 0)
            if directive is None or action.verdict is Verdict.RECOVERED or steps[action.strategy].keep:
                continue
            acted = known.get(directive.version)
            if acted is not None:
                await self._actor.withdraw(acted)
            else:
                await self._store.withdraw_directive(directive.id)
                self._actor.withdrawn.append(Withdrawn(action.strategy, directive))
            action = replace(action, reason=f"{action.reason}; undone when no later step recovered either")
            await self._store.record_action(action, epoch=self.record.epoch)
            self._actions[action.strategy] = action

    async def _relapses(self) -> Mapping[str, int]:
        """What has recovered this incident lately, and did not last."""
        if self.record.relapse_of is not None:
            self.relapsed = await self._store.recovery(self.record.relapse_of)
        return await self._store.relapses(self.record.incident_id, RELAPSES_S)

    def explanation(self) -> Json:
        found: Json = dict(self.ranking.explanation()) if self.ranking is not None else {}
        return {**found, "runbook": self.runbook.name}

    def report(self) -> str:
        """Markdown for the run's artifact."""
        return reporting.markdown(self)

    async def _asked_last(self, ranking: Ranking) -> Callable[[Ranking], Ranking]:
        """What can be done without a person is tried before one is waited for, unless the runbook fixes the order."""
        if ranking.order == "fixed":
            return lambda ranking: ranking
        levels = await self.guard.levels([choice.step for choice in ranking.tried])

        def arrange(ranking: Ranking) -> Ranking:
            tried = sorted(ranking.tried, key=lambda choice: levels[choice.strategy] is Trust.APPROVE)
            return replace(ranking, tried=tried)

        return arrange

    async def _withhold(self, ranking: Ranking, why: str, told: bool) -> Ranking:
        """Nothing is tried: every step is refused, for the same reason."""
        await self._store.withhold(self.record.id, epoch=self.record.epoch, why=why)
        self.record, self.told = replace(self.record, withheld=why), told
        refused = [replace(choice, unmet=why) for choice in (*ranking.tried, *ranking.skipped)]
        await asyncio.gather(*(self._settle(self._considered(one), Verdict.REFUSED, why) for one in refused))
        self.ranking = replace(ranking, tried=[], skipped=refused)
        return self.ranking

    def _considered(self, choice: Choice) -> Acted:
        return Acted(choice, self._positions[choice.strategy])

    async def _settle(self, acted: Acted, verdict: Verdict, reason: str) -> ActionRecord:
        action = acted.record(self.record, verdict, reason)
        await self._store.record_action(action, epoch=self.record.epoch)
        self._actions[action.strategy] = action
        if acted.plan is not None:
            await self._store.unlock_actuators(self.record.id)
        return action

    async def _end(self, status: Status, message: str) -> RecoveryRecord:
        concluded = await self._store.conclude(
            self.record.id, epoch=self.record.epoch, status=status, message=message, explanation=self.explanation()
        )
        await self._store.unlock_actuators(self.record.id)
        self.record = concluded
        return concluded


def after_relapses(ranking: Ranking, times: Mapping[str, int]) -> Ranking:
    """What recovered this incident and did not last goes last, and is not tried a third time. A retry changes nothing
    that could have lasted: once is no objection to it."""

    def objection(choice: Choice) -> int:
        return times.get(choice.strategy, 0) - (1 if choice.strategy == "retry" else 0)

    tired = [one for one in ranking.tried if objection(one) > 1 and one.strategy != "retry"]
    if not any(objection(one) > 0 for one in ranking.tried):
        return ranking
    tried = sorted((one for one in ranking.tried if one not in tired), key=lambda one: objection(one) > 0)
    skipped = [
        replace(one, unmet=f"it recovered this {times[one.strategy]} times within the last hour, and it came back")
        for one in tired
    ]
    return replace(ranking, tried=tried, skipped=[*ranking.skipped, *skipped])


def outcome(actions: Sequence[ActionRecord]) -> Status:
    """What the actions have shown, taken together. Nothing done is no recovery; done without evidence is unknown."""
    verdicts = {action.verdict for action in actions}
    if Verdict.RECOVERED in verdicts:
        return Status.RECOVERED
    if Verdict.UNKNOWN in verdicts and Verdict.NOT_RECOVERED not in verdicts:
        return Status.UNKNOWN
    return Status.NOT_RECOVERED
