"""Scoring: in which order a runbook's strategies are tried, and why.

For independent attempts one after another, descending success rate per cost has the least expected time to recovery
(models/README.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from upright.domain.event import Event
from upright.domain.message import Json
from upright.domain.runbook import Runbook, Step
from upright.services.strategies import STRATEGIES, Fleet, Strategy


@dataclass(frozen=True)
class Prior:
    success_rate: float
    """0 to 1."""
    cost_s: float


def built_in_priors() -> dict[str, Prior]:
    return {name: Prior(strategy.success_rate, strategy.cost_s) for name, strategy in STRATEGIES.items()}


@dataclass(frozen=True)
class Choice:
    """One step of the runbook, weighed."""

    step: Step
    parameters: BaseModel
    success_rate: float
    cost_s: float
    unmet: str | None
    """Why it is not tried, or None."""

    @property
    def strategy(self) -> str:
        return self.step.strategy

    @property
    def score(self) -> float:
        """Expected successes per second of trying."""
        return self.success_rate / self.cost_s


@dataclass(frozen=True)
class Ranking:
    tried: Sequence[Choice]
    """In the order in which they are tried, until one recovers."""
    skipped: Sequence[Choice]
    order: str
    """`scored` or `fixed`, as the runbook says."""

    def explanation(self) -> Json:
        def described(choice: Choice) -> Json:
            return {
                "strategy": choice.strategy,
                "success_rate": choice.success_rate,
                "cost_s": choice.cost_s,
                "score": round(choice.score, 4),
                "reason": choice.unmet or reason(choice),
            }

        return {
            "order": self.order,
            "tried": [described(one) for one in self.tried],
            "skipped": [described(one) for one in self.skipped],
        }


def reason(choice: Choice) -> str:
    return f"{choice.success_rate:.0%} expected at {choice.cost_s:g} s: {choice.score:.3f} a second"


def rank(
    runbook: Runbook,
    event: Event,
    fleet: Fleet,
    priors: Mapping[str, Prior],
    strategies: Mapping[str, Strategy] = STRATEGIES,
) -> Ranking:
    """Weigh every step. Preconditions come first: what can't help is not ordered, however well it would score."""
    choices: list[Choice] = []
    for step in runbook.steps:
        strategy, prior = strategies[step.strategy], priors[step.strategy]
        parameters = strategy.parameters.model_validate(step.parameters)
        unmet = strategy.precondition(event, fleet, parameters)
        choices.append(Choice(step, parameters, prior.success_rate, prior.cost_s, unmet))
    tried = [choice for choice in choices if choice.unmet is None]
    if runbook.order == "scored":
        tried.sort(key=lambda choice: choice.score, reverse=True)
    return Ranking(tried, [choice for choice in choices if choice.unmet is not None], runbook.order)
