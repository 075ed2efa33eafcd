"""Trust: what measured success says of a strategy in a runbook."""

from __future__ import annotations

import math
from dataclasses import dataclass

from upright.domain.guardrails import Trust, TrustRules

_Z = 1.96
"""Of a 95 % interval."""


@dataclass(frozen=True)
class Record:
    """Verified outcomes, relapses counted as failures. What is unknown says nothing."""

    successes: int = 0
    failures: int = 0

    @property
    def total(self) -> int:
        return self.successes + self.failures

    @property
    def surely(self) -> tuple[float, float]:
        """Wilson's interval of the success rate; 0 to 1 where there is nothing to go by."""
        total = self.total
        if not total:
            return 0.0, 1.0
        rate = self.successes / total
        center = rate + _Z**2 / (2 * total)
        spread = _Z * math.sqrt(rate * (1 - rate) / total + _Z**2 / (4 * total**2))
        whole = 1 + _Z**2 / total
        return max(0.0, (center - spread) / whole), min(1.0, (center + spread) / whole)


def demotion(rules: TrustRules, level: Trust, record: Record) -> str | None:
    """Why a strategy that acts by itself is to ask from now on, or None."""
    _, at_most = record.surely
    if level is not Trust.AUTO or not record.failures or at_most >= rules.demote_below:
        return None
    return (
        f"{record.failures} of {record.total} verified outcomes failed: success is at most {at_most:.0%}, "
        f"below {rules.demote_below:.0%}"
    )


def promotion(rules: TrustRules, level: Trust, ceiling: Trust, record: Record) -> str | None:
    """Why a person may want to trust it more, or None. It is never done by itself."""
    at_least, _ = record.surely
    if level is not Trust.APPROVE or at_least < rules.promote_from:
        return None
    allowed = "" if ceiling is Trust.AUTO else "; the runbook's file allows no more than " + ceiling.value
    return (
        f"{record.successes} of {record.total} verified outcomes succeeded: success is at least {at_least:.0%}, "
        f"above {rules.promote_from:.0%}{allowed}"
    )
