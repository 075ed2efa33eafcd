"""The challenger: a calibrated logistic regression over strategy, error and context.

scikit-learn is imported where one is trained. What it predicts with is plain arithmetic over the same estimators.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from upright.services.learning.beta import PRIOR_WEIGHT
from upright.services.learning.context import Context
from upright.services.learning.episode import Attempt
from upright.services.learning.estimate import Prior

MIN_EXAMPLES = 50
MIN_EACH = 10
"""Successes, and failures, before there is anything to fit."""
FOLDS = 3
C = 0.5
"""Inverse strength of the regularisation."""


class TooFewExamples(Exception):
    """There is not enough to learn from."""


def features(context: Context, strategy: str) -> dict[str, float]:
    """The strategy crossed with all that may change how well it works."""
    names = (
        "",
        f"type={context.error_type}",
        f"service={context.service}",
        f"type={context.error_type},service={context.service}",
        f"severity={context.severity}",
        f"pool={context.pool}",
        f"situation={context.situation}",
    )
    return {f"{strategy}|{name}": 1.0 for name in names}


@dataclass(frozen=True)
class Challenger:
    vectorizer: Any
    """A fitted DictVectorizer."""
    classifier: Any
    """A fitted CalibratedClassifierCV over a LogisticRegression."""
    strategies: frozenset[str]
    """Those that it has seen."""

    def predict(self, context: Context, strategies: Sequence[str]) -> Mapping[str, float]:
        return {one: self._rate(features(context, one)) for one in strategies if one in self.strategies}

    def _rate(self, found: Mapping[str, float]) -> float:
        weights = self._weights
        margin = self._intercept + sum(weights.get(name, 0.0) * value for name, value in found.items())
        return expit(-(self._slope * margin + self._offset))

    # The estimators' own predict_proba takes a millisecond, nearly all of it checks of its input.

    @cached_property
    def _weights(self) -> dict[str, float]:
        names: list[str] = self.vectorizer.feature_names_
        return dict(zip(names, (float(one) for one in self._calibrated.estimator.coef_[0]), strict=True))

    @cached_property
    def _intercept(self) -> float:
        return float(self._calibrated.estimator.intercept_[0])

    @cached_property
    def _slope(self) -> float:
        return float(self._calibrated.calibrators[0].a_)

    @cached_property
    def _offset(self) -> float:
        return float(self._calibrated.calibrators[0].b_)

    def numbers(self) -> Iterable[float]:
        """All that a prediction is made of."""
        return [*self._weights.values(), self._intercept, self._slope, self._offset]

    @property
    def _calibrated(self) -> Any:
        return self.classifier.calibrated_classifiers_[0]


def expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def train(examples: Iterable[tuple[Context, Attempt]], priors: Mapping[str, Prior]) -> Challenger:
    """Raises TooFewExamples."""
    from sklearn.calibration import CalibratedClassifierCV  # pyright: ignore[reportMissingTypeStubs]
    from sklearn.feature_extraction import DictVectorizer  # pyright: ignore[reportMissingTypeStubs]
    from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]

    rows: list[dict[str, float]] = []
    outcomes: list[int] = []
    weights: list[float] = []
    strategies: set[str] = set()
    for context, attempt in examples:
        rows.append(features(context, attempt.strategy))
        outcomes.append(int(attempt.success))
        weights.append(1.0)
        strategies.add(attempt.strategy)
    successes = sum(outcomes)
    if len(rows) < MIN_EXAMPLES or min(successes, len(rows) - successes) < MIN_EACH:
        raise TooFewExamples(
            f"{len(rows)} outcomes, {successes} of them successes; it takes {MIN_EXAMPLES}, {MIN_EACH} of each kind"
        )
    for strategy in sorted(strategies & priors.keys()):
        for success, share in ((1, priors[strategy].success_rate), (0, 1 - priors[strategy].success_rate)):
            if share > 0:
                rows.append({f"{strategy}|": 1.0})
                outcomes.append(success)
                weights.append(PRIOR_WEIGHT * share)
    vectorizer: Any = DictVectorizer()
    matrix: Any = vectorizer.fit_transform(rows)
    # One calibrated model rather than one for each fold: it answers in a quarter of the time.
    options: dict[str, Any] = {"ensemble": False}  # which the library's types take for text
    classifier: Any = CalibratedClassifierCV(
        LogisticRegression(C=C, max_iter=500, tol=1e-3), method="sigmoid", cv=FOLDS, **options
    )
    classifier.fit(matrix, outcomes, sample_weight=weights)
    return Challenger(vectorizer, classifier, frozenset(strategies))
