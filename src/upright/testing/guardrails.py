"""Guardrails in memory, as PostgreSQL keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from upright.domain.directive import Directive
from upright.domain.guardrails import Guardrails, Trust
from upright.domain.message import Json
from upright.domain.verdict import Status, Verdict
from upright.errors import NotFound, Stopped
from upright.services.guardrails.guard import stop_reason
from upright.services.guardrails.holds import failing_service, repeated_failures
from upright.services.guardrails.limits import Count, Scope, refusal
from upright.services.guardrails.ports import EVERY, Approval, Hold, Occupant, Origin, Switch, TrustSetting, Via
from upright.services.guardrails.trust import Record
from upright.services.ports import AlertRecord, RecoveryRecord, Scaling


class InMemoryGuards:
    records: dict[UUID, RecoveryRecord]
    sent: list[AlertRecord]
    directives: dict[tuple[str, str], dict[tuple[str, str], Directive]]
    versions: dict[tuple[str, str], int]
    added: dict[tuple[str, str, str], tuple[Scaling, float]]

    def __init__(self) -> None:
        self.permits: dict[tuple[UUID, str], tuple[Occupant, datetime]] = {}
        self.held: list[Hold] = []
        self.resets: dict[str, datetime] = {}
        self.stops: list[Switch] = []
        self.settings: dict[tuple[str, str], TrustSetting] = {}
        self.asked: dict[UUID, Approval] = {}

    async def admit(self, action: Occupant) -> str | None:
        self._pass_by(action.tenant, action.service)
        key = (action.recovery_id, action.strategy)
        if key in self.permits:
            return None
        why = refusal([(scope, self._count(action, scope)) for scope in action.scopes])
        if why is None:
            self.permits[key] = (action, datetime.now(UTC))
        return why

    def _pass_by(self, tenant: str, service: str) -> None:
        for one in self.stops:
            if one.tenant in (EVERY, tenant) and one.service in (EVERY, service):
                raise Stopped(stop_reason(one.by, one.why, one.where))

    def _count(self, action: Occupant, scope: Scope) -> Count:
        now = datetime.now(UTC)
        mine = [
            (one, at)
            for one, at in self.permits.values()
            if scope.service in (None, one.service)
            and scope.runbook in (None, one.runbook)
            and scope.strategy in (None, one.strategy)
        ]
        running = {
            one.recovery_id
            for one, _ in mine
            if one.recovery_id != action.recovery_id
            and not self.records[one.recovery_id].status.final
            and not any(done.strategy == one.strategy for done in self.records[one.recovery_id].actions)
        }
        latest = max((at for _, at in mine), default=None)
        hour = sum(now - at < timedelta(hours=1) for _, at in mine)
        return Count(hour, len(running), None if latest is None else (now - latest).total_seconds())

    async def give_back(self, recovery_id: UUID, strategy: str) -> None:
        self.permits.pop((recovery_id, strategy), None)

    async def hold(self, tenant: str, service: str, fingerprint: str, guardrails: Guardrails) -> Hold | None:
        now = datetime.now(UTC)
        for one in self.held:
            if one.until > now and one.service == service and one.fingerprint in ("", fingerprint):
                return one
        rules = guardrails.repeated_failures
        ended = self._ended(service, fingerprint)
        reason = repeated_failures(rules, [_failed(one) for one in ended])
        key, seconds = fingerprint, rules.hold_s
        if reason is None:
            ended = self._ended(service, "")
            reason = failing_service(guardrails.failing_service, [_failed(one) for one in ended])
            key, seconds = "", guardrails.failing_service.hold_s
        if reason is None:
            return None
        begun = Hold(tenant, service, key, reason, now, now + timedelta(seconds=seconds), ended[0].id)
        self.held.append(begun)
        return begun

    def _ended(self, service: str, fingerprint: str) -> list[RecoveryRecord]:
        since = max((at for key, at in self.resets.items() if key in (service, fingerprint)), default=None)
        acted = {recovery_id for recovery_id, _ in self.permits}
        found = [
            one
            for one in self.records.values()
            if one.service == service
            and fingerprint in ("", one.fingerprint)
            and one.finished_at is not None
            and (since is None or one.finished_at > since)
            and one.status is not Status.CANCELLED
            and (one.id in acted or one.status is Status.RECOVERED)
        ]
        return sorted(found, key=lambda one: str(one.finished_at), reverse=True)

    async def holds(self) -> Sequence[Hold]:
        return [one for one in self.held if one.until > datetime.now(UTC)]

    async def reset(self, which: str, *, by: str, why: str = "") -> int:
        known = {one.incident_id for one in self.records.values() if which in (one.service, one.fingerprint)}
        if not known:
            raise NotFound(f"There is no service and no fingerprint {which!r}.")
        self.resets[which] = datetime.now(UTC)
        self.held = [one for one in self.held if which not in (one.service, one.fingerprint)]
        return len(known)

    async def withhold(self, recovery_id: UUID, *, epoch: int, why: str) -> None:
        self.records[recovery_id] = replace(self.records[recovery_id], withheld=why)

    async def told_since(self, incident_id: UUID, since: datetime) -> bool:
        of_incident = {one.id for one in self.records.values() if one.incident_id == incident_id}
        return any(one.recovery_id in of_incident and one.status == "sent" for one in self.sent)

    async def stopped(self, tenant: str, service: str) -> Switch | None:
        found = [one for one in self.stops if one.tenant in (EVERY, tenant) and one.service in (EVERY, service)]
        return found[0] if found else None

    async def switches(self) -> Sequence[Switch]:
        return list(self.stops)

    async def stop(self, tenant: str, service: str, *, origin: Origin, by: str, why: str) -> int:
        self.stops.append(Switch(tenant, service, origin, by, why, datetime.now(UTC)))
        withdrawn = 0
        for (of_tenant, of_service), held in self.directives.items():
            if tenant in (EVERY, of_tenant) and service in (EVERY, of_service):
                withdrawn += len(held)
                held.clear()
                self.versions[of_tenant, of_service] += 1
        for key, (scaling, _) in self.added.items():
            if tenant in (EVERY, scaling.tenant) and service in (EVERY, scaling.service):
                self.added[key] = scaling, 0.0
        return withdrawn

    async def start(self, tenant: str, service: str, *, origin: Origin, by: str, why: str) -> int:
        lifted = [
            one
            for one in self.stops
            if (one.tenant, one.service) == (tenant, service) and origin in ("operator", one.origin)
        ]
        self.stops = [one for one in self.stops if one not in lifted]
        return len(lifted)

    async def recall(self, tenant: str, service: str) -> None:
        self.versions[tenant, service] = self.versions.get((tenant, service), 0) + 1

    async def trust(self, runbook: str | None = None) -> Sequence[TrustSetting]:
        return [one for one in self.settings.values() if runbook in (None, one.runbook)]

    async def set_trust(self, runbook: str, strategy: str, level: Trust, *, by: str, why: str) -> None:
        self.settings[runbook, strategy] = TrustSetting(runbook, strategy, level, by, why, datetime.now(UTC))

    async def track_record(self, runbook: str, strategy: str, window: int) -> Record:
        verdicts = [
            action.verdict
            for one in self.records.values()
            if one.runbook == runbook
            for action in one.actions
            if action.strategy == strategy
            and action.verdict in (Verdict.RECOVERED, Verdict.NOT_RECOVERED, Verdict.RELAPSED)
        ][-window:]
        successes = verdicts.count(Verdict.RECOVERED)
        return Record(successes, len(verdicts) - successes)

    async def shadow_decisions(self, runbook: str, strategy: str) -> int:
        return sum(
            action.strategy == strategy and action.reason.startswith("shadow: ")
            for one in self.records.values()
            if one.runbook == runbook
            for action in one.actions
        )

    async def ask(
        self, recovery_id: UUID, strategy: str, *, epoch: int, target: str, values: Json, plan: str, within_s: float
    ) -> Approval:
        known = (await self.approvals_of(recovery_id)).get(strategy)
        if known is not None:
            return known
        record, now = self.records[recovery_id], datetime.now(UTC)
        approval = Approval(
            id=uuid4(),
            recovery_id=recovery_id,
            tenant=record.tenant,
            service=record.service,
            runbook=record.runbook,
            strategy=strategy,
            target=target,
            values=values,
            plan=plan,
            status="waiting",
            created_at=now,
            expires_at=now + timedelta(seconds=within_s),
            expires_in_s=within_s,
        )
        self.asked[approval.id] = approval
        return approval

    async def approval(self, approval_id: UUID) -> Approval:
        found = self.asked.get(approval_id)
        if found is None:
            raise NotFound(f"There is no approval {approval_id}.")
        if found.status == "waiting" and found.expires_at <= datetime.now(UTC):
            found = self.asked[approval_id] = replace(found, status="expired", via="upright")
        return found

    async def approvals_of(self, recovery_id: UUID) -> Mapping[str, Approval]:
        return {one.strategy: one for one in self.asked.values() if one.recovery_id == recovery_id}

    async def approvals(self, *, waiting: bool = True, limit: int = 100) -> Sequence[Approval]:
        return [one for one in self.asked.values() if not waiting or one.status == "waiting"][:limit]

    async def decide(self, approval_id: UUID, *, approve: bool, by: str, via: Via, why: str = "") -> Approval:
        found = await self.approval(approval_id)
        if found.status == "waiting":
            status = "approved" if approve else "rejected"
            found = replace(found, status=status, decided_by=by, via=via, why=why)
            self.asked[approval_id] = found
        return found


def _failed(record: RecoveryRecord) -> bool:
    helped = any(one.verdict is Verdict.RECOVERED for one in record.actions)
    return not (record.status is Status.RECOVERED or (record.status is Status.RELAPSED and helped))
