"""Verdicts, and the one rule by which evidence becomes one."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from upright.domain.message import Message


class Verdict(StrEnum):
    """Outcome of one action."""

    RECOVERED = "recovered"
    NOT_RECOVERED = "not_recovered"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"
    """Its precondition is unmet, or nothing here can carry it out."""
    REFUSED = "refused"
    """A bound or guardrail does not allow it."""
    FAILED = "failed"
    """It could not be carried out."""


class Status(StrEnum):
    """Where a recovery stands. All but QUEUED and RUNNING are final."""

    QUEUED = "queued"
    RUNNING = "running"
    RECOVERED = "recovered"
    NOT_RECOVERED = "not_recovered"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


class Evidence(Message):
    """What was seen of the failed operation after an action."""

    kind: Literal["replay", "retry", "caller_probe", "anonymous_replay", "probe", "health"]
    """`caller_probe`: a waiting block's own probe, which failed before the action. `health`: the service's health
    address, asked from outside."""
    outcome: Literal["passed", "failed", "inconclusive"]
    detail: str = ""
    status_code: int | None = None
    attempts: int = 1
    duration_ms: float = 0.0


def judge(after: Evidence | None, before: Evidence | None = None) -> Verdict:
    """The verdict that the evidence supports.

    The caller's own replay needs no reading before the action: its exception was that reading. A witness that did not
    see the failure itself (an anonymous replay, a probe, a health check) counts only if it failed before the action and
    passes after. No evidence is UNKNOWN, never RECOVERED.
    """
    if after is None or after.outcome == "inconclusive":
        return Verdict.UNKNOWN
    first_hand = after.kind in ("replay", "retry", "caller_probe")
    if not first_hand and (before is None or before.outcome != "failed"):
        return Verdict.UNKNOWN
    return Verdict.RECOVERED if after.outcome == "passed" else Verdict.NOT_RECOVERED
