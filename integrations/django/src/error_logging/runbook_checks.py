"""Checks that a runbook asks of this application: a query, or a function that the project has registered.

A query comes from the service. So it runs only on databases that UPRIGHT_SQL_CHECKS names, reads only, and its result
never leaves this process: only whether it is as expected.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django.db import connections, transaction
from django.db.utils import DatabaseError, OperationalError

from error_logging import actuators, probes
from error_logging.conf import current

Evidence = dict[str, Any]
ONE_QUERY = re.compile(r"\s*(?:select|with|show|values)\b[^;]*;?\s*", re.IGNORECASE)


class Refused(Exception):
    """Why it is not carried out."""


def carry_out(check: Mapping[str, Any]) -> Evidence:
    """What a check shows. Raises Refused."""
    kind = check.get("kind")
    began = time.monotonic()
    actuators.prepare_thread()
    if kind == "check":
        probe = probes.registered().get(str(check.get("name")))
        if probe is None:
            raise Refused(f"no check {check.get('name')!r} is registered here")
        return {**probes.run(probe), "kind": "check"}
    if kind != "sql":
        raise Refused(f"this process knows no check of kind {kind!r}")
    outcome, detail = _sql(check)
    took_ms = round((time.monotonic() - began) * 1000, 1)
    return {"kind": "sql", "outcome": outcome, "detail": detail, "attempts": 1, "duration_ms": took_ms}


def _sql(check: Mapping[str, Any]) -> tuple[str, str]:
    alias, query = str(check.get("database")), str(check.get("query"))
    if alias not in current().sql_checks:
        raise Refused(f"UPRIGHT_SQL_CHECKS does not name {alias}")
    if not ONE_QUERY.fullmatch(query):
        raise Refused("it is not one query that reads")
    timeout_ms = max(1, round(float(check.get("timeout_s") or 5) * 1000))
    try:
        with transaction.atomic(using=alias):
            connection = connections[alias]
            with connection.cursor() as cursor:
                if connection.vendor == "postgresql":
                    cursor.execute("SET TRANSACTION READ ONLY")
                    cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{timeout_ms}ms"])
                cursor.execute(query)
                row = cursor.fetchone()
            transaction.set_rollback(True, using=alias)
    except OperationalError as error:
        return "failed", f"the database did not answer: {type(error).__name__}"
    except DatabaseError as error:
        return "inconclusive", f"the query is not accepted: {type(error).__name__}"
    if row is None:
        return "failed", "the query found no row"
    return (
        ("passed", "it is as expected") if same(row[0], check.get("expected")) else ("failed", "it is not as expected")
    )


def same(found: Any, expected: Any) -> bool:
    """As a person who wrote the expected value into a file means it: 1 is not true, and 1 is 1.0."""
    if isinstance(found, bool) or isinstance(expected, bool) or found is None or expected is None:
        return found is expected
    if isinstance(found, int | float | Decimal):
        return not isinstance(expected, str) and float(found) == float(expected)
    return str(found) == str(expected)
