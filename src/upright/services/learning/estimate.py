"""What is expected of a strategy in a context."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z90 = 1.645
"""One-sided 95 %, two-sided 90 %."""


@dataclass(frozen=True)
class Prior:
    success_rate: float
    """0 to 1."""
    cost_s: float


@dataclass(frozen=True)
class Estimate:
    strategy: str
    success_rate: float
    cost_s: float
    evidence: str = ""
    """What the rate rests on, for people; empty where it is a prior."""
    weight: float = 6.0
    """Observations, assumed ones included, that the rate is worth."""
    trials: int = 0
    """Outcomes of this very context: error type and service."""
    last_trial: float | None = None
    """When the latest of them was, in seconds since the epoch."""

    @property
    def score(self) -> float:
        """Expected successes per second of trying."""
        return self.success_rate / self.cost_s

    def bounds(self, z: float = Z90) -> tuple[float, float]:
        """Wilson's interval of the rate."""
        p, n = self.success_rate, self.weight
        centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))
