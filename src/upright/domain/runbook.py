"""A runbook: which errors it answers, which strategies it tries, how it verifies, whom it alerts."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from upright.domain.check import Check
from upright.domain.guardrails import Limits, Trust
from upright.domain.message import Json
from upright.domain.severity import Severity
from upright.domain.verdict import Status

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,62}$")]


_SHARE = r"^(100|[1-9][0-9]?)%$"


class Edited(BaseModel):
    """Base of what people write by hand: an unknown key is a mistake, and is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(Edited):
    strategy: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    parameters: Json = Field(default_factory=dict)
    """Checked against the strategy's own parameters when the runbook is loaded."""
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    """How often Prefect repeats the task when Upright fails to act; a verdict is never repeated."""
    retry_delay_s: Annotated[float, Field(ge=0, le=60)] = 0.2
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10
    ttl_s: Annotated[float, Field(ge=1, le=86_400)] = 900
    """How long a temporary change holds before it is reverted."""
    trust: Trust | None = None
    """Lowers what guardrails.yaml says of the strategy, in this runbook."""
    limits: Limits | None = None
    """Narrows those of the strategy, in this runbook."""
    keep: bool = False
    """Its change stays in force until it expires, though nothing has shown that it helps."""


LONGEST_S = 590.0
"""What the task that verifies has."""
SETTLING_S = 5.0
"""Kept beside a quiet window for every process to hold the change, and to tell what it counted."""


class Verification(Edited):
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10
    anonymous_replay: bool = True
    """Where nobody waits, a process of the service may request the failed GET itself, without user or session."""
    probe: bool = True
    checks: Annotated[list[Check], Field(max_length=20)] = Field(default=[])
    """All of them are to pass, in this order; none: a replay, else a probe."""

    @property
    def replays(self) -> bool:
        """Whether the failed operation itself is done again where nobody waits."""
        return not self.checks or any(one.kind == "replay" for one in self.checks)

    @property
    def longest_s(self) -> float:
        """How long all of it may take."""
        return self.timeout_s + sum(
            one.window_s + SETTLING_S if one.kind == "quiet" else 0 if one.kind == "replay" else one.timeout_s
            for one in self.checks
        )


class AlertRules(Edited):
    on: list[Literal[Status.RECOVERED, Status.NOT_RECOVERED, Status.UNKNOWN]] = Field(
        default=[Status.RECOVERED, Status.NOT_RECOVERED, Status.UNKNOWN]
    )
    escalate_on: list[Literal[Status.RECOVERED, Status.NOT_RECOVERED, Status.UNKNOWN]] = Field(
        default=[Status.NOT_RECOVERED, Status.UNKNOWN]
    )
    escalate_from: Severity = Severity.HIGH
    """The least severity that is escalated."""
    repeat_s: Annotated[float, Field(ge=0, le=604_800)] = 3600
    """For so long after a message, the same outcome of the same error is counted rather than told again. 0: never."""


class Runbook(Edited):
    name: Slug
    description: str = ""
    matches: list[str] = Field(default_factory=list[str])
    """Class names, plain or qualified; the guide's own type first, then its aliases."""
    order: Literal["scored", "fixed"] = "scored"
    steps: Annotated[list[Step], Field(min_length=1, max_length=20)]
    verification: Verification = Verification()
    alert: AlertRules = AlertRules()
    cooldown_s: Annotated[float, Field(ge=0, le=86_400)] = 60
    """After a recovery that did not succeed, errors of the same fingerprint join it for this long."""
    trust: Trust = Trust.AUTO
    limits: Limits | None = None
    """Narrows those that guardrails.yaml sets for each runbook."""
    relapse_window_s: Annotated[float, Field(ge=0, le=86_400)] = 600
    """An error of the same fingerprint that begins within so long after a recovery is a relapse of it. 0: never."""
    rollback: Literal["each", "reverse"] = "each"
    """`each`: what a step changed is taken back as soon as it is seen not to help. `reverse`: it stays in force while
    later steps are tried, and all is undone in reverse order if none recovers."""
    blast_radius: Annotated[int, Field(ge=1, le=10_000)] | Annotated[str, Field(pattern=_SHARE)] = 1
    """How many of the service's processes, or which share of them, a change touches before it is verified."""

    @field_validator("blast_radius", mode="before")
    @classmethod
    def _number_or_share(cls, value: object) -> object:
        if isinstance(value, str) and re.match(_SHARE, value):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        raise ValueError("Input should be a number of processes, or a share of them such as 25%")

    @field_validator("matches")
    @classmethod
    def _no_repeats(cls, value: list[str]) -> list[str]:
        repeated = sorted({name for name in value if value.count(name) > 1})
        if repeated:
            raise ValueError(f"listed more than once: {', '.join(repeated)}")
        return value

    @model_validator(mode="after")
    def _each_strategy_once(self) -> Runbook:
        used = [step.strategy for step in self.steps]
        repeated = sorted({name for name in used if used.count(name) > 1})
        if repeated:
            raise ValueError(f"each strategy stands once in a runbook; repeated: {', '.join(repeated)}")
        return self

    @model_validator(mode="after")
    def _verified_while_it_holds(self) -> Runbook:
        shortest = min(step.ttl_s for step in self.steps)
        if self.verification.longest_s > LONGEST_S:
            raise ValueError(f"verification may take {self.verification.longest_s:g} s, and {LONGEST_S:g} are allowed")
        for check in self.verification.checks:
            if check.kind == "quiet" and check.window_s >= shortest:
                raise ValueError(f"a quiet window of {check.window_s:g} s needs a longer ttl_s than {shortest:g} s")
        return self


class CustomStrategy(Edited):
    """A strategy that the application itself carries out."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
    description: str = ""
    success_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Where scoring starts."""
    cost_s: Annotated[float, Field(gt=0, le=86_400)] = 5
    """Seconds that trying it takes, for scoring."""


class CustomStrategies(Edited):
    custom_strategies: list[CustomStrategy] = Field(default_factory=list[CustomStrategy])


class SeverityClass(Edited):
    """One row of the severity tables."""

    http_status: Annotated[int, Field(ge=400, le=599)]
    types: list[str] = Field(default_factory=list[str])
    """Empty for the class that takes all others."""
    fallback: Runbook
    """What is done for an error of this severity that no runbook matches."""


class SeverityTable(Edited):
    critical: SeverityClass
    high: SeverityClass
    medium: SeverityClass
    low: SeverityClass

    def row(self, severity: Severity) -> SeverityClass:
        rows = {
            Severity.CRITICAL: self.critical,
            Severity.HIGH: self.high,
            Severity.MEDIUM: self.medium,
            Severity.LOW: self.low,
        }
        return rows[severity]
