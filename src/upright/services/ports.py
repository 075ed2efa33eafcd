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
from upright.services.notice import Notice


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
    propensity: float | None = None
    """How likely scoring was to give it its place; None where it was not scored."""
    attributed: bool = True
    """Whether this action is the cause of what its verdict says, and not another recovery's."""
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
    withheld: str = ""
    """Why it is not attempted: recovery is stopped, or on hold."""
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


AlertKind = Literal["alert", "escalation", "approval", "relapse"]


@dataclass(frozen=True)
class AlertRecord:
    recovery_id: UUID
    kind: AlertKind
    channel: str
    recipients: tuple[str, ...]
    subject: str
    status: Literal["sent", "failed", "skipped", "held"]
    """`held`: not sent, since the same was told a short while ago."""
    detail: str = ""
    about: str = ""
    """The outcome that is told."""
    attempt: int = 1


@dataclass(frozen=True)
class Told:
    """The last message of a kind that went out about an incident."""

    about: str
    age_s: float
    held: int
    """How many have been held back since."""


@dataclass(frozen=True)
class ChannelDelivery:
    """How a channel did of late."""

    channel: str
    recipients: tuple[str, ...]
    sent: int
    failed: int
    works: bool
    """Whether the last attempt went out."""
    last_failure: datetime | None
    detail: str
    """Of the last failure."""


@dataclass(frozen=True)
class Process:
    """One process of a service, as its platform knows it."""

    pid: int
    started_at: float
    """Seconds since the epoch; with the pid it tells the process from a later one."""
    memory_bytes: int | None = None
    """Resident; None where it can't be read from here."""


@dataclass(frozen=True)
class ReplicaState:
    """What is so on one replica of a service."""

    name: str
    processes: tuple[Process, ...] = ()
    incarnation: str = ""
    """Names the life of the process manager: what was done to an earlier one is gone with it."""
    memory_available_bytes: int | None = None
    problem: str = ""
    """Why it could not be read."""


@dataclass(frozen=True)
class Scaling:
    """Processes that were added for a time."""

    tenant: str
    service: str
    replica: str
    base: int
    """How many there were before anything was added."""
    processes: int
    incarnation: str
    recovery_id: UUID


@dataclass(frozen=True)
class HealthWatch:
    """What the probe of a service's health has seen so far."""

    failures: int
    """In a row."""
    failing_since: datetime | None
    reports: int
    """Incidents that were opened for this outage."""
    reported_ago_s: float | None


class Health(Protocol):
    async def look(self) -> Evidence:
        """Ask the health address now; evidence of kind `health`. Never raises."""
        ...


class Platform(Protocol):
    """One replica of a service: processes under one manager. Each method raises PlatformFailed.

    An adapter measures; it never assumes that what it asked for has happened.
    """

    @property
    def name(self) -> str: ...

    @property
    def health(self) -> Health | None: ...

    async def state(self) -> ReplicaState:
        """The processes that are there now. Raises nothing: what can't be read is a `problem`."""
        ...

    async def scale(self, processes: int, *, timeout_s: float) -> None:
        """Returns when there are so many, and not before."""
        ...

    async def restart(self, *, graceful: bool, timeout_s: float, health_check: bool) -> None:
        """Replace every process by a new one, as many as there were. Returns when the old ones are gone, the new ones
        are there and, with `health_check`, the health address answers. What fails leaves the old ones in place where
        the platform can."""
        ...

    async def recycle(self, pids: Sequence[int], *, timeout_s: float) -> None:
        """Replace these processes, one after the other; stops at the first that does not come back."""
        ...


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

    async def last_told(self, incident_id: UUID, kind: str) -> Told | None:
        """What people heard last of an incident, by messages of that kind."""
        ...

    async def channel_deliveries(self, within_s: float) -> Sequence[ChannelDelivery]:
        """Of each channel that was used within the last seconds, those that failed last first."""
        ...

    async def lock_actuator(
        self, tenant: str, service: str, actuator: str, target: str, *, recovery_id: UUID, ttl_s: float
    ) -> bool:
        """One recovery at a time for each actuator target. False if another one holds it."""
        ...

    async def unlock_actuators(self, recovery_id: UUID) -> None: ...

    async def in_flight(self, tenant: str, service: str) -> int:
        """Unfinished recoveries of a service."""
        ...


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


class PlatformStore(Protocol):
    """What was done to platforms for a time, and what their health probes have seen."""

    async def scalings(self, tenant: str, service: str) -> Sequence[Scaling]: ...

    async def put_scaling(self, scaling: Scaling, *, ttl_s: float, epoch: int) -> None:
        """Note it before it is done, so that it is taken back whatever happens. Raises StaleEpoch."""
        ...

    async def due_scalings(self, runner: str, lease_s: float) -> Sequence[Scaling]:
        """Those whose time is over, each handed to one runner for `lease_s`."""
        ...

    async def end_scaling(self, scaling: Scaling, *, why: str, before: Json, after: Json) -> None:
        """It has been taken back."""
        ...

    async def take_watch(self, tenant: str, service: str, runner: str, lease_s: float) -> HealthWatch | None:
        """The right to probe a service's health, for `lease_s`. None while another runner has it."""
        ...

    async def record_watch(
        self, tenant: str, service: str, runner: str, *, failing: bool, reported: bool = False
    ) -> HealthWatch | None:
        """What a probe has seen. None if another runner has the watch by now."""
        ...


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
    """The service's own e-mail."""

    async def send(self, recipients: Sequence[str], subject: str, text: str, html: str = "") -> None:
        """Raises Unavailable."""
        ...


class Webhooks(Protocol):
    """Chat channels, by the address of their incoming webhook, which is a secret."""

    async def post(self, url: str, notice: Notice) -> None:
        """Raises ChannelRefused, Unavailable; neither tells the address."""
        ...


class Launcher(Protocol):
    """The runner, as the intake sees it."""

    def submit(self, recovery: RecoveryRecord) -> None:
        """Start the recovery's flow run as soon as there is room; never blocks."""
        ...
