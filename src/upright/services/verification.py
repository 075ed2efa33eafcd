"""Verification: the checks that a runbook names, before an action and after it.

One that says nothing is inconclusive, never passed. What the checks say together is for `judge_all`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from uuid import uuid4

from upright.domain.check import Check, HttpCheck, QuietCheck, RegisteredCheck, ReplayCheck, SqlCheck, TcpCheck
from upright.domain.directive import Command, Directive
from upright.domain.event import Event
from upright.domain.runbook import SETTLING_S, Runbook
from upright.domain.verdict import Checked, Evidence
from upright.services.dependencies import Dependencies
from upright.services.ports import Instance, RecoveryRecord
from upright.services.strategies import Fleet

NOISE = 3
"""How many errors a window before the action must have had for silence in one after it to mean something. With fewer,
traffic as before would have been silent by chance in more than one of twenty windows."""
COUNT_DEADLINE_MS = 3_000
POLL_S = 0.2

Readings = Mapping[int, Evidence]
"""What each check saw, by its place in the runbook."""


class Checks:
    """Those of one recovery."""

    def __init__(self, dependencies: Dependencies, recovery: RecoveryRecord, event: Event, runbook: Runbook) -> None:
        self._store, self._dispatch, self._prober = dependencies.store, dependencies.dispatch, dependencies.prober
        self._recovery, self._event = recovery, event
        self._rules = runbook.verification

    async def before(self, fleet: Fleet, within_s: float) -> Readings:
        """A reading before the action. The failed operation's own is its exception, or the actor's to take."""
        places = [(index, one) for index, one in enumerate(self._rules.checks) if one.kind != "replay"]
        if not places:
            return {}
        agent = self._agent(fleet.able("check"))
        readings = await asyncio.gather(*(self._first(one, agent, within_s) for _, one in places))
        return {index: reading for (index, _), reading in zip(places, readings, strict=True)}

    async def after(
        self, own: Evidence | None, baseline: Evidence | None, before: Readings, directive: Directive | None
    ) -> tuple[Checked, ...]:
        """One after another, until one has failed. `own`: what was seen of the failed operation itself, which counts
        whether or not the runbook asks for it."""
        rules, found = self._rules.checks, list[Checked]()
        if not rules:
            return ()
        if own is not None and not self._rules.replays:
            found.append(Checked(name="replay", after=own, before=baseline))
        for index, check in enumerate(rules):
            if found and found[-1].after.outcome == "failed":
                break
            if check.kind == "replay":
                nothing = Evidence(kind="replay", outcome="inconclusive", detail="no evidence could be had")
                found.append(Checked(name=check.label, after=own or nothing, before=baseline))
            else:
                seen = await self._again(check, directive)
                found.append(Checked(name=check.label, after=seen, before=before.get(index)))
        return tuple(found)

    async def _first(self, check: Check, agent: Instance | None, within_s: float) -> Evidence:
        if check.kind == "quiet":
            errors = await self._store.recurrences(self._recovery.incident_id, check.window_s)
            loud = errors >= NOISE
            detail = f"{errors} such errors in the {check.window_s:g} s before"
            return Evidence(kind="quiet", outcome="failed" if loud else "inconclusive", detail=detail)
        try:
            async with asyncio.timeout(max(0.0, within_s)):
                return await self._look(check, agent)
        except TimeoutError:
            return Evidence(kind=check.kind, outcome="inconclusive", detail="no time was left for it")

    async def _again(self, check: Check, directive: Directive | None) -> Evidence:
        if check.kind == "quiet":
            return await self._quiet(check, directive)
        instances = await self._store.live_instances(self._recovery.tenant, self._recovery.service)
        able = Fleet(instances).able("check")
        if directive is not None and directive.instances is not None:
            able = [one for one in able if one.id in directive.instances]
        return await self._look(check, self._agent(able))

    async def _look(self, check: Check, agent: Instance | None) -> Evidence:
        match check:
            case RegisteredCheck():
                return await self._in_application(check, agent)
            case SqlCheck(runs_in="application"):
                return await self._in_application(check, agent)
            case HttpCheck() | SqlCheck() | TcpCheck():
                if self._prober is None:
                    return Evidence(kind=check.kind, outcome="inconclusive", detail="this service makes no checks")
                return await self._prober.probe(check)
            case ReplayCheck() | QuietCheck():
                raise TypeError(f"{check.kind} is no matter of a moment")

    async def _in_application(self, check: SqlCheck | RegisteredCheck, agent: Instance | None) -> Evidence:
        def nothing(why: str) -> Evidence:
            return Evidence(kind=check.kind, outcome="inconclusive", detail=why)

        if agent is None:
            return nothing("no process of the service can carry it out")
        command = Command(
            id=uuid4(), kind="check", deadline_ms=round(check.timeout_s * 1000), check=check.model_dump(mode="json")
        )
        result = await self._dispatch.to_agent(self._recovery.tenant, self._recovery.service, command, agent.id)
        if result is None:
            return nothing(f"{agent.id} did not answer in time")
        if result.evidence is None:
            return nothing(result.reason or f"the application answered {result.status!r}")
        return result.evidence.model_copy(update={"kind": check.kind})

    def _agent(self, able: Sequence[Instance]) -> Instance | None:
        """Where it failed, if that process is still there."""
        return next((one for one in able if one.id == self._event.instance), next(iter(able), None))

    async def _quiet(self, check: QuietCheck, directive: Directive | None) -> Evidence:
        """Requests and errors of the route, in the processes that hold the change, from now on."""

        def seen(outcome: str, detail: str) -> Evidence:
            took_ms = (time.monotonic() - began) * 1000
            return Evidence.model_validate(
                {"kind": "quiet", "outcome": outcome, "detail": detail, "duration_ms": round(took_ms, 1)}
            )

        began = time.monotonic()
        if self._event.request is None:
            return seen("inconclusive", "it was no request, so that there is no route whose traffic could be counted")
        holders = await self._holders(directive)
        watch = str(uuid4())
        counting = [one for one in holders if await self._count(one, watch, check) is not None]
        if not counting:
            return seen("inconclusive", "no process counts its requests")
        began, version = time.monotonic(), directive.version if directive is not None else 0
        names = [one.id for one in counting]
        while (left_s := check.window_s - (time.monotonic() - began)) > 0:
            await asyncio.sleep(min(POLL_S, left_s))
            since_s = time.monotonic() - began
            if await self._store.recurrences(self._recovery.incident_id, since_s, version=version, instances=names):
                return seen("failed", f"it came back after {since_s:.1f} s")
        told = await asyncio.gather(*(self._count(one, watch, check) for one in counting))
        total = {name: sum((one or {}).get(name, 0) for one in told) for name in ("succeeded", "failed")}
        if total["failed"]:
            return seen("failed", f"{total['failed']} requests of the route failed in the same way")
        requests = f"{total['succeeded']} requests of the route succeeded in {check.window_s:g} s"
        if total["succeeded"] < check.min_requests:
            return seen("inconclusive", f"{requests}, and {check.min_requests} are wanted")
        return seen("passed", f"{requests}, and none failed in the same way")

    async def _holders(self, directive: Directive | None) -> list[Instance]:
        """Processes that count requests and hold the change; waits a little for them to."""
        until = time.monotonic() + SETTLING_S / 2
        while True:
            live = await self._store.live_instances(self._recovery.tenant, self._recovery.service)
            able = Fleet(live).able("traffic")
            if directive is None or directive.scope == "once":
                return able
            wanted = [one for one in able if directive.instances is None or one.id in directive.instances]
            told = await self._store.acknowledgements(directive.id)
            applied = {instance for instance, one in told if one.status == "applied"}
            holding = [one for one in wanted if one.id in applied]
            if len(holding) == len(wanted) or time.monotonic() >= until:
                return holding
            await asyncio.sleep(POLL_S)

    async def _count(self, instance: Instance, watch: str, check: QuietCheck) -> Mapping[str, int] | None:
        request = self._event.request
        assert request is not None  # noqa: S101 (_quiet() has looked)
        command = Command(
            id=uuid4(),
            kind="traffic",
            deadline_ms=COUNT_DEADLINE_MS,
            check={
                "watch": watch,
                "method": request.method,
                "route": request.route,
                "keep_s": check.window_s + 2 * SETTLING_S,
            },
            error_types=self._event.error.classes[0][:1] if self._event.error.classes else [self._event.error.type],
        )
        result = await self._dispatch.to_agent(self._recovery.tenant, self._recovery.service, command, instance.id)
        return result.counts if result is not None and result.status == "done" else None
