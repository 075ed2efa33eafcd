"""Operating: carry out a plan that a platform's process manager is asked for.

One at a time for a service, over all replicas of Upright; one replica of the service after the other, and no further
than the first that does not come back. Evidence is what the waiting caller, a process of the service or the health
address sees; where none of them sees a failure before, nothing is done, since nothing could be shown after.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from upright.domain.directive import Command
from upright.domain.event import Event
from upright.domain.message import Json
from upright.domain.runbook import Runbook
from upright.domain.verdict import Evidence, Verdict
from upright.errors import PlatformFailed, Stopped
from upright.services.dependencies import Dependencies
from upright.services.guardrails.guard import stop_reason
from upright.services.ports import Instance, Platform, RecoveryRecord, Scaling
from upright.services.running import RunningService, revert, together
from upright.services.strategies import Fleet, Plan

if TYPE_CHECKING:
    from upright.services.acting import Acted

log = logging.getLogger("upright.platforms")

ACTUATOR, TARGET = "platform", ""
"""The lock: scaling and restarting exclude each other."""
POLL_S = 0.1
BASELINE_S = 3.0
"""What a process of the service gets to show the failure before; one that hangs has none."""
NEWCOMER_S = 10.0
"""How long a new process has to connect, where it is to be asked for evidence."""
REVERT_S = 30.0

Witness = Callable[..., Awaitable[Evidence | None]]


class Operator:
    """Acts on the platform for one recovery."""

    def __init__(
        self, dependencies: Dependencies, recovery: RecoveryRecord, event: Event, runbook: Runbook, witness: Witness
    ) -> None:
        self._store, self._dispatch = dependencies.store, dependencies.dispatch
        self._service = dependencies.platforms.get((recovery.tenant, recovery.service))
        self._recovery, self._event, self._runbook = recovery, event, runbook
        self._witness = witness

    async def act(self, acted: Acted, fleet: Fleet, until: float, hold: Callable[[Acted], None]) -> Acted:
        """`until`: on time.monotonic(), when it must have ended. `hold` is told what would have to be taken back."""
        service, plan = self._service, acted.plan
        if service is None or plan is None:
            return replace(acted, settled=Verdict.SKIPPED, reason="its processes can't be reached from here")
        acted = await self._baseline(acted, plan, service, fleet)
        if acted.settled is not None:
            return acted
        step = acted.choice.step
        ttl_s = step.timeout_s + self._runbook.verification.longest_s + 15
        tenant, recovery_id = self._recovery.tenant, self._recovery.id
        if not await self._store.lock_actuator(
            tenant, service.name, ACTUATOR, TARGET, recovery_id=recovery_id, ttl_s=ttl_s
        ):
            reason = "another recovery is scaling or restarting the service"
            return replace(acted, settled=Verdict.SKIPPED, reason=reason)
        try:
            acted = await self._carry_out(acted, plan, service, until, hold)
        except Stopped as stopped:
            await self.withdraw(acted)
            return replace(acted, settled=Verdict.REFUSED, reason=str(stopped), after=await _measured(service))
        except PlatformFailed as error:
            await self.withdraw(acted)
            after = await _measured(service)
            return replace(acted, settled=Verdict.FAILED, reason=str(error), after=after)
        return replace(acted, after=await _measured(service))

    async def evidence(self, acted: Acted) -> Evidence | None:
        """What is seen of the failed operation after it."""
        if acted.witness == "waiter":
            return await self._replayed_by_waiter()
        if acted.witness == "health" and self._service is not None:
            return together(await self._service.health())
        if acted.agent is None:
            return None
        if acted.plan is not None and acted.plan.target == "scale":
            return await self._witness(acted.agent)
        agent = await self._newcomer(acted)
        return await self._witness(agent) if agent is not None else None

    async def withdraw(self, acted: Acted) -> None:
        """Take back what was added. A restart can't be."""
        if self._service is None or acted.plan is None or acted.plan.target != "scale":
            return
        for scaling in await self._store.scalings(self._recovery.tenant, self._recovery.service):
            if scaling.recovery_id == self._recovery.id:
                why = f"{acted.choice.strategy} did not help"
                try:
                    await revert(self._store, self._service, scaling, why, timeout_s=REVERT_S)
                except PlatformFailed as error:
                    log.warning("%s could not be scaled back yet: %s", self._service.name, error)
                    # It is tried again as one whose time is over.
                    await self._store.put_scaling(scaling, ttl_s=0, epoch=self._recovery.epoch)

    async def _baseline(self, acted: Acted, plan: Plan, service: RunningService, fleet: Fleet) -> Acted:
        """Who will be asked afterwards: someone who has seen the failure."""
        if plan.target == "scale" and fleet.waiter_present and "replay" in _abilities(self._event):
            # Its own exception is the reading before.
            return replace(acted, witness="waiter")
        # The process that failed before others: a fault in its memory is nowhere else.
        able = sorted(fleet.able("replay"), key=lambda one: one.id != self._event.instance)
        agent = next(iter(able), None) if _replayable(self._event, self._runbook) else None
        health, replay = await asyncio.gather(service.health(), self._seen_by(agent))
        overall = together(health)
        if replay is not None and replay.outcome == "failed":
            return replace(acted, witness="agent", agent=agent, baseline=replay, health=health)
        if overall is not None and overall.outcome == "failed":
            return replace(acted, witness="health", baseline=overall, health=health)
        if any(one.outcome == "failed" for one in acted.readings.values()):
            # The runbook's own checks have seen it, and are made again; health must not have suffered by then.
            witness = "" if overall is None else "health"
            return replace(acted, witness=witness, baseline=overall, health=health)
        seen = [one for one in (replay, overall) if one is not None and one.outcome == "passed"]
        if seen:
            kinds = " and ".join(one.kind.replace("_", " ") for one in seen)
            reason = f"not carried out: {kinds} worked before it, so that success could not be shown"
        else:
            reason = "not carried out: nothing here could show whether it helped"
        return replace(acted, settled=Verdict.UNKNOWN, reason=reason, baseline=next(iter(seen), None))

    async def _seen_by(self, agent: Instance | None) -> Evidence | None:
        return None if agent is None else await self._witness(agent, within_ms=round(BASELINE_S * 1000))

    async def _carry_out(
        self, acted: Acted, plan: Plan, service: RunningService, until: float, hold: Callable[[Acted], None]
    ) -> Acted:
        match plan.target:
            case "scale":
                hold(acted)
                await self._scale(acted, plan, service, until)
            case "recycle":
                await self._pass_by()
                await self._recycle(plan, service, until)
            case _:
                acted = await self._restart(acted, plan, service, until)
        return acted

    async def _pass_by(self) -> None:
        """Looking at the service takes seconds, in which recovery may have been stopped. Raises Stopped."""
        switch = await self._store.stopped(self._recovery.tenant, self._recovery.service)
        if switch is not None:
            raise Stopped(stop_reason(switch.by, switch.why, switch.where))

    async def _scale(self, acted: Acted, plan: Plan, service: RunningService, until: float) -> None:
        wanted: dict[str, int] = plan.values["processes"]  # pyright: ignore[reportAssignmentType]
        state = await service.state(self._store)
        for one in state.replicas:
            platform = service.replica(one.name)
            if platform is None or one.problem:
                raise PlatformFailed(one.problem or f"{one.name} is gone")
            processes, base = wanted[one.name], state.base(one)
            if processes <= len(one.processes):
                continue
            scaling = Scaling(
                self._recovery.tenant, service.name, one.name, base, processes, one.incarnation, self._recovery.id
            )
            await self._store.put_scaling(scaling, ttl_s=acted.choice.step.ttl_s, epoch=self._recovery.epoch)
            await platform.scale(processes, timeout_s=_left(until))

    async def _recycle(self, plan: Plan, service: RunningService, until: float) -> None:
        chosen: dict[str, list[int]] = plan.values["recycle"]  # pyright: ignore[reportAssignmentType]
        for platform in service.replicas:
            if platform.name in chosen:
                await platform.recycle(chosen[platform.name], timeout_s=_left(until))

    async def _restart(self, acted: Acted, plan: Plan, service: RunningService, until: float) -> Acted:
        """Those that don't answer first, and only those if there are any."""
        failing = [one for one in service.replicas if one.name in acted.health and not _passed(acted.health[one.name])]
        chosen = failing or list(service.replicas)
        if len(chosen) > 1 and _left(until) < len(chosen):
            raise PlatformFailed("the step's time is too short to restart its replicas one after the other")
        added = {one.replica: one for one in await self._store.scalings(self._recovery.tenant, service.name)}
        for index, platform in enumerate(chosen):
            try:
                await self._pass_by()
            except Stopped as stopped:
                if index:
                    done = ", ".join(one.name for one in chosen[:index])
                    raise PlatformFailed(f"{done} restarted, the others not: {stopped}") from stopped
                raise
            share_s = _left(until) / (len(chosen) - index)
            await _restart_one(platform, plan, share_s)
            await self._scale_again(platform, added.get(platform.name), _left(until))
        done = ", ".join(one.name for one in chosen)
        return replace(acted, reason=f"restarted {done}" if len(service.replicas) > 1 else "")

    async def _scale_again(self, platform: Platform, scaling: Scaling | None, left_s: float) -> None:
        """Processes that were added for a time are to be there until that is over."""
        if scaling is None:
            return
        state = await platform.state()
        if state.incarnation == scaling.incarnation and len(state.processes) < scaling.processes:
            await platform.scale(scaling.processes, timeout_s=left_s)

    async def _replayed_by_waiter(self) -> Evidence | None:
        command = Command(
            id=uuid4(), kind="replay", deadline_ms=round(self._runbook.verification.timeout_s * 1000), verify=True
        )
        result = await self._dispatch.to_waiter(self._recovery.error_id, command)
        return result.evidence if result is not None and result.status == "done" else None

    async def _newcomer(self, acted: Acted) -> Instance | None:
        """A process that was not there before: an old one that ends its last requests shows nothing."""
        deadline = time.monotonic() + NEWCOMER_S
        while time.monotonic() < deadline:
            live = await self._store.live_instances(self._recovery.tenant, self._recovery.service)
            for one in Fleet(live).able("replay"):
                if one.id not in acted.old and _pid(one) not in acted.old:
                    return one
            await asyncio.sleep(POLL_S)
        return None


async def _restart_one(platform: Platform, plan: Plan, left_s: float) -> None:
    values = plan.values
    timeout_s = min(float(str(values["timeout_s"])), left_s)
    try:
        await platform.restart(
            graceful=values["graceful"] is True, timeout_s=timeout_s, health_check=values["health_check"] is True
        )
    except PlatformFailed as error:
        raise PlatformFailed(f"{platform.name}: {error}") from error


async def _measured(service: RunningService) -> Json:
    states = await asyncio.gather(*(one.state() for one in service.replicas))
    found: Json = {"processes": {one.name: len(one.processes) for one in states}}
    problems = {one.name: one.problem for one in states if one.problem}
    return {**found, "problems": problems} if problems else found


def _replayable(event: Event, runbook: Runbook) -> bool:
    request = event.request
    return (
        runbook.verification.anonymous_replay
        and request is not None
        and request.method in ("GET", "HEAD")
        and request.replayable
        and request.path_intact
    )


def _abilities(event: Event) -> list[str]:
    return [] if event.waiter is None else event.waiter.can


def _passed(evidence: Evidence) -> bool:
    return evidence.outcome == "passed"


def _pid(instance: Instance) -> str:
    """Instances are named host:pid:boot."""
    parts = instance.id.split(":")
    return parts[-2] if len(parts) >= 3 else ""


def _left(until: float) -> float:
    return max(0.5, until - time.monotonic())
