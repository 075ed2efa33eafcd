"""Directives and commands: what the service asks of the application's processes."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from upright.domain.event import RequestDetail
from upright.domain.message import Envelope, Json, Message
from upright.domain.verdict import Evidence


class Directive(Message):
    """Desired state of one actuator target. Values are absolute, never increments."""

    id: UUID
    service: str
    strategy: str
    target: str
    """What it acts on: a database or cache alias."""
    version: Annotated[int, Field(ge=1)]
    """Grows with every change of the service's desired state."""
    values: Json
    ttl_s: Annotated[float, Field(ge=0)]
    """Seconds that are left, counted by the receiver on its own monotonic clock."""
    scope: Literal["process", "once"] = "process"
    """`process`: every process of the service applies and holds it until it expires. `once`: the one process that
    receives it in a command carries it out, for all."""
    instances: list[str] | None = None
    """The processes that it is for; None: all. Others are not sent it."""


class Acknowledgement(Message):
    directive_id: UUID
    version: int
    status: Literal["applied", "refused", "unsupported", "failed", "reverted"]
    reason: str = ""
    before: Json = Field(default_factory=dict)
    after: Json = Field(default_factory=dict)
    """Measured, not assumed."""
    duration_ms: float = 0.0


class RetryPolicy(Message):
    max_retries: Annotated[int, Field(ge=1, le=10)] = 3
    retry_delay_ms: Annotated[int, Field(ge=0, le=60_000)] = 1000
    exponential_backoff: bool = True
    retry_after_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    """What the peer asked for: the first repetition does not come before."""


class Email(Message):
    recipients: list[str]
    subject: str
    text: str
    html: str = ""
    """The same for readers that show it; without it, text alone is sent."""


class Command(Message):
    """One piece of work for one process, done once."""

    id: UUID
    kind: Literal["apply", "replay", "retry", "probe", "send_email", "check", "traffic"]
    """`apply` carries `directives` and, with `verify`, ends with a replay (else a probe) as evidence. `replay` repeats
    the failed operation once; `retry` up to `retry.max_retries` times. `check` carries `check` out. `traffic` counts
    requests of `check`'s route, from the first such command of its `watch` on."""
    deadline_ms: Annotated[int, Field(ge=0)]
    """Time that the receiver has, counted from receipt; past it, it answers `too_late` rather than begin."""
    directives: list[Directive] = Field(default_factory=list[Directive])
    verify: bool = True
    retry: RetryPolicy | None = None
    request: RequestDetail | None = None
    """For an agent, which has no request of its own: what to replay, anonymously."""
    error_types: list[str] = Field(default_factory=list[str])
    """Class names of the error, so that a probe or anonymous replay can tell the same failure from another."""
    email: Email | None = None
    check: Json | None = None
    """Of `check`: a check of kind `sql` or `check`, as a runbook has it. Of `traffic`: `watch`, `method`, `route`,
    `keep_s`."""


class CommandResult(Message):
    command_id: UUID
    status: Literal["done", "refused", "failed", "unsupported", "too_late"]
    reason: str = ""
    acknowledgements: list[Acknowledgement] = Field(default_factory=list[Acknowledgement])
    evidence: Evidence | None = None
    counts: dict[str, int] = Field(default_factory=dict[str, int])
    """Of `traffic`: `succeeded`, `failed` (as the error did), `failed_otherwise`."""
    duration_ms: float = 0.0


class Results(Envelope):
    """Body of POST /v1/errors/{error_id}/results: what the waiting caller did."""

    instance: str = ""
    remaining_ms: Annotated[int, Field(ge=0)] = 0
    results: list[CommandResult] = Field(default_factory=list[CommandResult])


class AlertSettings(Message):
    """Django's own settings that alerting and scaling need; announced by its agents, no secrets."""

    alert_recipients: list[str] = Field(default_factory=list[str])
    escalation_recipients: list[str] = Field(default_factory=list[str])
    alerts_by_severity: dict[str, list[str]] | None = None
    auto_scale_on_error: bool = False
    max_scale_factor: float = 1.0


class SyncRequest(Envelope):
    """Body of POST /v1/sync: an agent says what is so, and waits for news."""

    service: str
    environment: str = "production"
    instance: str
    """host:pid:boot; unique for each process."""
    hold_ms: Annotated[int, Field(ge=0, le=60_000)] = 20_000
    desired_version: Annotated[int, Field(ge=0)] = 0
    """The version that this process has dealt with; the answer is held while nothing is newer."""
    acknowledgements: list[Acknowledgement] = Field(default_factory=list[Acknowledgement])
    results: list[CommandResult] = Field(default_factory=list[CommandResult])
    outcomes_received: list[UUID] = Field(default_factory=list[UUID])
    """Recoveries whose outcome this process has written to ErrorLog."""
    measurements: Json = Field(default_factory=dict)
    capabilities: Json = Field(default_factory=dict)
    """{"strategies": {name: {"targets": [...], "limits": {parameter: [low, high]}}}, "commands": [...]}"""
    settings: AlertSettings = AlertSettings()


class Outcome(Message):
    """The end of a recovery that its caller did not wait for."""

    recovery_id: UUID
    error_id: UUID
    report: Json
    """A RecoveryReport."""
    strategy: str | None = None


class SyncAnswer(Envelope):
    version: int
    desired: list[Directive]
    """All of the desired state: what is absent is to be reverted."""
    commands: list[Command] = Field(default_factory=list[Command])
    outcomes: list[Outcome] = Field(default_factory=list[Outcome])
