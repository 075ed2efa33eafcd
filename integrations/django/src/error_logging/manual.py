"""trigger_manual_recovery: recover a past error again."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from django.db import DatabaseError

from error_logging import events, exchange, handling, probes, recording, waiting
from error_logging.models import ErrorLog
from error_logging.record import Record

logger = logging.getLogger("error_logging")


def trigger_manual_recovery(error_id: str | uuid.UUID) -> dict[str, Any]:
    """Recover an error of ErrorLog again, also one that someone wrote there by hand.

    Waits up to ERROR_RECOVERY_TIMEOUT ms; what comes later is written to the row.

    Returns:
        `{"success": …, "error_id": …, "recovery": {"attempted": …, "success": …, "message": …, "actions": […]}}`
    """
    named = str(error_id)
    try:
        row = ErrorLog.objects.filter(error_id=uuid.UUID(named)).first()
    except ValueError:
        row = None
    except DatabaseError:
        logger.exception("The recovery of %s was asked for, and ErrorLog can't be read", named)
        return _result(named, _not_attempted("Recovery not attempted: ErrorLog can't be read"))
    if row is None:
        return _result(named, _not_attempted("There is no such error"))
    try:
        return _result(str(row.error_id), _recover(row))
    except Exception:
        logger.exception("Upright failed while it recovered %s again", row.error_id)
        return _result(
            str(row.error_id),
            _not_attempted("Recovery not attempted: see the application's log"),
        )


def _recover(row: ErrorLog) -> dict[str, Any]:
    event = events.from_row(row)
    record = Record(str(row.error_id), event, began=time.monotonic(), spool=None)
    with waiting.place() as place:
        if not place:
            return handling.not_waited(record)["recovery"]
        waiting.give_back_connections()
        ended = exchange.run(
            record, replay=None, probe=probes.evidence_of(None, None, event),
            path=f"/v1/errors/{record.error_id}/recoveries",
        )  # fmt: skip
    if ended.delivered:
        recording.apply_answer(record.error_id, ended.answer)
    return ended.answer["recovery"]


def _not_attempted(message: str) -> dict[str, Any]:
    return recording.local_report(message, status="not_attempted")


def _result(error_id: str, report: dict[str, Any]) -> dict[str, Any]:
    return {"success": bool(report.get("success")), "error_id": error_id, "recovery": report}
