"""Scoring: in which order a runbook's strategies are tried, and why.

For independent attempts one after another, descending success rate per cost has the least expected time to recovery
(models/README.md). Rates and costs are priors until something has been learned (services/learning).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from upright.domain.event import Event
from upright.domain.message import Json
from upright.domain.runbook import Runbook, Step
from upright.domain.severity import Severity
from upright.services.learning.context import Context, context_of
from upright.services.learning.estimate import Estimate, Prior
from upright.services.learning.learned import Learned
from upright.services.learning.policy import Decision, as_written
from upright.services.strategies import STRATEGIES, Fleet, Strategy

__all__ = ["Choice", "Prior", "Ranking", "arranged", "built_in_priors", "rank", "reason"]


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
    evidence: str = ""
    """What the rate rests on; empty where it is a prior."""
    propensity: float = 1.0
    """How likely it was to get its place."""

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
    learning: Json = field(default_factory=dict[str, object])
    """What a later training needs of this decision."""

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
            **({"learning": self.learning} if self.learning else {}),
            "order": self.order,
            "tried": [described(one) for one in self.tried],
            "skipped": [described(one) for one in self.skipped],
        }


def reason(choice: Choice) -> str:
    how = f"{choice.success_rate:.0%} expected at {choice.cost_s:.3g} s: {choice.score:.3f} a second"
    return f"{how} ({choice.evidence})" if choice.evidence else how


def rank(
    runbook: Runbook,
    event: Event,
    fleet: Fleet,
    priors: Mapping[str, Prior],
    learned: Learned | None = None,
    context: Context | None = None,
    *,
    strategies: Mapping[str, Strategy] = STRATEGIES,
    draw: float = 1.0,
) -> Ranking:
    """Weigh every step. Preconditions come first: what can't help is not ordered, however well it would score.

    `draw`: uniform in [0, 1); a low one explores, where that is allowed."""
    learned = learned or Learned.nothing(priors)
    context = context or context_of(event, event.error.severity or Severity.LOW)
    choices: dict[str, Choice] = {}
    for step in runbook.steps:
        strategy, prior = strategies[step.strategy], priors[step.strategy]
        parameters = strategy.parameters.model_validate(step.parameters)
        unmet = strategy.precondition(event, fleet, parameters)
        choices[step.strategy] = Choice(step, parameters, prior.success_rate, prior.cost_s, unmet)
    candidates = [name for name, choice in choices.items() if choice.unmet is None]
    decision = learned.decide(context, candidates, draw=draw)
    if runbook.order == "fixed":
        decision = as_written(decision, candidates)
    tried = [_weighed(choices[one.strategy], one, decision) for one in decision.order]
    stopped = {
        one.strategy: replace(_weighed(choices[one.strategy], one, decision), unmet=why)
        for one, why in decision.stopped
    }
    skipped = [
        stopped.get(name, choice) for name, choice in choices.items() if choice.unmet is not None or name in stopped
    ]
    learning: Json = {
        "context": context.as_json(),
        "candidates": candidates,
        "propensity": decision.propensity,
        "explored": decision.explored,
        "predicted": {one.strategy: round(one.success_rate, 4) for one in decision.order},
        "source": learned.source,
    }
    return Ranking(tried, skipped, runbook.order, learning)


def arranged(ranking: Ranking, arrange: Callable[[Ranking], Ranking]) -> Ranking:
    """Rearranged for reasons that scoring does not know of, with the probability of what has come of it: where the
    first two would have ended up in this order either way, chance has decided nothing."""
    found = arrange(ranking)
    order = _names(found)
    possible = [_names(ranking)]
    if ranking.learning.get("propensity", 1.0) != 1.0:
        first, second, *rest = ranking.tried
        swapped = replace(ranking, tried=[second, first, *rest])
        possible.append(_names(swapped))
        if _names(arrange(swapped)) == order:
            found = replace(
                found,
                tried=[replace(one, propensity=1.0) for one in found.tried],
                skipped=[replace(one, propensity=1.0) for one in found.skipped],
                learning={**found.learning, "propensity": 1.0, "explored": False},
            )
    return found if order in possible else replace(found, learning={**found.learning, "arranged": True})


def _names(ranking: Ranking) -> list[str]:
    return [one.strategy for one in ranking.tried]


def _weighed(choice: Choice, estimate: Estimate, decision: Decision) -> Choice:
    return replace(
        choice,
        success_rate=estimate.success_rate,
        cost_s=estimate.cost_s,
        evidence=estimate.evidence,
        propensity=decision.propensities.get(estimate.strategy, 1.0),
    )
