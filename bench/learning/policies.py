"""Policies that meet the same incidents: the product's own, and its peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bench.learning.worlds import ESCALATION_S, PRIORS, Incident, World, expected_s, oracle
from upright.services.learning import Attempt, Beta, Costs, Decision, Episode, Learned
from upright.services.learning.challenger import TooFewExamples
from upright.services.learning.drift import watch
from upright.services.learning.gate import evaluate, fit_challenger
from upright.services.learning.learned import Predictor


class Policy(Protocol):
    name: str

    def choose(self, incident: Incident) -> Decision | tuple[str, ...]: ...

    def learn(self, episode: Episode) -> None: ...


@dataclass
class Fixed:
    """As the guide's table has it."""

    name: str = "fixed order"

    def choose(self, incident: Incident) -> tuple[str, ...]:
        return incident.candidates

    def learn(self, episode: Episode) -> None:
        pass


@dataclass
class PriorPerCost:
    name: str = "prior p/cost"
    _learned: Learned = field(default_factory=lambda: Learned.nothing(PRIORS))

    def choose(self, incident: Incident) -> Decision:
        return self._learned.decide(incident.context, incident.candidates, now=incident.at)

    def learn(self, episode: Episode) -> None:
        pass


@dataclass
class Product:
    """What the service does. `retrain_every`: incidents between trainings; 0: never, Beta alone."""

    name: str
    seed: int
    epsilon: float = 0.05
    retrain_every: int = 0
    depth: int = 4
    promotions: int = 0
    fallbacks: int = 0
    decisions: list[tuple[Incident, Decision]] = field(default_factory=list[tuple[Incident, Decision]])
    keep_decisions: bool = False
    log: list[Episode] = field(default_factory=list[Episode])
    _since: int = 0
    _trained_on: int = 0
    _before: Learned | None = None

    def __post_init__(self) -> None:
        self._random = np.random.default_rng([self.seed, 3])
        self.learned = Learned(Beta(PRIORS, depth=self.depth), Costs(PRIORS), epsilon=self.epsilon)

    def choose(self, incident: Incident) -> Decision:
        draw = float(self._random.random())
        decision = self.learned.decide(incident.context, incident.candidates, draw=draw, now=incident.at)
        if self.keep_decisions:
            self.decisions.append((incident, decision))
        return decision

    def learn(self, episode: Episode) -> None:
        self.log.append(episode)
        self.learned.learn(episode)
        self._since += 1
        if self.retrain_every and self._since >= self.retrain_every:
            self._since = 0
            self._retrain()
        elif self.learned.challenger is not None and len(self.log) % 50 == 0:
            self._watch(self.learned.challenger)

    def _retrain(self) -> None:
        if evaluate(self.log, PRIORS).passed:
            try:
                model = fit_challenger(self.log, PRIORS)
            except TooFewExamples:
                return
            self._use(model)
            self.promotions += 1

    def _watch(self, model: Predictor) -> None:
        assert self._before is not None
        if watch(self.log[self._trained_on :], model, self._before).broken:
            self._use(None)
            self.fallbacks += 1

    def _use(self, model: Predictor | None) -> None:
        beta, costs = self.learned.beta, self.learned.costs
        self.learned = Learned(beta, costs, model, source="challenger" if model else "beta", epsilon=self.epsilon)
        self._trained_on = len(self.log)
        self._before = Learned(beta, costs).after([])


def play(policy: Policy, world: World, incidents: Sequence[Incident]) -> np.ndarray:
    """Regret of each incident against the oracle, in expected seconds."""
    regrets = np.empty(len(incidents))
    for index, incident in enumerate(incidents):
        decision = policy.choose(incident)
        if isinstance(decision, tuple):
            order, propensity, predicted = decision, 1.0, dict[str, float]()
        else:
            order = tuple(one.strategy for one in decision.order)
            propensity = decision.propensity
            predicted = {one.strategy: one.success_rate for one in decision.order}
        regrets[index] = expected_s(order, incident, world) - expected_s(oracle(incident, world), incident, world)
        attempts: list[Attempt] = []
        for one in order:
            attempts.append(Attempt(one, incident.outcomes[one], incident.costs[one]))
            if incident.outcomes[one]:
                break
        if attempts:
            seen = tuple(attempts)
            policy.learn(Episode(incident.context, incident.candidates, seen, propensity, True, incident.at, predicted))
    return regrets


__all__ = ["ESCALATION_S", "Fixed", "Policy", "PriorPerCost", "Product", "play"]
