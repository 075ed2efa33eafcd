"""trigger_manual_recovery: past errors, rows that someone made by hand, and ids that lead nowhere."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.utils import timezone

from error_logging import exchange, waiting
from error_logging.ai_recovery_middleware import trigger_manual_recovery
from error_logging.models import ErrorLog
from error_logging.testing import (
    ScriptedService,
    action,
    apply,
    directive,
    final,
    pending,
    probe,
    recovered,
    refusal,
    report,
    silence,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def row() -> ErrorLog:
    return ErrorLog.objects.create(
        service="django",
        error_type="DatabaseError",
        message="Connection pool exhausted",
        context={"current_connections": 25, "affected_queries": ["SELECT", "UPDATE"]},
    )


def test_it_returns_what_the_guide_prints(service: ScriptedService, row: ErrorLog) -> None:
    service.on_recovery(final(report("recovered", action("circuit_break"), message="Recovery successful")))
    result = trigger_manual_recovery(str(row.error_id))
    assert list(result) == ["success", "error_id", "recovery"]
    assert (result["success"], result["error_id"]) == (True, str(row.error_id))
    told = result["recovery"]
    assert (told["attempted"], told["success"], told["message"]) == (True, True, "Recovery successful")
    assert told["actions"][0]["strategy"] == "circuit_break"


def test_the_row_says_so_too(service: ScriptedService, row: ErrorLog) -> None:
    service.on_recovery(recovered("pool_increase"))
    trigger_manual_recovery(str(row.error_id))
    row.refresh_from_db()
    assert row.resolved
    assert row.context["recovery_attempted"] is True
    assert row.context["recovery_success"] is True
    assert row.context["recovery_strategy"] == "pool_increase"
    assert row.context["current_connections"] == 25


def test_a_row_made_by_hand_is_sent_as_an_error(service: ScriptedService, row: ErrorLog) -> None:
    trigger_manual_recovery(str(row.error_id))
    (sent,) = service.recoveries
    assert sent.path == f"/v1/errors/{row.error_id}/recoveries"
    body = sent.body
    assert (body["error_id"], body["origin"], body["service"]) == (str(row.error_id), "manual", "django")
    assert body["error"] | {"frames": []} == {
        "type": "DatabaseError", "message": "Connection pool exhausted", "classes": [["DatabaseError"]],
        "severity": "critical", "frames": [],
    }  # fmt: skip
    assert body["context"]["affected_queries"] == ["SELECT", "UPDATE"]
    assert sent.wait_ms > 0


def test_one_that_the_middleware_logged_keeps_its_classes_and_request(service: ScriptedService, client: Client) -> None:
    error_id = client.get("/broken/").json()["error"]["error_id"]
    trigger_manual_recovery(error_id)
    body = service.recoveries[0].body
    assert body["error"]["classes"] == [["builtins.ValueError"]]
    assert body["request"]["route"] == "broken/"
    assert "recovery_attempted" not in body["context"]


def test_each_time_is_a_new_recovery(service: ScriptedService, row: ErrorLog) -> None:
    service.on_recovery(final(report("not_recovered")), recovered())
    assert [trigger_manual_recovery(str(row.error_id))["success"] for _ in range(2)] == [False, True]
    assert len({one.delivery_id for one in service.recoveries}) == 2


def test_a_uuid_will_do(service: ScriptedService, row: ErrorLog) -> None:
    service.on_recovery(recovered())
    assert trigger_manual_recovery(row.error_id)["error_id"] == str(row.error_id)


@pytest.mark.parametrize("unknown", [str(uuid.uuid4()), "error-uuid-here", "", "7", "\x00"])
def test_unknown_ids_are_told(service: ScriptedService, unknown: str) -> None:
    result = trigger_manual_recovery(unknown)
    assert (result["success"], result["error_id"]) == (False, unknown)
    assert result["recovery"] | {"status": ""} == {
        "attempted": False, "success": False, "status": "", "message": "There is no such error", "actions": [],
    }  # fmt: skip
    assert service.received == []


@pytest.mark.parametrize(
    ("answer", "status", "attempted"),
    [
        (final(report("not_recovered", action("retry", "not_recovered"))), "not_recovered", True),
        (final(report("unknown")), "unknown", True),
        (pending(), "pending", True),
        (refusal(404, "no such error"), "not_attempted", False),
        (refusal(503), "pending", False),
    ],
)
def test_no_more_is_claimed_than_is_known(
    service: ScriptedService, row: ErrorLog, answer: Any, status: str, attempted: bool
) -> None:
    service.on_recovery(answer)
    result = trigger_manual_recovery(str(row.error_id))
    assert result["success"] is False
    assert (result["recovery"]["status"], result["recovery"]["attempted"]) == (status, attempted)
    row.refresh_from_db()
    assert not row.resolved


def test_a_later_pending_does_not_hide_what_is_known(service: ScriptedService, row: ErrorLog) -> None:
    service.on_recovery(recovered("retry"), pending())
    for _ in range(2):
        trigger_manual_recovery(str(row.error_id))
    row.refresh_from_db()
    assert row.context["recovery_success"] is True


def test_this_process_applies_and_probes(service: ScriptedService, row: ErrorLog) -> None:
    service.on_recovery(apply(directive("pool_increase", max_size=6)))
    service.on_result(probe())
    result = trigger_manual_recovery(str(row.error_id))
    assert service.recoveries[0].body["waiter"]["can"] == ["apply", "probe"]
    assert service.results[0].result["acknowledgements"][0]["status"] == "applied"
    # The pool worked before as well, so that proves nothing; asked for by itself, it does.
    assert [(one.evidence or {})["outcome"] for one in service.results] == ["inconclusive", "passed"]
    assert result["success"]


def test_without_a_service_nothing_is_attempted(row: ErrorLog) -> None:
    result = trigger_manual_recovery(str(row.error_id))
    assert (result["success"], result["recovery"]["attempted"]) == (False, False)
    assert "no service is configured" in result["recovery"]["message"]


def test_it_takes_no_longer_than_the_time_it_has(service: ScriptedService, row: ErrorLog, settings) -> None:
    settings.ERROR_RECOVERY_TIMEOUT = 200
    service.on_recovery(silence())
    assert trigger_manual_recovery(str(row.error_id))["recovery"]["status"] == "pending"
    assert waiting.waiters() == 0


@pytest.mark.parametrize("environment", ["production", "staging"])
def test_rows_with_little_in_them(service: ScriptedService, settings, environment: str) -> None:
    settings.ENVIRONMENT = environment
    row = ErrorLog(error_type="")
    row.service = "a service / of old"
    row.timestamp = timezone.now() - timedelta(days=400)
    row.save()
    service.on_recovery(recovered())
    assert trigger_manual_recovery(str(row.error_id))["success"]
    body = service.recoveries[0].body
    assert (body["service"], body["error"]["type"], body["environment"]) == ("django", "Exception", environment)


def test_inside_a_transaction_its_rows_are_seen(service: ScriptedService) -> None:
    service.on_recovery(recovered())
    with transaction.atomic():
        row = ErrorLog.objects.create(error_type="TimeoutError")
        assert trigger_manual_recovery(str(row.error_id))["success"]
    row.refresh_from_db()
    assert row.resolved


@pytest.mark.django_db(transaction=True)
def test_outside_of_one_too(service: ScriptedService) -> None:
    row = ErrorLog.objects.create(error_type="TimeoutError")
    service.on_recovery(recovered())
    assert trigger_manual_recovery(str(row.error_id))["success"]
    row.refresh_from_db()
    assert row.resolved


def test_a_database_that_does_not_answer_is_told(service: ScriptedService, row: ErrorLog) -> None:
    def down(*_: Any) -> Any:
        raise OperationalError("connection refused")

    with connection.execute_wrapper(down):
        result = trigger_manual_recovery(str(row.error_id))
    assert (result["success"], result["recovery"]["attempted"]) == (False, False)
    assert "can't be read" in result["recovery"]["message"]


def test_a_fault_of_ours_is_told(
    service: ScriptedService, row: ErrorLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(exchange, "run", broken)
    result = trigger_manual_recovery(str(row.error_id))
    assert result["success"] is False
    assert "Upright failed" in caplog.text
    assert waiting.waiters() == 0
