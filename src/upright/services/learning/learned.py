"""Learned: all that one tenant's outcomes have taught, as scoring uses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from upright.services.learning.beta import Beta
from upright.services.learning.context import Context
from upright.services.learning.costs import Costs
from upright.services.learning.episode import Episode
from upright.services.learning.estimate import Estimate, Prior
from upright.services.learning.policy import EPSILON, ESCALATION_S, Decision, decide


class Predictor(Protocol):
    """A trained challenger."""

    def predict(self, context: Context, strategies: Sequence[str]) -> Mapping[str, float]:
        """Success rates. A strategy that it has not learned is left out."""
        ...


@dataclass(frozen=True)
class Learned:
    beta: Beta
    costs: Costs
    challenger: Predictor | None = None
    source: str = "beta"
    """What scores: priors, beta, or the challenger's version."""
    epsilon: float = EPSILON
    escalation_s: float = ESCALATION_S

    @classmethod
    def nothing(cls, priors: Mapping[str, Prior]) -> Learned:
        """The priors alone."""
        return cls(Beta(priors), Costs(priors), source="priors", epsilon=0.0)

    def learn(self, episode: Episode) -> None:
        """In place: for one who owns it."""
        for attempt in episode.attempts:
            if attempt.strategy in self.beta.priors:
                self.beta.add(episode.context, attempt, episode.at)
                self.costs.add(attempt)

    def after(self, episodes: Iterable[Episode]) -> Learned:
        """A copy that has seen more."""
        grown = replace(self, beta=self.beta.copy(), costs=self.costs.copy())
        for episode in episodes:
            grown.learn(episode)
        return grown

    def estimate(self, context: Context, strategy: str) -> Estimate:
        rate = self.beta.rate(context, strategy)
        cost_s = self.costs.cost_s(strategy)
        return Estimate(strategy, rate.mean, cost_s, rate.evidence, rate.weight, rate.trials, rate.last)

    def decide(
        self, context: Context, strategies: Sequence[str], *, draw: float = 1.0, now: float | None = None
    ) -> Decision:
        """`strategies`: those that apply, in the runbook's order."""
        challenger = self.challenger.predict(context, strategies) if self.challenger is not None else None
        decision = decide(
            context,
            [self.estimate(context, one) for one in strategies],
            challenger=challenger,
            epsilon=self.epsilon,
            draw=draw,
            escalation_s=self.escalation_s,
            now=now,
        )
        if not challenger:
            return decision
        order = [_told(one, challenger, self.source) for one in decision.order]
        return replace(decision, order=tuple(order))


def _told(one: Estimate, challenger: Mapping[str, float], source: str) -> Estimate:
    if one.strategy not in challenger:
        return one
    says = f"{source} says {challenger[one.strategy]:.0%}"
    return replace(one, evidence=f"{one.evidence}; {says}" if one.evidence else says)
