"""An episode: one recovery as learning sees it. Only what is known is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from upright.domain.verdict import Verdict
from upright.services.learning.context import Context
from upright.services.ports import ActionRecord
from upright.services.strategies.base import as_list, as_mapping, as_number

_KNOWN = {Verdict.RECOVERED: True, Verdict.NOT_RECOVERED: False, Verdict.RELAPSED: False}
RETRY = "retry"
_NOT_DONE = (Verdict.SKIPPED, Verdict.REFUSED)


@dataclass(frozen=True)
class Attempt:
    """A strategy that was carried out and verified, by an action that is known to be the cause."""

    strategy: str
    success: bool
    cost_s: float


@dataclass(frozen=True)
class Episode:
    context: Context
    candidates: tuple[str, ...]
    """Strategies that applied, in the runbook's order."""
    attempts: tuple[Attempt, ...]
    propensity: float = 1.0
    """How likely the logging policy was to begin as it did."""
    complete: bool = True
    """Whether every action that was carried out has a verdict that counts, so that its whole course is known."""
    at: float = 0.0
    """Seconds since the epoch."""
    predicted: dict[str, float] = field(default_factory=dict[str, float])
    """Success rates that were expected when it was scored."""
    source: str = ""
    """What scored it."""

    @property
    def recovered(self) -> bool:
        return any(attempt.success for attempt in self.attempts)

    def seconds(self, escalation_s: float) -> float:
        """What it took, a person's share included where nothing helped."""
        return sum(one.cost_s for one in self.attempts) + (0 if self.recovered else escalation_s)


def episode_of(
    explanation: dict[str, Any], actions: Iterable[ActionRecord], *, finished_at: datetime, relapsed: bool
) -> Episode | None:
    """None for a recovery that teaches nothing: scored by an older version, in a fixed order, or not verified.

    A relapse counts as failed: the operation broke again, so that what seemed to help did not. Not so for a retry,
    which is there for the one request and promises nothing for the next.
    """
    learning = as_mapping(explanation.get("learning"))
    try:
        context = Context.from_json(as_mapping(learning.get("context")))
    except TypeError:
        return None
    attempts: list[Attempt] = []
    complete = True
    for action in sorted(actions, key=lambda one: one.position):
        if action.verdict in _NOT_DONE:
            continue
        success = _KNOWN.get(action.verdict)
        if success is None or not action.attributed:
            complete = False
            continue
        if success and relapsed:
            success = action.strategy == RETRY
        attempts.append(Attempt(action.strategy, success, max(action.duration_ms / 1000, 0.001)))
    if not attempts:
        return None
    predicted = {name: as_number(rate) for name, rate in as_mapping(learning.get("predicted")).items()}
    return Episode(
        context=context,
        candidates=tuple(as_list(learning.get("candidates"), default="")),
        attempts=tuple(attempts),
        propensity=as_number(learning.get("propensity")) or 1.0,
        # What the policy did not choose (the runbook, a relapse or a lack of trust did), or a resumed run did in two
        # parts, says nothing of the policy.
        complete=complete
        and explanation.get("order") == "scored"
        and not learning.get("resumed")
        and not learning.get("arranged"),
        at=finished_at.timestamp(),
        predicted={name: rate for name, rate in predicted.items() if rate is not None},
        source=str(learning.get("source", "")),
    )


def examples(episodes: Iterable[Episode]) -> Iterator[tuple[Context, Attempt]]:
    for episode in episodes:
        for attempt in episode.attempts:
            yield episode.context, attempt
