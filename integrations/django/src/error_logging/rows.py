"""Records and answers as rows of ErrorLog, written with the calling thread's connection."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from django.apps import apps
from django.conf import settings
from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend
from django.utils.timezone import make_naive

from error_logging.conf import current
from error_logging.record import Record

if TYPE_CHECKING:
    from error_logging.models import ErrorLog

logger = logging.getLogger("error_logging")

CONNECT_TIMEOUT_S = 1
LOCK_TIMEOUT_MS = 1_000
STATEMENT_TIMEOUT_MS = 3_000
FINAL = ("recovered", "not_recovered", "unknown", "cancelled", "relapsed")
NOT_TRIED = ("skipped", "refused")

_OWN = "upright_own"


def alias() -> str:
    """The database that ErrorLog is written to."""
    return router.db_for_write(model())


def model() -> type[ErrorLog]:
    # Looked up when used: this module may be imported before the apps are ready.
    return cast("type[ErrorLog]", apps.get_model("error_logging", "ErrorLog"))


def identity() -> str:
    """Names the database, so that one process's spooled events don't become rows of another's."""
    entry = connections.settings[alias()]
    return f"{entry['ENGINE']}|{entry['NAME']}"


def in_test_transaction() -> bool:
    """Whether this thread is inside a TestCase's transaction, or on a database that no other connection can write."""
    connection = connections[alias()]
    if any(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks):
        return True
    return connection.vendor == "sqlite" and bool(cast(Any, connection).is_in_memory_db())


def in_inner_block() -> bool:
    """Whether a block inside the test's own transaction may still be rolled back."""
    return any(not getattr(block, "_from_testcase", False) for block in connections[alias()].atomic_blocks)


def write(records: Sequence[Record]) -> None:
    """Write rows, idempotently: one that is there already keeps what it says, unless this record knows the answer."""
    using = alias()
    unique = {record.error_id: record for record in records}.values()
    plain = [_row(record) for record in unique if record.answer is None]
    answered = [_row(record) for record in unique if record.answer is not None]
    objects = model().objects.using(using)
    with transaction.atomic(using=using):
        limit_time(connections[using])
        if plain:
            objects.bulk_create(plain, ignore_conflicts=True)
        if answered:
            with_target = connections[using].features.supports_update_conflicts_with_target
            objects.bulk_create(
                answered,
                update_conflicts=True,
                update_fields=["severity", "context", "resolved"],
                unique_fields=["error_id"] if with_target else None,
            )


def update(error_id: str, *, report: dict[str, Any], strategy: str | None = None, severity: str | None = None) -> int:
    """Put a recovery's report into the row, if the row is there: the number of rows, 0 or 1.

    Never inserts. A pending report does not take the place of a final one.
    """
    using = alias()
    with transaction.atomic(using=using):
        limit_time(connections[using])
        rows = model().objects.using(using).select_for_update().filter(error_id=UUID(error_id))
        row = rows.only("id", "context", "severity", "resolved").order_by().first()
        if row is None:
            return 0
        if report.get("status") not in FINAL and row.recovery.get("status") in FINAL:
            return 1
        row.context = {**row.told, **recovery_context(report, strategy)}
        row.resolved = report.get("status") == "recovered"
        if severity:
            row.severity = severity
        row.save(using=using, update_fields=["context", "resolved", "severity"])
    return 1


def recovery_context(report: dict[str, Any], strategy: str | None = None) -> dict[str, Any]:
    """What ErrorLog.context tells of a recovery."""
    return {
        "recovery_attempted": bool(report.get("attempted")),
        "recovery_success": bool(report.get("success")),
        "recovery_strategy": strategy or strategy_of(report),
        "recovery": report,
    }


def strategy_of(report: dict[str, Any]) -> str | None:
    """The strategy that recovered, else the last one tried."""
    actions = [action for action in report.get("actions") or [] if isinstance(action, dict)]
    recovered = [action.get("strategy") for action in actions if action.get("success")]
    tried = [action.get("strategy") for action in actions if action.get("verdict") not in NOT_TRIED]
    return (recovered or tried or [None])[-1]


def _row(record: Record) -> ErrorLog:
    event = record.event
    error, request = event["error"], event.get("request") or {}
    report = (record.answer or {}).get("recovery") or unreported()
    details = {"classes": error["classes"], "frames": error["frames"], "instance": event["instance"]}
    if request:
        details["request"] = request
    if event.get("measurements"):
        details["measurements"] = event["measurements"]
    occurred = datetime.fromisoformat(event["occurred_at"])
    return model()(
        error_id=UUID(record.error_id),
        service=event["service"],
        error_type=error["type"],
        severity=record.severity,
        message=error["message"],
        context={**event["context"], **recovery_context(report)},
        resolved=report.get("status") == "recovered",
        timestamp=occurred if settings.USE_TZ else make_naive(occurred, UTC),
        environment=event["environment"],
        route=request.get("route", "")[:500],
        method=request.get("method", "")[:20],
        details=details,
    )


def local_report(message: str, *, status: str = "pending") -> dict[str, Any]:
    """A RecoveryReport for an error that no service has taken: `pending` where it is still to be delivered, else
    `not_attempted`, which the service never says."""
    return {"attempted": False, "success": False, "status": status, "message": message, "actions": []}


def unreported() -> dict[str, Any]:
    """The report of an error of which the service has not spoken, by what the settings say."""
    conf = current()
    if conf.delivers:
        return local_report("Recovery pending")
    why = "it is switched off" if not conf.enabled else "no service is configured"
    return local_report(f"Recovery not attempted: {why}", status="not_attempted")


def limit_time(connection: BaseDatabaseWrapper) -> None:
    """On a connection of ours, for this transaction only: a session's setting would leak through a pooler to the
    application."""
    if connection.vendor != "postgresql" or not getattr(connection, _OWN, False):
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
            [f"{LOCK_TIMEOUT_MS}ms", f"{STATEMENT_TIMEOUT_MS}ms"],
        )


def use_own_connection() -> BaseDatabaseWrapper:
    """Give this thread a connection of its own, outside the application's pool, which is empty exactly when errors
    come; it connects when first used, and gives up soon."""
    using = alias()
    entry = copy.deepcopy(connections.settings[using])
    options = dict(entry.get("OPTIONS") or {})
    options.pop("pool", None)
    backend = load_backend(entry["ENGINE"]).DatabaseWrapper
    if backend.vendor == "postgresql":
        options |= {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": 5_000}
    elif backend.vendor == "mysql":
        options |= {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": 5, "write_timeout": 5}
    elif backend.vendor == "sqlite":
        options["timeout"] = LOCK_TIMEOUT_MS / 1000
    entry |= {"OPTIONS": options, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False, "AUTOCOMMIT": True}
    connection = backend(entry, using)
    setattr(connection, _OWN, True)
    connections[using] = connection
    return connection
