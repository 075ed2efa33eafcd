"""The policy: estimates to an order. Greedy by success per cost, a bounded exploration, an expected-value stop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upright.domain.severity import Severity
from upright.services.learning.context import Context
from upright.services.learning.costs import DISRUPTIVE
from upright.services.learning.estimate import Estimate

EPSILON = 0.05
EXPLORABLE = frozenset({"retry", "timeout_increase", "cache_clear", "pool_increase", "queue_priority"})
"""Mild where they are wrong: reverted, or without effect on other requests."""
MAX_EXPLORED_COST_S = 10.0
ESCALATION_S = 120.0
"""What it costs until a person has seen to it."""
STOP_TRIALS = 10
"""Outcomes of the very context before a strategy may be left out."""
STOP_MEMORY_S = 7 * 86_400.0
"""A strategy that was left out is tried again after so long: the application may have changed."""


@dataclass(frozen=True)
class Decision:
    order: tuple[Estimate, ...]
    stopped: tuple[tuple[Estimate, str], ...]
    """Left out, with the reason."""
    propensities: Mapping[str, float]
    """How likely each was to get its place."""
    explored: bool = False

    @property
    def propensity(self) -> float:
        """Of the order as a whole."""
        return self.propensities.get(self.order[0].strategy, 1.0) if self.order else 1.0


def decide(
    context: Context,
    estimates: Sequence[Estimate],
    *,
    challenger: Mapping[str, float] | None = None,
    epsilon: float = EPSILON,
    draw: float = 1.0,
    escalation_s: float = ESCALATION_S,
    now: float | None = None,
) -> Decision:
    """`estimates`: of the strategies that apply, in the runbook's order, which decides between equal ones.

    `challenger`: its success rates; it may swap the first two, and only where exploration could have shown what comes
    of that, since nothing else of it has been evaluated. `draw`: uniform in [0, 1); below `epsilon` it explores.
    """
    kept: list[Estimate] = []
    stopped: list[tuple[Estimate, str]] = []
    now = time.time() if now is None else now
    for one in estimates:
        why = not_worth(one, escalation_s, now)
        if why is None:
            kept.append(one)
        else:
            stopped.append((one, why))
    order = sorted(kept, key=lambda one: one.score, reverse=True)
    propensities = {one.strategy: 1.0 for one in order}
    if forbidden(context, order) is not None:
        return Decision(tuple(order), tuple(stopped), propensities)
    first, second = order[0], order[1]
    if challenger is not None and _prefers(challenger, second, first):
        order[:2] = [second, first]
    explored = False
    if epsilon > 0 and plausible(order[0], order[1]):
        explored = draw < epsilon
        if explored:
            order[:2] = [order[1], order[0]]
        for one in order[:2]:
            propensities[one.strategy] = epsilon if explored else 1 - epsilon
    return Decision(tuple(order), tuple(stopped), propensities, explored)


def as_written(decision: Decision, strategies: Sequence[str]) -> Decision:
    """In the order in which they stand, all of them: a runbook's author has decided."""
    found = {one.strategy: one for one in (*decision.order, *(one for one, _ in decision.stopped))}
    return Decision(tuple(found[one] for one in strategies), (), dict.fromkeys(strategies, 1.0))


def not_worth(one: Estimate, escalation_s: float, now: float) -> str | None:
    """Why trying it costs more than it can be expected to save, or None. Judged by the upper bound of its rate."""
    if one.trials < STOP_TRIALS or one.last_trial is None or now - one.last_trial > STOP_MEMORY_S:
        return None
    _, upper = one.bounds()
    if upper * escalation_s >= one.cost_s:
        return None
    return f"left out: {one.evidence}; {one.cost_s:.3g} s of trying is more than it can be expected to save"


def forbidden(context: Context, order: Sequence[Estimate]) -> str | None:
    """Why the first two must stay as they are, or None."""
    if len(order) < 2:
        return "there is no choice"
    if context.severity == Severity.CRITICAL.value:
        return "critical errors are no place to explore"
    if context.outage:
        return "an outage is no time to explore"
    first, second = order[0], order[1]
    if first.strategy in DISRUPTIVE or second.strategy not in EXPLORABLE:
        return f"{second.strategy} is not tried before its turn"
    if second.cost_s > MAX_EXPLORED_COST_S:
        return f"{second.strategy} is too expensive to explore"
    return None


def plausible(first: Estimate, second: Estimate) -> bool:
    """Whether the second may be the better one, for all that is known. What is decided needs no exploration."""
    return second.bounds()[1] / second.cost_s > first.bounds()[0] / first.cost_s


def _prefers(challenger: Mapping[str, float], one: Estimate, other: Estimate) -> bool:
    if one.strategy not in challenger or other.strategy not in challenger:
        return False
    return challenger[one.strategy] / one.cost_s > challenger[other.strategy] / other.cost_s
