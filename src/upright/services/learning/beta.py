"""Hierarchical Beta: success rates from the first outcome on.

Strategy → with the error's type → and the service → and the situation. Each level is shrunk to the one above it, and
the first to the prior, so that what little is known of a rare context is held by what is known of the common one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from upright.services.learning.context import Context
from upright.services.learning.episode import Attempt
from upright.services.learning.estimate import Prior
from upright.services.strategies.base import as_mapping

PRIOR_WEIGHT = 6.0
"""Observations that a prior is worth."""
SHRINKAGE = 8.0
"""Observations that the level above is worth."""
FORMAT = "upright-beta"
FORMAT_VERSION = 1

Key = tuple[str, ...]


@dataclass
class Cell:
    trials: int = 0
    successes: int = 0
    last: float = 0.0


@dataclass(frozen=True)
class Rate:
    mean: float
    weight: float
    trials: int
    last: float | None
    evidence: str


@dataclass
class Beta:
    priors: Mapping[str, Prior]
    cells: dict[Key, Cell] = field(default_factory=dict[Key, Cell])
    depth: int = 4

    def add(self, context: Context, attempt: Attempt, at: float = 0.0) -> None:
        for key in _keys(context, attempt.strategy)[: self.depth]:
            cell = self.cells.setdefault(key, Cell())
            cell.trials += 1
            cell.successes += attempt.success
            cell.last = max(cell.last, at)

    def rate(self, context: Context, strategy: str) -> Rate:
        mean, weight, own = self.priors[strategy].success_rate, PRIOR_WEIGHT, Cell()
        levels: list[Cell] = []
        for index, key in enumerate(_keys(context, strategy)[: self.depth]):
            cell = self.cells.get(key)
            if cell is None:
                break
            weight = PRIOR_WEIGHT if index == 0 else SHRINKAGE
            mean = (weight * mean + cell.successes) / (weight + cell.trials)
            weight += cell.trials
            levels.append(cell)
            if index == 2:
                own = cell
        return Rate(mean, weight, own.trials, own.last or None, _evidence(context, levels))

    def copy(self) -> Beta:
        cells = {key: Cell(cell.trials, cell.successes, cell.last) for key, cell in self.cells.items()}
        return Beta(self.priors, cells, self.depth)

    def as_json(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "cells": [[list(key), cell.trials, cell.successes, cell.last] for key, cell in sorted(self.cells.items())],
        }

    @classmethod
    def from_json(cls, data: Any, priors: Mapping[str, Prior]) -> Beta:
        """Raises ValueError for what is damaged, foreign, or of a later version."""
        found = as_mapping(data)
        if found.get("format") != FORMAT:
            raise ValueError("not the state of a Beta model")
        if found.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format version {found.get('format_version')!r}, this version reads {FORMAT_VERSION}")
        try:
            rows: list[tuple[list[str], int, int, float]] = found["cells"]
            cells: dict[Key, Cell] = {}
            for key, trials, successes, last in rows:
                if not 0 <= int(successes) <= int(trials) or not 1 <= len(key) <= 4 or not math.isfinite(last):
                    raise ValueError(f"the counts of {key} can't be")
                cells[tuple(str(part) for part in key)] = Cell(int(trials), int(successes), float(last))
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged: {error!r}") from error
        return cls(priors, cells)


def learned_from(priors: Mapping[str, Prior], attempts: Iterable[tuple[Context, Attempt]]) -> Beta:
    beta = Beta(priors)
    for context, attempt in attempts:
        beta.add(context, attempt)
    return beta


def _keys(context: Context, strategy: str) -> tuple[Key, ...]:
    kind, service = context.error_type, context.service
    situation = context.situation if context.situation != "none" else f"pool {context.pool}"
    return (strategy,), (strategy, kind), (strategy, kind, service), (strategy, kind, service, situation)


def _evidence(context: Context, levels: list[Cell]) -> str:
    if not levels:
        return ""
    if len(levels) == 4:
        # In the same situation where it happened there often enough to speak of it.
        cell = levels[3] if levels[3].trials >= 5 else levels[2]
        where = "in this service"
        if cell is levels[3]:
            where += {
                "cancelled": ", query cancelled",
                "cache": ", cache key unreadable",
                "pool": f", pool at {context.pool_percent or 100} %",
            }.get(context.situation, "" if context.pool_percent is None else f", pool {context.pool}")
    elif len(levels) == 3:
        cell, where = levels[2], "in this service"
    elif len(levels) == 2:
        cell, where = levels[1], f"for {context.error_type} in other services"
    else:
        cell, where = levels[0], "for other errors"
    return f"{cell.successes} of {cell.trials} {where}"
