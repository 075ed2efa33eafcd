"""A relapse, as the log of the application tells it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from error_logging import recording
from error_logging.models import ErrorLog
from error_logging.testing import action, report

pytestmark = pytest.mark.django_db(transaction=True)


def test_an_error_that_had_recovered_is_unresolved_again() -> None:
    row = ErrorLog.objects.create(service="shop", error_type="TimeoutError", severity="high", message="too slow")
    recovery_id = str(uuid4())

    def hears(status: str, verdict: str) -> None:
        told = report(status, action("timeout_increase", verdict))
        outcome = {"recovery_id": recovery_id, "error_id": str(row.error_id), "report": told,
                   "strategy": "timeout_increase"}  # fmt: skip
        assert recording.apply_outcome(outcome)
        row.refresh_from_db()

    hears("recovered", "recovered")
    assert (row.resolved, row.context["recovery_success"]) == (True, True)
    hears("relapsed", "relapsed")
    assert (row.resolved, row.context["recovery_success"]) == (False, False)
    assert row.context["recovery_strategy"] == "timeout_increase"
    hears("pending", "recovered")
    assert row.context["recovery"]["status"] == "relapsed", "what is pending does not take the place of an end"
