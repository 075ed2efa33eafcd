"""Guardrails as people write them: `runbooks/guardrails.yaml`, and what a runbook or a step narrows."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

StrategyName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Trust(StrEnum):
    """How far a runbook or a strategy is trusted. Of several, the lowest counts."""

    SHADOW = "shadow"
    """Decide and record, touch nothing."""
    APPROVE = "approve"
    """Ask a person first."""
    AUTO = "auto"

    @property
    def rank(self) -> int:
        return list(Trust).index(self)


def lowest(*levels: Trust | None) -> Trust:
    """Those that say nothing don't count."""
    return min((one for one in levels if one is not None), key=lambda one: one.rank, default=Trust.AUTO)


class Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(Written):
    """Of the actions in one scope. Without a value there is no limit."""

    cooldown_s: Annotated[float | None, Field(ge=0, le=86_400)] = None
    """From the beginning of an action to that of the next."""
    actions_per_hour: Annotated[int | None, Field(ge=0, le=100_000)] = None
    concurrent: Annotated[int | None, Field(ge=0, le=1000)] = None
    """Recoveries that act at the same time."""

    def narrowed(self, by: Limits | None) -> Limits:
        """The stricter one of each."""
        if by is None:
            return self
        return Limits(
            cooldown_s=_larger(self.cooldown_s, by.cooldown_s),
            actions_per_hour=_smaller(self.actions_per_hour, by.actions_per_hour),
            concurrent=_smaller(self.concurrent, by.concurrent),
        )


class StrategyGuardrail(Limits):
    trust: Trust = Trust.AUTO


class RepeatedFailures(Written):
    """An error whose recoveries keep failing is left to people."""

    failures: Annotated[int, Field(ge=1, le=100)] = 3
    """In a row, of one fingerprint."""
    hold_s: Annotated[float, Field(ge=1, le=604_800)] = 3600


class FailingService(Written):
    """A service for which most recoveries fail is left to people."""

    window: Annotated[int, Field(ge=1, le=100)] = 10
    """How many of its last recoveries are looked at."""
    at_least: Annotated[int, Field(ge=1, le=100)] = 6
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """It is held where more than this share of them failed, the last one included."""
    hold_s: Annotated[float, Field(ge=1, le=604_800)] = 3600


class TrustRules(Written):
    window: Annotated[int, Field(ge=1, le=1000)] = 20
    """How many of the last verified outcomes count."""
    promote_from: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Automatic action is proposed where success is surely above this share."""
    demote_below: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Approval is asked from now on where success is surely below this share."""
    approval_s: Annotated[float, Field(ge=1, le=604_800)] = 3600
    """How long a run waits for a person."""


class Guardrails(Written):
    everything: Limits = Limits(actions_per_hour=600, concurrent=20)
    service: Limits = Limits(actions_per_hour=240, concurrent=8)
    """Each of them."""
    runbook: Limits = Limits(actions_per_hour=120)
    """Each of them, in one service."""
    strategies: dict[StrategyName, StrategyGuardrail] = Field(
        default_factory=lambda: {
            "retry": StrategyGuardrail(actions_per_hour=120),
            "timeout_increase": StrategyGuardrail(actions_per_hour=60),
            "cache_clear": StrategyGuardrail(actions_per_hour=60),
            "pool_increase": StrategyGuardrail(actions_per_hour=60),
            "resource_scale": StrategyGuardrail(cooldown_s=60, actions_per_hour=6, concurrent=1),
            "circuit_break": StrategyGuardrail(actions_per_hour=60),
            "fallback": StrategyGuardrail(actions_per_hour=60),
            "queue_priority": StrategyGuardrail(actions_per_hour=30),
            "request_throttle": StrategyGuardrail(actions_per_hour=30),
            "service_restart": StrategyGuardrail(cooldown_s=300, actions_per_hour=4, concurrent=1),
        }
    )
    """Each of them, in one service."""
    repeated_failures: RepeatedFailures = RepeatedFailures()
    failing_service: FailingService = FailingService()
    trust: TrustRules = TrustRules()

    def strategy(self, name: str) -> StrategyGuardrail:
        return self.strategies.get(name, StrategyGuardrail())


def _larger(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((value for value in (one, other) if value is not None), default=None)
