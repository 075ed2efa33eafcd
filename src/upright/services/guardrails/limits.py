"""Limits: whether one more action has a place, over what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upright.domain.guardrails import Guardrails, Limits
from upright.domain.runbook import Runbook, Step

HOUR_S = 3600


@dataclass(frozen=True)
class Scope:
    """What is counted together. None stands for all."""

    what: str
    """As people read it: `pool_increase actions in shop`."""
    limits: Limits
    service: str | None = None
    runbook: str | None = None
    strategy: str | None = None


@dataclass(frozen=True)
class Count:
    """What a scope has seen, another recovery's and this one's earlier actions alike."""

    last_hour: int = 0
    under_way: int = 0
    since_last_s: float | None = None
    """None: there has been none."""


def scopes(guardrails: Guardrails, runbook: Runbook, step: Step, service: str) -> list[Scope]:
    """The narrowest first: its refusal says the most."""
    strategy = guardrails.strategy(step.strategy)
    own = [] if step.limits is None else [(step.limits, runbook.name, f"{step.strategy} actions of {runbook.name}")]
    return [
        *(Scope(f"{what} in {service}", limits, service, name, step.strategy) for limits, name, what in own),
        Scope(f"{step.strategy} actions in {service}", strategy, service, strategy=step.strategy),
        Scope(
            f"actions of runbook {runbook.name} in {service}",
            guardrails.runbook.narrowed(runbook.limits),
            service,
            runbook.name,
        ),
        Scope(f"actions in {service}", guardrails.service, service),
        Scope("actions in all services", guardrails.everything),
    ]


def refusal(counted: Sequence[tuple[Scope, Count]]) -> str | None:
    """Why one more action is not allowed, or None."""
    for scope, count in counted:
        limits = scope.limits
        if limits.actions_per_hour is not None and count.last_hour >= limits.actions_per_hour:
            return f"{count.last_hour} of {limits.actions_per_hour} {scope.what} this hour"
        if limits.concurrent is not None and count.under_way >= limits.concurrent:
            return f"{count.under_way} of {limits.concurrent} {scope.what} at the same time"
        if limits.cooldown_s and count.since_last_s is not None and count.since_last_s < limits.cooldown_s:
            return f"the last of the {scope.what} was {count.since_last_s:.0f} s ago; {limits.cooldown_s:g} s must pass"
    return None
