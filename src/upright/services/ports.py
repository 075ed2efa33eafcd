"""What the services need of the outside; the adapters implement it, bootstrap wires it.

Ids: error → event (one delivery of it) → incident (one fingerprint) → recovery (one run) → action → directive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from upright.domain.check import HttpCheck, SqlCheck, TcpCheck
from upright.domain.directive import Acknowledgement, Command, CommandResult, Directive, Outcome, SyncRequest
from upright.domain.event import Event
from upright.domain.message import Json
from upright.domain.severity import Severity
from upright.domain.verdict import Checked, Evidence, Status, Verdict


@dataclass(frozen=True)
class ActionRecord:
    """One strategy that a recovery considered, as the store keeps it."""

    recovery_id: UUID
    position: int
    strategy: str
    verdict: Verdict
    reason: str = ""
    values: Json = field(default_factory=dict[str, object])
    before: Json = field(default_factory=dict[str, object])
    after: Json = field(default_factory=dict[str, object])
    evidence: Evidence | None = None
    score: float | None = None
    cost_s: float | None = None
    duration_ms: float = 0.0
    directive_version: int | None = None
    checks: tuple[Checked, ...] = ()
    """What the runbook's own checks have seen."""


@dataclass(frozen=True)
class RecoveryRecord:
    """One run of a runbook for one error."""

    id: UUID
    tenant: str
    incident_id: UUID
    error_id: UUID
    """The error that opened it."""
    fingerprint: str
    service: str
    runbook: str
    severity: Severity
    status: Status
    epoch: int
    """Fencing: every write of a runner names the epoch it was given, and an old one is refused (StaleEpoch)."""
    flow_run_id: UUID | None
    flow_run_attempt: int
    created_at: datetime
    finished_at: datetime | None
    message: str = ""
    actions: tuple[ActionRecord, ...] = ()
    waited: bool = False
    """Whether a caller waited when it was opened."""
    relapse_of: UUID | None = None
    """The recovery whose error came back."""
    relapse: str = ""
    """Of a recovery that relapsed: what happened."""


@dataclass(frozen=True)
class Acceptance:
    """What became of a delivered event, once it is durable."""

    error_id: UUID
    severity: Severity
    recovery: RecoveryRecord | None
    role: Literal["opened", "joined_running", "joined_closed", "duplicate"]


@dataclass(frozen=True)
class Instance:
    """A live process of a service, by its last sync."""

    id: str
    service: str
    desired_version: int
    measurements: Json
    capabilities: Json
    settings: Json
    seen_at: datetime


@dataclass(frozen=True)
class AlertRecord:
    recovery_id: UUID
    kind: Literal["alert", "escalation", "relapse"]
    channel: str
    recipients: tuple[str, ...]
    subject: str
    status: Literal["sent", "failed", "skipped"]
    detail: str = ""


class ErrorStore(Protocol):
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
        """Store event, error and incident, and open or join a recovery: one transaction, durable on return.

        A delivery id seen before changes nothing (`duplicate`, with the error's present recovery). An in-flight
        recovery of the fingerprint is joined. A finished one is joined when it recovered and the operation began
        before it finished, or when it did not recover and its cooldown has not passed. `rerun` opens a new one
        unless one is in flight. One that had recovered no more than `relapse_window_s` ago, and opens a new one
        otherwise, has relapsed.
        """
        ...

    async def event_of(self, error_id: UUID, tenant: str | None = None) -> Event:
        """The latest event of an error. Raises NotFound."""
        ...

    async def recovery_of_error(self, error_id: UUID) -> RecoveryRecord | None:
        """The latest recovery that answers this error, with its actions."""
        ...

    async def recovery(self, recovery_id: UUID) -> RecoveryRecord:
        """Raises NotFound."""
        ...

    async def record_own_result(self, error_id: UUID, success: bool) -> None:
        """What a caller (a joiner too) found out about its own operation."""
        ...

    async def recurrences(
        self, incident_id: UUID, within_s: float, *, version: int = 0, instances: Sequence[str] | None = None
    ) -> int:
        """How many errors of an incident began within the last seconds, in processes that had applied that version of
        the desired state and are among `instances` (None: any)."""
        ...

    async def errors(self, *, limit: int = 50, service: str | None = None, status: str | None = None) -> Sequence[Json]:
        """For listings, newest first: error_id, service, type, severity, message, occurred_at, status, strategy,
        flow_run_id."""
        ...


class RecoveryStore(Protocol):
    async def begin_run(
        self, error_id: UUID, *, flow_run_id: UUID, attempt: int, runner: str, lease_s: float, runbook: str
    ) -> RecoveryRecord:
        """The recovery that this flow run carries out: the one bound to it if that is unfinished, else a new one of
        the same error (a re-run from the Prefect UI). Takes the lease. Raises NotFound."""
        ...

    async def bind(self, recovery_id: UUID, *, flow_run_id: UUID, runner: str, lease_s: float) -> RecoveryRecord:
        """Tie a queued recovery to its flow run, set it RUNNING and take the lease."""
        ...

    async def queued(self, limit: int) -> Sequence[RecoveryRecord]:
        """Recoveries waiting for admission, most severe first, then oldest."""
        ...

    async def renew(self, runner: str, recovery_ids: Sequence[UUID], lease_s: float) -> None: ...

    async def take_expired(self, runner: str, lease_s: float, limit: int) -> Sequence[RecoveryRecord]:
        """Recoveries whose runner's lease ran out, now leased to `runner` with a new epoch: unfinished ones, and those
        that were concluded but not closed."""
        ...

    async def record_action(self, action: ActionRecord, *, epoch: int) -> None:
        """Upsert by (recovery, position). Raises StaleEpoch."""
        ...

    async def conclude(
        self, recovery_id: UUID, *, epoch: int, status: Status, message: str, explanation: Json
    ) -> RecoveryRecord:
        """Final status; wakes everyone who waits for it. The lease goes on until it is closed. Raises StaleEpoch."""
        ...

    async def relapses(self, incident_id: UUID, within_s: float) -> Mapping[str, int]:
        """How often each strategy recovered an incident within the last seconds, to no lasting effect."""
        ...

    async def close(self, recovery_id: UUID, *, epoch: int) -> None:
        """Its run has ended, people have been told: give the lease up."""
        ...

    async def record_alert(self, alert: AlertRecord) -> None: ...

    async def alerts(self, recovery_id: UUID) -> Sequence[AlertRecord]: ...

    async def lock_actuator(
        self, tenant: str, service: str, actuator: str, target: str, *, recovery_id: UUID, ttl_s: float
    ) -> bool:
        """One recovery at a time for each actuator target. False if another one holds it."""
        ...

    async def unlock_actuators(self, recovery_id: UUID) -> None: ...


class FleetStore(Protocol):
    """Instances and their desired state."""

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
        """Replace the desired state of a target; grows the service's version and wakes its agents. A `once` directive
        gets a version but is no part of the desired state. With `instances` it is for those processes only, and the
        others keep what it replaces. Raises StaleEpoch."""
        ...

    async def widen_directive(self, directive_id: UUID) -> int | None:
        """From now on it is for every process, under a new version; None where it is in force no longer."""
        ...

    async def standing(self, recovery_id: UUID) -> Sequence[Directive]:
        """The directives of a recovery that are in force, in the order in which they were put."""
        ...

    async def put_by(self, directive_id: UUID) -> UUID | None:
        """The recovery that put it in force."""
        ...

    async def withdraw_directive(self, directive_id: UUID) -> None:
        """Take it out of the desired state, so that every process reverts it."""
        ...

    async def desired(self, tenant: str, service: str, instance: str | None = None) -> tuple[int, list[Directive]]:
        """All directives in force; with `instance`, what that process is to hold."""
        ...

    async def sync(self, tenant: str, request: SyncRequest) -> None:
        """Record what an agent reports: instance, acknowledgements, command results, received outcomes."""
        ...

    async def forget_instance(self, tenant: str, service: str, instance: str) -> None: ...

    async def live_instances(self, tenant: str, service: str) -> Sequence[Instance]: ...

    async def acknowledgements(self, directive_id: UUID) -> Sequence[tuple[str, Acknowledgement]]:
        """By instance."""
        ...

    async def undelivered_outcomes(self, tenant: str, service: str, limit: int = 100) -> Sequence[Outcome]: ...


class Dispatch(Protocol):
    """Commands to the application's processes, and their results, across replicas of the service."""

    async def to_waiter(self, error_id: UUID, command: Command) -> CommandResult | None:
        """Hand the command to the caller that waits for this error. None if nobody waits (any more) or the deadline
        passes."""
        ...

    async def to_agent(
        self, tenant: str, service: str, command: Command, instance: str | None = None
    ) -> CommandResult | None:
        """Hand it to a live agent of the service (`instance`, or any that announces the command's kind)."""
        ...

    async def waiter_present(self, error_id: UUID) -> bool: ...


class Prober(Protocol):
    """Checks that the service makes itself."""

    async def probe(self, check: HttpCheck | SqlCheck | TcpCheck) -> Evidence:
        """Never raises: what can't be found out is inconclusive."""
        ...


class Mailer(Protocol):
    async def send(self, recipients: Sequence[str], subject: str, text: str) -> None:
        """Raises Unavailable."""
        ...


class Launcher(Protocol):
    """The runner, as the intake sees it."""

    def submit(self, recovery: RecoveryRecord) -> None:
        """Start the recovery's flow run as soon as there is room; never blocks."""
        ...
