"""The ports in memory, for tests of services and runbooks. They keep to the contracts of upright.services.ports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID, uuid4

from upright.domain.directive import Acknowledgement, Command, CommandResult, Directive, Outcome, SyncRequest
from upright.domain.event import Event
from upright.domain.message import Json
from upright.domain.severity import Severity
from upright.domain.verdict import Status, Verdict
from upright.errors import NotFound, StaleEpoch, Unavailable
from upright.services.ports import (
    Acceptance,
    ActionRecord,
    AlertRecord,
    ChannelDelivery,
    HealthWatch,
    Instance,
    RecoveryRecord,
    Scaling,
    Told,
)
from upright.testing.guardrails import InMemoryGuards

Answerer = Callable[[Command], Awaitable[CommandResult | None]]


@dataclass
class _Lease:
    runner: str
    until: float


class InMemoryStore(InMemoryGuards):
    """Errors, recoveries and the fleet. One event loop; nothing outlives the object."""

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[UUID, Event] = {}
        self.tenants: dict[UUID, str] = {}
        self.deliveries: dict[tuple[str, str], UUID] = {}
        self.records: dict[UUID, RecoveryRecord] = {}
        self.explanations: dict[UUID, Json] = {}
        self.answers: dict[UUID, UUID] = {}
        """Error to the recovery that answers it."""
        self.own_results: dict[UUID, bool] = {}
        self.sent: list[AlertRecord] = []
        self.sent_at: list[float] = []
        self.locks: dict[tuple[str, str, str, str], tuple[UUID, float]] = {}
        self.directives: dict[tuple[str, str], dict[tuple[str, str], Directive]] = {}
        self.putters: dict[UUID, UUID] = {}
        """Directive to the recovery that put it in force."""
        self.versions: dict[tuple[str, str], int] = {}
        self.instances: dict[tuple[str, str], dict[str, Instance]] = {}
        self.acks: dict[UUID, dict[str, Acknowledgement]] = {}
        """The latest, by directive and instance."""
        self.earlier_acks: dict[UUID, dict[tuple[str, str], Acknowledgement]] = {}
        """Those before it, by status too."""
        self.relapsed: dict[str, int] = {}
        """How often each strategy has recovered the incident to no lasting effect."""
        self.errors_again = 0
        """What `recurrences` counts."""
        self.added: dict[tuple[str, str, str], tuple[Scaling, float]] = {}
        self.watches: dict[tuple[str, str], HealthWatch] = {}
        self._leases: dict[UUID, _Lease] = {}

    # Errors

    async def accept(
        self,
        tenant: str,
        delivery_id: str,
        event: Event,
        *,
        fingerprint: str,
        runbook: str,
        severity: Severity,
        cooldown_s: float,
        rerun: bool = False,
        queued: bool = False,
        relapse_window_s: float = 600,
    ) -> Acceptance:
        if (tenant, delivery_id) in self.deliveries:
            error_id = self.deliveries[tenant, delivery_id]
            return Acceptance(error_id, severity, await self.recovery_of_error(error_id), "duplicate")
        self.deliveries[tenant, delivery_id] = event.error_id
        self.events[event.error_id], self.tenants[event.error_id] = event, tenant
        for record in self.records.values():
            if record.fingerprint == fingerprint and record.tenant == tenant and not record.status.final:
                self.answers[event.error_id] = record.id
                return Acceptance(event.error_id, severity, record, "joined_running")
        record = self._open(tenant, event, fingerprint, runbook, severity, queued=queued)
        return Acceptance(event.error_id, severity, record, "opened")

    def _open(
        self, tenant: str, event: Event, fingerprint: str, runbook: str, severity: Severity, *, queued: bool = False
    ) -> RecoveryRecord:
        record = RecoveryRecord(
            id=uuid4(),
            tenant=tenant,
            incident_id=uuid4(),
            error_id=event.error_id,
            fingerprint=fingerprint,
            service=event.service,
            runbook=runbook,
            severity=severity,
            status=Status.QUEUED if queued else Status.RUNNING,
            epoch=1,
            flow_run_id=None,
            flow_run_attempt=0,
            created_at=datetime.now(UTC),
            finished_at=None,
            waited=event.waiter is not None,
        )
        self.records[record.id] = record
        self.answers[event.error_id] = record.id
        return record

    async def event_of(self, error_id: UUID, tenant: str | None = None) -> Event:
        if error_id not in self.events or (tenant is not None and self.tenants[error_id] != tenant):
            raise NotFound(f"error {error_id}")
        return self.events[error_id]

    async def recovery_of_error(self, error_id: UUID) -> RecoveryRecord | None:
        found = self.answers.get(error_id)
        return self.records[found] if found else None

    async def recovery(self, recovery_id: UUID) -> RecoveryRecord:
        try:
            return self.records[recovery_id]
        except KeyError:
            raise NotFound(f"recovery {recovery_id}") from None

    async def record_own_result(self, error_id: UUID, success: bool) -> None:
        self.own_results[error_id] = success

    async def recurrences(
        self, incident_id: UUID, within_s: float, *, version: int = 0, instances: Sequence[str] | None = None
    ) -> int:
        known = {record.id for record in self.records.values() if record.incident_id == incident_id}
        first = 0 if version or instances is not None else sum(answer in known for answer in self.answers.values())
        return self.errors_again or first

    async def relapses(self, incident_id: UUID, within_s: float) -> Mapping[str, int]:
        return self.relapsed

    async def errors(self, *, limit: int = 50, service: str | None = None, status: str | None = None) -> Sequence[Json]:
        found: list[Json] = [{"error_id": str(one), "service": event.service} for one, event in self.events.items()]
        return found[:limit]

    # Recoveries

    async def begin_run(
        self, error_id: UUID, *, flow_run_id: UUID, attempt: int, runner: str, lease_s: float, runbook: str
    ) -> RecoveryRecord:
        bound = [one for one in self.records.values() if one.flow_run_id == flow_run_id and not one.status.final]
        latest = await self.recovery_of_error(error_id)
        if bound:
            record = bound[0]
        elif latest is not None and latest.flow_run_id is None and not latest.status.final:
            record = latest
        else:
            event = await self.event_of(error_id)
            severity = latest.severity if latest else event.error.severity or Severity.LOW
            record = self._open(self.tenants[error_id], event, str(error_id), runbook, severity)
        return await self._bound(record, flow_run_id, attempt, runner, lease_s)

    async def bind(self, recovery_id: UUID, *, flow_run_id: UUID, runner: str, lease_s: float) -> RecoveryRecord:
        return await self._bound(await self.recovery(recovery_id), flow_run_id, 0, runner, lease_s)

    async def _bound(
        self, record: RecoveryRecord, flow_run_id: UUID, attempt: int, runner: str, lease_s: float
    ) -> RecoveryRecord:
        record = replace(record, flow_run_id=flow_run_id, flow_run_attempt=attempt, status=Status.RUNNING)
        self.records[record.id] = record
        self._leases[record.id] = _Lease(runner, _now() + lease_s)
        return record

    async def queued(self, limit: int) -> Sequence[RecoveryRecord]:
        waiting = [one for one in self.records.values() if one.status is Status.QUEUED]
        return sorted(waiting, key=lambda one: (one.severity.rank, one.created_at))[:limit]

    async def renew(self, runner: str, recovery_ids: Sequence[UUID], lease_s: float) -> None:
        for one in recovery_ids:
            if one in self._leases and self._leases[one].runner == runner:
                self._leases[one].until = _now() + lease_s

    async def take_expired(self, runner: str, lease_s: float, limit: int) -> Sequence[RecoveryRecord]:
        taken: list[RecoveryRecord] = []
        for recovery_id, lease in self._leases.items():
            record = self.records[recovery_id]
            if record.status is Status.RUNNING and lease.until < _now() and len(taken) < limit:
                lease.runner, lease.until = runner, _now() + lease_s
                self.records[recovery_id] = replace(record, epoch=record.epoch + 1)
                taken.append(self.records[recovery_id])
        return taken

    async def record_action(self, action: ActionRecord, *, epoch: int) -> None:
        record = await self._fenced(action.recovery_id, epoch)
        if action.verdict in (Verdict.SKIPPED, Verdict.REFUSED):
            await self.give_back(action.recovery_id, action.strategy)
        others = tuple(one for one in record.actions if one.position != action.position)
        actions = tuple(sorted((*others, action), key=lambda one: one.position))
        self.records[record.id] = replace(record, actions=actions)

    async def conclude(
        self, recovery_id: UUID, *, epoch: int, status: Status, message: str, explanation: Json
    ) -> RecoveryRecord:
        record = await self._fenced(recovery_id, epoch)
        record = replace(record, status=status, message=message, finished_at=datetime.now(UTC))
        self.records[recovery_id] = record
        self.explanations[recovery_id] = explanation
        return record

    async def close(self, recovery_id: UUID, *, epoch: int) -> None:
        self._leases.pop(recovery_id, None)

    async def _fenced(self, recovery_id: UUID, epoch: int) -> RecoveryRecord:
        record = await self.recovery(recovery_id)
        if record.epoch != epoch:
            raise StaleEpoch
        return record

    async def record_alert(self, alert: AlertRecord) -> None:
        self.sent.append(alert)
        self.sent_at.append(_now())

    async def last_told(self, incident_id: UUID, kind: str) -> Told | None:
        fingerprint = next((one.fingerprint for one in self.records.values() if one.incident_id == incident_id), None)
        held = 0
        for alert, at in reversed(list(zip(self.sent, self.sent_at, strict=True))):
            if alert.kind != kind or self.records[alert.recovery_id].fingerprint != fingerprint:
                continue
            if alert.status == "sent":
                return Told(alert.about, _now() - at, held)
            held += alert.status == "held"
        return None

    async def channel_deliveries(self, within_s: float) -> Sequence[ChannelDelivery]:
        channels = dict.fromkeys((one.channel, one.recipients) for one in self.sent if one.status in ("sent", "failed"))
        found: list[ChannelDelivery] = []
        for channel, recipients in channels:
            tries = [one for one in self.sent if (one.channel, one.recipients) == (channel, recipients)]
            failed = [one for one in tries if one.status == "failed"]
            sent, works = len(tries) - len(failed), tries[-1].status == "sent"
            detail = failed[-1].detail if failed else ""
            found.append(ChannelDelivery(channel, recipients, sent, len(failed), works, None, detail))
        return found

    async def alerts(self, recovery_id: UUID) -> Sequence[AlertRecord]:
        return [one for one in self.sent if one.recovery_id == recovery_id]

    async def lock_actuator(
        self, tenant: str, service: str, actuator: str, target: str, *, recovery_id: UUID, ttl_s: float
    ) -> bool:
        key = (tenant, service, actuator, target)
        holder = self.locks.get(key)
        if holder is not None and holder[0] != recovery_id and holder[1] > _now():
            return False
        self.locks[key] = (recovery_id, _now() + ttl_s)
        return True

    async def unlock_actuators(self, recovery_id: UUID) -> None:
        self.locks = {key: holder for key, holder in self.locks.items() if holder[0] != recovery_id}

    async def in_flight(self, tenant: str, service: str) -> int:
        return sum(
            one.tenant == tenant and one.service == service and not one.status.final for one in self.records.values()
        )

    # The fleet

    async def put_directive(
        self,
        tenant: str,
        service: str,
        strategy: str,
        target: str,
        *,
        values: Json,
        ttl_s: float,
        recovery_id: UUID,
        epoch: int,
        scope: Literal["process", "once"] = "process",
        instances: Sequence[str] | None = None,
    ) -> Directive:
        await self._fenced(recovery_id, epoch)
        self._pass_by(tenant, service)
        version = self.versions[tenant, service] = self.versions.get((tenant, service), 0) + 1
        directive = Directive(
            id=uuid4(),
            service=service,
            strategy=strategy,
            target=target,
            version=version,
            values=values,
            ttl_s=ttl_s,
            scope=scope,
            instances=None if instances is None else list(instances),
        )
        if scope == "process":
            self.directives.setdefault((tenant, service), {})[strategy, target] = directive
        self.putters[directive.id] = recovery_id
        return directive

    async def put_by(self, directive_id: UUID) -> UUID | None:
        return self.putters.get(directive_id)

    async def widen_directive(self, directive_id: UUID) -> int | None:
        for key, held in self.directives.items():
            for place, directive in held.items():
                if directive.id == directive_id:
                    self.versions[key] += 1
                    held[place] = directive.model_copy(update={"instances": None, "version": self.versions[key]})
                    return self.versions[key]
        return None

    async def standing(self, recovery_id: UUID) -> Sequence[Directive]:
        found = [one for held in self.directives.values() for one in held.values()]
        own = [one for one in found if self.putters[one.id] == recovery_id]
        return sorted(own, key=lambda one: one.version)

    async def withdraw_directive(self, directive_id: UUID) -> None:
        for key, held in self.directives.items():
            for place, directive in list(held.items()):
                if directive.id == directive_id:
                    del held[place]
                    self.versions[key] += 1

    async def desired(self, tenant: str, service: str, instance: str | None = None) -> tuple[int, list[Directive]]:
        key = (tenant, service)
        found = list(self.directives.get(key, {}).values())
        mine = [one for one in found if instance is None or one.instances is None or instance in one.instances]
        return self.versions.get(key, 0), mine

    async def sync(self, tenant: str, request: SyncRequest) -> None:
        instance = Instance(
            request.instance,
            request.service,
            request.desired_version,
            request.measurements,
            request.capabilities,
            dict(request.settings.model_dump()),
            datetime.now(UTC),
        )
        self.instances.setdefault((tenant, request.service), {})[request.instance] = instance
        for one in request.acknowledgements:
            latest = self.acks.setdefault(one.directive_id, {})
            former = latest.get(request.instance)
            if former is not None and former.status != one.status:
                self.earlier_acks.setdefault(one.directive_id, {})[request.instance, former.status] = former
            latest[request.instance] = one

    async def forget_instance(self, tenant: str, service: str, instance: str) -> None:
        self.instances.get((tenant, service), {}).pop(instance, None)

    async def live_instances(self, tenant: str, service: str) -> Sequence[Instance]:
        return list(self.instances.get((tenant, service), {}).values())

    async def acknowledgements(self, directive_id: UUID) -> Sequence[tuple[str, Acknowledgement]]:
        earlier = [(instance, one) for (instance, _), one in self.earlier_acks.get(directive_id, {}).items()]
        return [*earlier, *self.acks.get(directive_id, {}).items()]

    async def undelivered_outcomes(self, tenant: str, service: str, limit: int = 100) -> Sequence[Outcome]:
        return []

    # Platforms

    async def scalings(self, tenant: str, service: str) -> Sequence[Scaling]:
        return [one for one, _ in self.added.values() if (one.tenant, one.service) == (tenant, service)]

    async def put_scaling(self, scaling: Scaling, *, ttl_s: float, epoch: int) -> None:
        await self._fenced(scaling.recovery_id, epoch)
        self.added[scaling.tenant, scaling.service, scaling.replica] = scaling, _now() + ttl_s

    async def due_scalings(self, runner: str, lease_s: float) -> Sequence[Scaling]:
        return [one for one, until in self.added.values() if until <= _now()]

    async def end_scaling(self, scaling: Scaling, *, why: str, before: Json, after: Json) -> None:
        self.added.pop((scaling.tenant, scaling.service, scaling.replica), None)

    async def take_watch(self, tenant: str, service: str, runner: str, lease_s: float) -> HealthWatch | None:
        return self.watches.setdefault((tenant, service), HealthWatch(0, None, 0, None))

    async def record_watch(
        self, tenant: str, service: str, runner: str, *, failing: bool, reported: bool = False
    ) -> HealthWatch | None:
        seen = self.watches[tenant, service]
        if not failing:
            found = HealthWatch(0, None, 0, None)
        elif reported:
            found = replace(seen, reports=seen.reports + 1, reported_ago_s=0.0)
        else:
            found = replace(seen, failures=seen.failures + 1, failing_since=seen.failing_since or datetime.now(UTC))
        self.watches[tenant, service] = found
        return found


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class ScriptedDispatch:
    """Hands commands to functions that play the waiting caller and the agents, and keeps them for inspection."""

    waiter: Answerer | None = None
    agent: Answerer | None = None
    to_waiters: list[Command] = field(default_factory=list[Command])
    to_agents: list[Command] = field(default_factory=list[Command])

    async def to_waiter(self, error_id: UUID, command: Command) -> CommandResult | None:
        self.to_waiters.append(command)
        return await self.waiter(command) if self.waiter is not None else None

    async def to_agent(
        self, tenant: str, service: str, command: Command, instance: str | None = None
    ) -> CommandResult | None:
        self.to_agents.append(command)
        return await self.agent(command) if self.agent is not None else None

    async def waiter_present(self, error_id: UUID) -> bool:
        return self.waiter is not None


@dataclass
class RecordingMailer:
    """Keeps what would be sent; `broken` makes every sending fail."""

    broken: bool = False
    sent: list[tuple[tuple[str, ...], str, str]] = field(default_factory=list[tuple[tuple[str, ...], str, str]])

    html: list[str] = field(default_factory=list[str])

    async def send(self, recipients: Sequence[str], subject: str, text: str, html: str = "") -> None:
        if self.broken:
            raise Unavailable("the mail server refused")
        self.sent.append((tuple(recipients), subject, text))
        self.html.append(html)
