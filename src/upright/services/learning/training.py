"""Training: a new version from all outcomes there are, its evaluation, and its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upright.services.learning.beta import Beta
from upright.services.learning.challenger import Challenger, TooFewExamples, train
from upright.services.learning.costs import Costs
from upright.services.learning.episode import Episode, examples
from upright.services.learning.estimate import Prior
from upright.services.learning.gate import Evaluation, evaluate
from upright.services.learning.learned import Learned
from upright.services.learning.policy import ESCALATION_S


@dataclass(frozen=True)
class Trained:
    learned: Learned
    challenger: Challenger | None
    evaluation: Evaluation
    outcomes: int


def fit(episodes: Sequence[Episode], priors: Mapping[str, Prior], *, escalation_s: float = ESCALATION_S) -> Trained:
    """Blocks, for seconds where there are many. `episodes`: in order of time."""
    known = [one for one in episodes if all(attempt.strategy in priors for attempt in one.attempts)]
    learned = Learned(Beta(priors), Costs(priors)).after(known)
    outcomes = sum(len(one.attempts) for one in known)
    try:
        challenger = train(examples(known), priors)
    except TooFewExamples as error:
        return Trained(learned, None, Evaluation(refusals=(str(error),)), outcomes)
    return Trained(learned, challenger, evaluate(known, priors, escalation_s=escalation_s), outcomes)


def card(version: int, tenant: str, trained: Trained, *, trained_until: str, software: str) -> str:
    """The model's card, in Markdown."""
    found = trained.evaluation
    verdict = "may act" if found.passed else "may not act: " + "; ".join(found.refusals)
    lines = [
        f"# Scoring model {version}",
        "",
        f"For tenant `{tenant}`. Trained on {trained.outcomes} verified outcomes up to {trained_until},",
        f"with {software}.",
        "",
        "## What it is for",
        "",
        "It may swap the first two strategies of a runbook, where exploration is allowed, by expected success per",
        "cost. It never chooses what a runbook doesn't list, what does not apply, or what a bound refuses; where it is",
        "not used, the hierarchical Beta model orders. Not for: critical errors, outages, restarts, scaling.",
        "",
        "## What it is",
        "",
        "Logistic regression over the strategy crossed with error type, service, severity, pool use and situation;",
        "the priors as pseudo-observations; sigmoid calibration. It has seen outcomes of this tenant's own",
        "applications only: strategy, success, context. No message, path or user is in it.",
        "",
        "## Evaluation",
        "",
        "On outcomes that came after those it was trained on, block by block; off-policy, doubly robust.",
        "",
        "| figure | value | needed |",
        "|---|---|---|",
        f"| effective sample size | {found.sample_size:.0f} | 100 |",
        f"| share of the time to recovery saved | {found.difference:.2%} | – |",
        f"| its lower bound (95 %) | {found.lower:.2%} | above -2 % |",
        f"| disagreements, explored on its side | {found.disagreements}, {found.support} | 8 explored |",
        f"| Brier score | {found.brier_challenger:.4f} | at most {found.brier_incumbent:.4f} (Beta's) |",
        f"| calibration error | {found.calibration_error:.3f} | – |",
        "",
        f"Verdict of the gate: it {verdict}.",
        "",
        "## What Beta knows",
        "",
        "| strategy | successes | trials | assumed | learned cost, s |",
        "|---|---|---|---|---|",
    ]
    for name, prior in trained.learned.beta.priors.items():
        cell = trained.learned.beta.cells.get((name,))
        if cell is not None:
            cost = trained.learned.costs.cost_s(name)
            lines.append(f"| `{name}` | {cell.successes} | {cell.trials} | {prior.success_rate:.0%} | {cost:.3g} |")
    return "\n".join(lines) + "\n"
