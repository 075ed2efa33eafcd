"""Verdicts, and the one rule by which evidence becomes one."""

from __future__ import annotations

from collections.abc import Sequence
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
    RELAPSED = "relapsed"
    """It had recovered, and the error came back while it was to help."""


class Status(StrEnum):
    """Where a recovery stands. All but QUEUED and RUNNING are final."""

    QUEUED = "queued"
    RUNNING = "running"
    RECOVERED = "recovered"
    NOT_RECOVERED = "not_recovered"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"
    RELAPSED = "relapsed"
    """It had recovered, and the error came back within the runbook's window."""

    @property
    def final(self) -> bool:
        return self not in (Status.QUEUED, Status.RUNNING)


class Evidence(Message):
    """What was seen of the failed operation after an action."""

    kind: Literal[
        "replay", "retry", "caller_probe", "anonymous_replay", "probe", "health",
        "http", "sql", "tcp", "check", "quiet",
    ]  # fmt: skip
    """`caller_probe`: a waiting block's own probe, which failed before the action. `health`: the service's health
    address, asked from outside. From `http` on: checks that a runbook names."""
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


class Checked(Message):
    """One check of a runbook's verification: what it saw before the action, and after it."""

    name: str
    after: Evidence
    before: Evidence | None = None


def judge_all(checks: Sequence[Checked]) -> Verdict:
    """The verdict of a chain. One that failed is enough for not recovered, and one that says nothing for unknown. All
    that passed are a recovery where at least one of them could have shown the failure: it is first-hand, or it had
    failed before."""
    if any(one.after.outcome == "failed" for one in checks):
        return Verdict.NOT_RECOVERED
    if not checks or any(one.after.outcome == "inconclusive" for one in checks):
        return Verdict.UNKNOWN
    if any(judge(one.after, one.before) is Verdict.RECOVERED for one in checks):
        return Verdict.RECOVERED
    return Verdict.UNKNOWN
