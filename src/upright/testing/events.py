"""Events as an application sends them, for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from upright.domain.event import ErrorDetail, Event, RequestDetail, Waiter

DJANGO_OPERATIONAL_ERROR = (
    "django.db.utils.OperationalError",
    "django.db.utils.DatabaseError",
    "django.db.utils.Error",
)
POOL_TIMEOUT = ("psycopg_pool.PoolTimeout", "psycopg.OperationalError", "psycopg.DatabaseError", "psycopg.Error")

EXHAUSTED = {
    "pools": {
        "default": {"min": 1, "max": 2, "size": 2, "available": 0, "requests_waiting": 3, "connections_errors": 0}
    },
    "databases": {
        "default": {"vendor": "postgresql", "max_connections": 100, "reserved_connections": 3, "other_connections": 7}
    },
}
"""Measurements of a pool that ran out, on a server that has room."""

CANCELLED_FOR_TIMEOUT = {
    "query_cancelled": "statement_timeout",
    "databases": {"default": {"vendor": "postgresql", "statement_timeout_ms": 400}},
}

ALL_COMMANDS = ["apply", "replay", "retry", "probe"]


def error_event(
    *chains: tuple[str, ...],
    service: str = "django",
    message: str = "it failed",
    measurements: dict[str, Any] | None = None,
    request: RequestDetail | None = None,
    waits: bool = True,
    **fields: Any,
) -> Event:
    """One error with its causes: a tuple of qualified class names, nearest first, for each exception of the chain."""
    classes = [list(chain) for chain in chains] or [["builtins.ValueError"]]
    return Event(
        error_id=uuid4(),
        service=service,
        instance="host:1:boot",
        occurred_at=datetime.now(UTC),
        error=ErrorDetail(type=classes[0][0].rpartition(".")[2], message=message, classes=classes),
        request=request or page(),
        measurements=measurements or {},
        waiter=Waiter(budget_ms=5000, can=ALL_COMMANDS) if waits else None,
        **fields,
    )


def page(method: str = "GET", **fields: Any) -> RequestDetail:
    given: dict[str, Any] = {
        "route": "report/<int:year>/",
        "path": "/report/2026/",
        "view": "shop.views.report",
        "replayable": True,
    }
    return RequestDetail(method=method, **{**given, **fields})
