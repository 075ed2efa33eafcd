"""The report of a recovery to one of its callers: the guide's JSON, and no more than what is known."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from upright.domain.answer import ActionReport, RecoveryReport
from upright.domain.verdict import Status, Verdict
from upright.services.ports import RecoveryRecord

_NOT_TRIED = (Verdict.SKIPPED, Verdict.REFUSED)


def report(recovery: RecoveryRecord | None, *, error_id: UUID, own_result: bool | None) -> RecoveryReport:
    """What the sender of `error_id` is told. None: no recovery exists."""
    if recovery is None:
        return RecoveryReport(attempted=False, success=False, status="pending", message="Recovery pending")
    success = works(recovery, error_id=error_id, own_result=own_result)
    return RecoveryReport(
        attempted=recovery.flow_run_id is not None and not recovery.withheld,
        success=success,
        status=_STATUS[recovery.status],
        message=_message(recovery, success=success, own_result=own_result),
        actions=[
            ActionReport(
                strategy=action.strategy,
                success=action.verdict is Verdict.RECOVERED,
                verdict=action.verdict,
                duration_ms=action.duration_ms,
                reason=action.reason,
            )
            for action in recovery.actions
        ],
    )


def works(recovery: RecoveryRecord, *, error_id: UUID, own_result: bool | None) -> bool:
    """Whether this caller's own operation is known to work again: it saw so itself, or its error is the one whose
    operation the recovery verified."""
    if recovery.status is Status.RELAPSED:
        return False
    if own_result is not None:
        return own_result and recovery.status.final
    return recovery.status is Status.RECOVERED and recovery.error_id == error_id


def strategy_of(recovery: RecoveryRecord) -> str | None:
    """The strategy that recovered it, else the last one that was tried."""
    tried = [action for action in recovery.actions if action.verdict not in _NOT_TRIED]
    recovered = [action for action in tried if action.verdict is Verdict.RECOVERED]
    return (recovered or tried)[-1].strategy if tried else None


def title(strategy: str) -> str:
    return strategy.replace("_", " ").title()


_STATUS: dict[Status, Literal["pending", "recovered", "not_recovered", "unknown", "cancelled", "relapsed"]] = {
    Status.QUEUED: "pending",
    Status.RUNNING: "pending",
    Status.RECOVERED: "recovered",
    Status.NOT_RECOVERED: "not_recovered",
    Status.UNKNOWN: "unknown",
    Status.CANCELLED: "cancelled",
    Status.RELAPSED: "relapsed",
}


def _message(recovery: RecoveryRecord, *, success: bool, own_result: bool | None) -> str:
    if not recovery.status.final:
        return "Recovery pending"
    if success:
        by = strategy_of(recovery) if recovery.status is Status.RECOVERED else None
        return f"Recovery successful: {title(by)}" if by else "Recovery successful"
    if recovery.withheld:
        return recovery.message
    if recovery.status is Status.CANCELLED:
        return "Recovery cancelled"
    if recovery.status is Status.RELAPSED:
        return f"Relapsed: {recovery.relapse}" if recovery.relapse else "Relapsed"
    if recovery.status is Status.NOT_RECOVERED or own_result is False:
        return "Recovery failed"
    return "Recovery not verified"
