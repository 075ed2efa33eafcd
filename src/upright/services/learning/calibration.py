"""How good probabilities are: Brier score, expected calibration error, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bin:
    predicted: float
    """Mean prediction."""
    observed: float
    count: int


def brier(predicted: Sequence[float], outcomes: Sequence[bool]) -> float:
    return sum((p - y) ** 2 for p, y in zip(predicted, outcomes, strict=True)) / len(predicted)


def reliability(predicted: Sequence[float], outcomes: Sequence[bool], bins: int = 10) -> list[Bin]:
    """Bins of equal width; empty ones are left out."""
    filled: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for p, y in zip(predicted, outcomes, strict=True):
        filled[min(bins - 1, int(p * bins))].append((p, y))
    return [
        Bin(sum(p for p, _ in one) / len(one), sum(y for _, y in one) / len(one), len(one)) for one in filled if one
    ]


def calibration_error(predicted: Sequence[float], outcomes: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error."""
    found = reliability(predicted, outcomes, bins)
    return sum(one.count * abs(one.predicted - one.observed) for one in found) / len(predicted)
