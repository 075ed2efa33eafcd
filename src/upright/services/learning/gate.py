"""The gate: whether a challenger may act, by what the logs say would have come of it.

Off-policy and progressive: the log is cut into blocks in order of time, and each block judges models that were trained
on those before it. The estimate of the difference is doubly robust: the exact propensities of the logging policy make
good what the outcome model gets wrong. Where challenger and incumbent agree, there is no difference, by construction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from upright.domain.message import Json
from upright.services.learning import calibration, challenger
from upright.services.learning.challenger import TooFewExamples
from upright.services.learning.episode import Episode, examples
from upright.services.learning.estimate import Z90, Estimate, Prior
from upright.services.learning.learned import Learned, Predictor
from upright.services.learning.policy import ESCALATION_S

MIN_SAMPLE_SIZE = 100.0
"""Effective."""
MIN_LOWER_BOUND = -0.02
"""Of the saved share of the time to recovery."""
MIN_SUPPORT = 8
"""Explorations that took the challenger's side where it disagrees. With fewer, the interval means nothing."""
MIN_HELD_OUT = 100
"""Outcomes to compare Brier scores by."""
FIRST_BLOCK = 0.4
BLOCKS = 4

Fit = Callable[[Sequence[Episode], Mapping[str, Prior]], Predictor]


def fit_challenger(episodes: Sequence[Episode], priors: Mapping[str, Prior]) -> Predictor:
    return challenger.train(examples(episodes), priors)


@dataclass(frozen=True)
class Evaluation:
    episodes: int = 0
    """Of those that were held out, as many as can be judged."""
    sample_size: float = 0.0
    """Effective."""
    difference: float = 0.0
    """Share of the time to recovery that the challenger would have saved; negative if it would have taken more."""
    lower: float = -1.0
    """95 % bound of it."""
    disagreements: int = 0
    support: int = 0
    """Of the disagreements, those where exploration did what the challenger would have done."""
    outcomes: int = 0
    brier_challenger: float = 1.0
    brier_incumbent: float = 1.0
    calibration_error: float = 1.0
    refusals: tuple[str, ...] = ()
    """Why it may not act; empty: it may."""

    @property
    def passed(self) -> bool:
        return not self.refusals

    def as_json(self) -> Json:
        return {**asdict(self), "refusals": list(self.refusals), "passed": self.passed}


def evaluate(
    episodes: Sequence[Episode],
    priors: Mapping[str, Prior],
    *,
    fit: Fit = fit_challenger,
    escalation_s: float = ESCALATION_S,
) -> Evaluation:
    """`episodes`: in order of time."""
    differences: list[float] = []
    seconds: list[float] = []
    weights: list[float] = []
    disagreements = support = 0
    predicted: list[float] = []
    incumbents: list[float] = []
    outcomes: list[bool] = []
    incumbent = Learned.nothing(priors)
    cuts = _cuts(len(episodes))
    incumbent = incumbent.after(episodes[: cuts[0]])
    for start, end in itertools.pairwise(cuts):
        try:
            model = fit(episodes[:start], priors)
        except TooFewExamples as error:
            return Evaluation(refusals=(str(error),))
        for episode in episodes[start:end]:
            known = [one.strategy for one in episode.attempts if one.strategy in priors]
            rates = model.predict(episode.context, known)
            for attempt in episode.attempts:
                if attempt.strategy in rates:
                    predicted.append(rates[attempt.strategy])
                    incumbents.append(incumbent.beta.rate(episode.context, attempt.strategy).mean)
                    outcomes.append(attempt.success)
            judged = _judge(episode, incumbent, model, escalation_s)
            if judged is not None:
                differences.append(judged.difference)
                seconds.append(judged.seconds)
                weights.append(judged.weight)
                disagreements += judged.disagrees
                support += judged.disagrees and judged.weight > 0
        for episode in episodes[start:end]:
            incumbent.learn(episode)
    if not differences or not outcomes:
        return Evaluation(refusals=("no recovery whose whole course is known",))
    scale = sum(seconds) / len(seconds)
    mean = sum(differences) / len(differences)
    variance = sum((one - mean) ** 2 for one in differences) / max(1, len(differences) - 1)
    lower = mean - Z90 * math.sqrt(variance / len(differences))
    squares = sum(one * one for one in weights)
    found = Evaluation(
        episodes=len(differences),
        sample_size=sum(weights) ** 2 / squares if squares else 0.0,
        difference=mean / scale,
        lower=lower / scale,
        disagreements=disagreements,
        support=support,
        outcomes=len(outcomes),
        brier_challenger=calibration.brier(predicted, outcomes),
        brier_incumbent=calibration.brier(incumbents, outcomes),
        calibration_error=calibration.calibration_error(predicted, outcomes),
    )
    return replace(found, refusals=tuple(_refusals(found)))


def _refusals(found: Evaluation) -> list[str]:
    why: list[str] = []
    if found.sample_size < MIN_SAMPLE_SIZE:
        why.append(f"effective sample size {found.sample_size:.0f}, it takes {MIN_SAMPLE_SIZE:.0f}")
    if found.disagreements and found.support < MIN_SUPPORT:
        why.append(f"explored {found.support} times as it would have acted where it disagrees, it takes {MIN_SUPPORT}")
    if found.lower <= MIN_LOWER_BOUND:
        why.append(f"it may take {-found.lower:.1%} more time than the incumbent, {-MIN_LOWER_BOUND:.0%} is allowed")
    if found.outcomes < MIN_HELD_OUT:
        why.append(f"{found.outcomes} outcomes held out, it takes {MIN_HELD_OUT}")
    elif found.brier_challenger > found.brier_incumbent:
        why.append(
            f"Brier score {found.brier_challenger:.4f} on what it had not seen, "
            f"the incumbent's is {found.brier_incumbent:.4f}"
        )
    return why


@dataclass(frozen=True)
class _Judged:
    difference: float
    seconds: float
    weight: float
    """The challenger's importance weight."""
    disagrees: bool


def _judge(episode: Episode, incumbent: Learned, model: Predictor, escalation_s: float) -> _Judged | None:
    if not episode.complete or any(one not in incumbent.beta.priors for one in episode.candidates):
        return None
    settled = Learned(incumbent.beta, incumbent.costs, epsilon=0.0, escalation_s=escalation_s)
    by_incumbent = settled.decide(episode.context, episode.candidates, now=episode.at).order
    rivals = Learned(incumbent.beta, incumbent.costs, model, epsilon=0.0, escalation_s=escalation_s)
    by_challenger = rivals.decide(episode.context, episode.candidates, now=episode.at).order
    observed = episode.seconds(escalation_s)

    def value(order: Sequence[Estimate]) -> tuple[float, float]:
        """Doubly robust, and the weight."""
        names = [one.strategy for one in order[: len(episode.attempts)]]
        matches = names == [one.strategy for one in episode.attempts]
        weight = 1 / episode.propensity if matches else 0.0
        expected = _expected_s(order, escalation_s)
        return expected + weight * (observed - expected), weight

    theirs, weight = value(by_challenger)
    disagrees = [one.strategy for one in by_challenger] != [one.strategy for one in by_incumbent]
    ours = value(by_incumbent)[0] if disagrees else theirs
    return _Judged(ours - theirs, observed, weight, disagrees)


def _expected_s(order: Sequence[Estimate], escalation_s: float) -> float:
    left, total = 1.0, 0.0
    for one in order:
        total += left * one.cost_s
        left *= 1 - one.success_rate
    return total + left * escalation_s


def _cuts(count: int) -> list[int]:
    first = round(count * FIRST_BLOCK)
    return [first + round((count - first) * index / BLOCKS) for index in range(BLOCKS + 1)]
