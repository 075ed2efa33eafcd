"""The report claims no more than is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from upright.adapters.report import report, strategy_of, title
from upright.domain.severity import Severity
from upright.domain.verdict import Status, Verdict
from upright.services.ports import ActionRecord, RecoveryRecord


def recovery(status: Status, *actions: tuple[str, Verdict]) -> RecoveryRecord:
    recovery_id = uuid4()
    return RecoveryRecord(
        id=recovery_id,
        tenant="default",
        incident_id=uuid4(),
        error_id=uuid4(),
        fingerprint="f",
        service="shop",
        runbook="database-error",
        severity=Severity.CRITICAL,
        status=status,
        epoch=1,
        flow_run_id=uuid4(),
        flow_run_attempt=1,
        created_at=datetime.now(UTC),
        finished_at=None,
        actions=tuple(ActionRecord(recovery_id, index, *one) for index, one in enumerate(actions)),
    )


POOL = ("pool_increase", Verdict.RECOVERED)


@pytest.mark.parametrize(
    ("status", "actions", "opener", "own", "success", "message"),
    [
        (Status.RECOVERED, [POOL], True, None, True, "Recovery successful: Pool Increase"),
        (Status.RECOVERED, [POOL], True, True, True, "Recovery successful: Pool Increase"),
        (Status.RECOVERED, [POOL], True, False, False, "Recovery failed"),
        (Status.RECOVERED, [POOL], False, None, False, "Recovery not verified"),
        (Status.RECOVERED, [POOL], False, True, True, "Recovery successful: Pool Increase"),
        (Status.RECOVERED, [POOL], False, False, False, "Recovery failed"),
        (
            Status.RECOVERED,
            [("cache_clear", Verdict.SKIPPED), POOL],
            True,
            None,
            True,
            "Recovery successful: Pool Increase",
        ),
        (Status.NOT_RECOVERED, [("retry", Verdict.NOT_RECOVERED)], True, None, False, "Recovery failed"),
        (Status.NOT_RECOVERED, [("retry", Verdict.NOT_RECOVERED)], False, True, True, "Recovery successful"),
        (Status.UNKNOWN, [("retry", Verdict.UNKNOWN)], True, None, False, "Recovery not verified"),
        (Status.UNKNOWN, [("retry", Verdict.UNKNOWN)], True, False, False, "Recovery failed"),
        (Status.CANCELLED, [], True, None, False, "Recovery cancelled"),
        (Status.RUNNING, [("retry", Verdict.NOT_RECOVERED)], True, None, False, "Recovery pending"),
        (Status.RUNNING, [POOL], True, True, False, "Recovery pending"),
        (Status.QUEUED, [], True, None, False, "Recovery pending"),
    ],
)
def test_success_is_the_callers_own(
    status: Status, actions: list[tuple[str, Verdict]], opener: bool, own: bool | None, success: bool, message: str
) -> None:
    one = recovery(status, *actions)
    made = report(one, error_id=one.error_id if opener else uuid4(), own_result=own)
    assert (made.success, made.message) == (success, message)
    assert made.status == ("pending" if not status.final else status.value)
    assert [(action.strategy, action.success) for action in made.actions] == [
        (strategy, verdict is Verdict.RECOVERED) for strategy, verdict in actions
    ]


def test_attempted_means_that_a_run_exists() -> None:
    one = recovery(Status.QUEUED)
    assert report(one, error_id=one.error_id, own_result=None).attempted
    waits = replace(one, flow_run_id=None)
    assert not report(waits, error_id=one.error_id, own_result=None).attempted
    assert not report(None, error_id=one.error_id, own_result=None).attempted


def test_the_strategy_is_the_one_that_recovered_or_the_last_tried() -> None:
    skipped = ("resource_scale", Verdict.SKIPPED)
    assert strategy_of(recovery(Status.RECOVERED, POOL, ("retry", Verdict.NOT_RECOVERED))) == "pool_increase"
    assert strategy_of(recovery(Status.NOT_RECOVERED, ("retry", Verdict.NOT_RECOVERED), skipped)) == "retry"
    assert strategy_of(recovery(Status.NOT_RECOVERED, skipped)) is None


def test_titles() -> None:
    assert [title(one) for one in ("pool_increase", "retry")] == ["Pool Increase", "Retry"]
