"""Recording an error: into the spool when it is caught, as a row and a delivery when the caller has its answer.

Nothing here raises, and nothing takes longer than the settings allow.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from uuid import UUID

from django.db import connections, transaction

from error_logging import client, counters, drain, process, rows
from error_logging.conf import current
from error_logging.record import Record
from error_logging.rows import local_report, unreported
from error_logging.spool import SpoolFull

__all__ = [
    "Record", "apply_answer", "apply_outcome", "capture", "finish", "finish_later", "local_report", "unreported",
    "write_deferred",
]  # fmt: skip

logger = logging.getLogger("error_logging")

UPDATE_TIMEOUT_S = 5.0
MISSING_ROW_S = 60.0
"""How long an outcome is kept for a row that isn't there."""

_deferred = threading.local()
_missing: dict[str, float] = {}


def capture(event: dict[str, Any], *, began: float) -> Record:
    """Spool the event. The caller owns its delivery until `finish` or `finish_later`; `began` is time.monotonic() at
    the start of the failed operation."""
    record = Record(str(event["error_id"]), event, began=began, spool=None)
    record.owned = True
    counters.add("captured")
    try:
        drain.start()
        record.wants_row = not rows.in_test_transaction()
        record.wants_delivery = current().delivers and not client.gone()
        spool = drain.spool_now()
        if spool is not None:
            spool.put(record.error_id, record.payload())
            record.spool = spool
    except SpoolFull as full:
        _log_sometimes("spool_full", "%s was not spooled: %s", record.error_id, full)
    except Exception:
        counters.add("spool_failures")
        logger.exception("%s was not spooled", record.error_id)
    return record


def finish(record: Record, *, answer: dict[str, Any] | None, delivered: bool) -> None:
    """Write the row, with the answer if there is one, and leave to the drainer what is not delivered.

    Waits for the row at most UPRIGHT_LOG_TIMEOUT_MS, and not at all while the database is known to be unwell.
    """
    _conclude(record, answer, delivered, wait_s=current().log_timeout_ms / 1000)


def finish_later(record: Record, *, answer: dict[str, Any] | None = None, delivered: bool = False) -> None:
    """The same without waiting, for code inside an atomic block. In a TestCase the row is written again when the
    request is over, should the block be rolled back."""
    _conclude(record, answer, delivered, wait_s=0.0)


def apply_answer(error_id: str, answer: dict[str, Any]) -> bool:
    """Put an answer into the row of a past error, on the caller's own connection where only that can see the row."""
    report = answer.get("recovery")
    if not isinstance(report, dict):
        return False

    def update() -> int:
        return rows.update(error_id, report=report, severity=answer.get("severity"))

    try:
        if rows.in_test_transaction():
            return _inline(update) == 1
        drain.start()
        written = drain.writer.call(update, timeout_s=UPDATE_TIMEOUT_S)
        if written == 0 and connections[rows.alias()].in_atomic_block:
            written = _inline(update)
    except Exception:
        counters.add("row_failures")
        logger.exception("The answer for %s was not written", error_id)
        return False
    return written == 1


def apply_outcome(outcome: dict[str, Any]) -> bool:
    """Put a late outcome into its row: an UPDATE, on the writer's connection, never an INSERT.

    True when there is no more to do with it. False: it should come again, since the database doesn't answer or the row
    isn't written yet.
    """
    try:
        error_id, report = str(UUID(str(outcome["error_id"]))), outcome["report"]
        if not isinstance(report, dict):
            raise TypeError("report must be an object")
    except (KeyError, ValueError, TypeError):
        counters.add("outcomes_malformed")
        logger.exception("An outcome can't be read")
        return True
    try:
        drain.start()
        strategy = outcome.get("strategy")
        written = drain.writer.call(
            lambda: rows.update(error_id, report=report, strategy=strategy), timeout_s=UPDATE_TIMEOUT_S
        )
        if written is None:
            return False
        if written:
            _missing.pop(error_id, None)
            counters.add("outcomes_written")
            return True
        return _give_up(error_id)
    except Exception:
        counters.add("row_failures")
        logger.exception("The outcome for %s was not written", error_id)
        return False


def write_deferred(**_: object) -> None:
    """At the end of a request in a TestCase: rows whose block may have been rolled back meanwhile."""
    records: list[Record] = getattr(_deferred, "records", [])
    if not records:
        return
    _deferred.records = []
    for record in records:
        try:
            _inline(lambda record=record: rows.write([record]))
        except Exception:
            counters.add("row_failures")
            logger.exception("ErrorLog row of %s was not written", record.error_id)


def _conclude(record: Record, answer: dict[str, Any] | None, delivered: bool, *, wait_s: float) -> None:
    try:
        if answer is not None:
            record.answer = answer
        if rows.in_test_transaction():
            record.wants_row = False
            _write_in_test(record)
        elif record.wants_row:
            drain.writer.submit(record, wait_s=wait_s)
    except Exception:
        counters.add("row_failures")
        logger.exception("ErrorLog row of %s was not written", record.error_id)
    try:
        record.settle(release=True, delivery=delivered)
        if record.wants_delivery:
            drain.drainer.submit(record)
    except Exception:
        counters.add("drainer_failures")
        logger.exception("%s was not handed over for delivery", record.error_id)


def _write_in_test(record: Record) -> None:
    """On the test's own connection, inside its transaction, so that the row ends with the test."""
    inner = rows.in_inner_block()
    if inner:
        _deferred.records = [*getattr(_deferred, "records", []), record]
    try:
        _inline(lambda: rows.write([record]))
    except Exception:
        if not inner:
            raise


def _inline(work: Any) -> int:
    connection = connections[rows.alias()]
    if connection.in_atomic_block and connection.needs_rollback:
        raise transaction.TransactionManagementError("the block is to be rolled back")
    with transaction.atomic(using=rows.alias()):
        return work() or 0


def _give_up(error_id: str) -> bool:
    """Whether a row that isn't there is no longer waited for."""
    now = time.monotonic()
    since = _missing.setdefault(error_id, now)
    spool = drain.spool_now()
    if now - since < MISSING_ROW_S or (spool is not None and spool.holds(error_id)):
        return False
    _missing.pop(error_id, None)
    counters.add("outcomes_without_row")
    logger.warning("There is no ErrorLog row %s for an outcome", error_id)
    return True


def _log_sometimes(counter: str, message: str, *arguments: object) -> None:
    """The first, then every hundredth, with the count: a storm must not fill the log as well."""
    count = counters.add(counter)
    if count == 1 or count % 100 == 0:
        logger.error(message + " (%d so far)", *arguments, count)


def _renew() -> None:
    global _deferred
    _deferred = threading.local()


process.after_fork(_renew)
