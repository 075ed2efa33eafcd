"""Costs: what trying a strategy takes, in seconds until its verdict, from measured durations.

Learned as ratio to the assumed cost, shrunk to the ratio of all strategies: if those that were tried turn out ten times
as fast as assumed, those that were not are not to look slow for it. Scaling and restarting are kept apart, since their
cost is the disruption too, which no directive's speed tells anything about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from upright.services.learning.episode import Attempt
from upright.services.learning.estimate import Prior

DISRUPTIVE = frozenset({"resource_scale", "service_restart"})
WEIGHT = 4.0


@dataclass
class Costs:
    priors: Mapping[str, Prior]
    sums: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    """Strategy to count and sum of the ratios."""

    def add(self, attempt: Attempt) -> None:
        count, total = self.sums.get(attempt.strategy, (0, 0.0))
        self.sums[attempt.strategy] = count + 1, total + attempt.cost_s / self.priors[attempt.strategy].cost_s

    def cost_s(self, strategy: str) -> float:
        common = 1.0
        if strategy not in DISRUPTIVE:
            known = [one for name, one in self.sums.items() if name not in DISRUPTIVE]
            common = (WEIGHT + sum(total for _, total in known)) / (WEIGHT + sum(count for count, _ in known))
        count, total = self.sums.get(strategy, (0, 0.0))
        return self.priors[strategy].cost_s * (WEIGHT * common + total) / (WEIGHT + count)

    def copy(self) -> Costs:
        return Costs(self.priors, dict(self.sums))
