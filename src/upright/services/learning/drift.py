"""Drift: whether a challenger that acts has stopped predicting well, by its rolling Brier score beside the incumbent's.

Paired, so that a hard day for both is no reason to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from upright.services.learning.episode import Episode
from upright.services.learning.learned import Learned, Predictor

WINDOW = 200
MIN_OUTCOMES = 60
Z = 2.33
"""One-sided 99 %: this is asked again and again."""


@dataclass(frozen=True)
class Drift:
    outcomes: int
    brier_challenger: float
    brier_incumbent: float
    broken: bool


def watch(episodes: Sequence[Episode], model: Predictor, incumbent: Learned) -> Drift:
    """`episodes`: those that came after the challenger was trained, in order of time. `incumbent`: as it was before
    them; it is left alone."""
    following = incumbent.after([])
    pairs: list[tuple[float, float]] = []
    for episode in episodes:
        known = [one.strategy for one in episode.attempts if one.strategy in following.beta.priors]
        rates = model.predict(episode.context, known)
        for attempt in episode.attempts:
            if attempt.strategy in rates:
                expected = following.beta.rate(episode.context, attempt.strategy).mean
                pairs.append(((rates[attempt.strategy] - attempt.success) ** 2, (expected - attempt.success) ** 2))
        following.learn(episode)
    pairs = pairs[-WINDOW:]
    if not pairs:
        return Drift(0, 0.0, 0.0, broken=False)
    count = len(pairs)
    theirs, ours = sum(one for one, _ in pairs) / count, sum(one for _, one in pairs) / count
    worse = [one - other for one, other in pairs]
    mean = sum(worse) / count
    error = math.sqrt(sum((one - mean) ** 2 for one in worse) / max(1, count - 1) / count)
    return Drift(count, theirs, ours, broken=count >= MIN_OUTCOMES and mean > Z * error and mean > 0.005)
