"""timeout_increase: the statement timeout of a PostgreSQL database, for the statements of this process, or the read
timeout of an HTTP client that the application has registered.

The former is set inside each transaction (`SET LOCAL`), never for the session, which would leak through the pool to
another request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from django.db import connections, transaction

from error_logging import http_clients
from error_logging.actuators.base import Change, NotSupported, whole

_timeouts: dict[str, int] = {}
"""Statement timeout in ms, by alias, while a directive is in force."""
_PLAIN = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH|VALUES|TABLE|MERGE)\b", re.IGNORECASE)
"""Statements that may run in a transaction of their own; VACUUM and the like may not."""
_OWN_SET = re.compile(
    r"\s*SET\b.*\bstatement_timeout\b|.*\bset_config\s*\(\s*'statement_timeout'", re.IGNORECASE | re.DOTALL
)


def active() -> bool:
    return bool(_timeouts)


def supported(alias: str) -> bool:
    return connections[alias].vendor == "postgresql"


def prepare() -> None:
    """See that this thread's connections obey. Costs a comparison for each database in question."""
    for alias in tuple(_timeouts):
        wrappers = connections[alias].execute_wrappers
        if _execute not in wrappers:
            wrappers.append(_execute)


class TimeoutIncrease:
    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        timeout_ms = whole(values, "timeout_ms", 1, 3_600_000)
        if target.startswith(http_clients.PREFIX):
            return _raise_client(_client(target), timeout_ms)
        if target not in connections.settings or not supported(target):
            raise NotSupported(f"database {target!r} is not PostgreSQL")
        before = _measured(target)
        earlier = _timeouts.get(target)
        _timeouts[target] = timeout_ms
        try:
            prepare()
            after = _measured(target)
            if after["statement_timeout_ms"] != timeout_ms:
                raise RuntimeError(
                    f"the database says {after['statement_timeout_ms']} ms after it was set to {timeout_ms}"
                )
        except BaseException:
            # What is not acknowledged as applied is held by nobody, so nothing would ever end it.
            _put_back(target, earlier)
            raise
        return Change(before, after)

    def revert(self, target: str) -> Change:
        if target.startswith(http_clients.PREFIX):
            client = _client(target)
            before = {"timeout_ms": client.in_force_ms}
            http_clients.raised.pop(client.name, None)
            return Change(before, {"timeout_ms": client.in_force_ms})
        before = {"statement_timeout_ms": _timeouts.pop(target, None)}
        try:
            return Change(before, _measured(target))
        except Exception as error:
            # It has ended all the same: it was never in the database, only with each statement of this process.
            return Change(before, {}, f"not measured: {type(error).__name__}")


def _put_back(target: str, earlier: int | None) -> None:
    if earlier is None:
        _timeouts.pop(target, None)
    else:
        _timeouts[target] = earlier


def _client(target: str) -> http_clients.HTTPClient:
    client = http_clients.registered.get(target.removeprefix(http_clients.PREFIX))
    if client is None:
        raise NotSupported(f"no HTTP client {target.removeprefix(http_clients.PREFIX)!r} is registered in this process")
    return client


def _raise_client(client: http_clients.HTTPClient, timeout_ms: int) -> Change:
    before = client.in_force_ms
    if client.timeout_ms is None:
        raise NotSupported(f"no request of the HTTP client {client.name!r} has a read timeout")
    if timeout_ms < client.timeout_ms:
        raise ValueError(f"timeout_ms {timeout_ms} is below the client's own {client.timeout_ms}")
    http_clients.raised[client.name] = timeout_ms
    return Change({"timeout_ms": before}, {"timeout_ms": client.in_force_ms})


def _measured(alias: str) -> dict[str, Any]:
    """The timeout that a statement of this process has now."""
    connection = connections[alias]
    fresh = connection.connection is None
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM current_setting('statement_timeout')::interval) * 1000")
            row = cursor.fetchone()
    finally:
        if fresh and not connection.in_atomic_block:
            connection.close()
    return {"statement_timeout_ms": round(float(row[0])) if row else None}


def _execute(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Mapping[str, Any]) -> Any:
    """An execute wrapper of Django's: gives the statement its timeout."""
    connection: Any = context["connection"]
    timeout_ms = _timeouts.get(connection.alias)
    text = sql if isinstance(sql, str) else ""
    if timeout_ms is None:
        return execute(sql, params, many, context)
    if _OWN_SET.match(text):
        # The view knows better: its own setting holds for as long as it meant it to.
        result = execute(sql, params, many, context)
        connection.upright_own_timeout = (_scope(connection), _setting(connection))
        return result
    if _is_own(connection):
        return execute(sql, params, many, context)
    if connection.in_atomic_block:
        if not connection.needs_rollback:
            _set_local(connection, timeout_ms)
        return execute(sql, params, many, context)
    if not _PLAIN.match(text):
        return execute(sql, params, many, context)
    with transaction.atomic(using=connection.alias):
        _set_local(connection, timeout_ms)
        return execute(sql, params, many, context)


def _is_own(connection: Any) -> bool:
    """Whether the timeout that a statement has now is still the one that the view set. Asked of the database, since a
    transaction, a savepoint or a RESET ends it unseen."""
    scope, setting = getattr(connection, "upright_own_timeout", (None, None))
    if scope is None or scope is not _scope(connection):
        return False
    if connection.needs_rollback or _setting(connection) == setting:
        return True
    connection.upright_own_timeout = (None, None)
    return False


def _scope(connection: Any) -> Any:
    """What a SET of the view's own lives as long as, at most: the outermost block, or the session."""
    return connection.atomic_blocks[0] if connection.in_atomic_block else connection.connection


def _setting(connection: Any) -> str:
    return _ask(connection, "SELECT current_setting('statement_timeout')", [])


def _set_local(connection: Any, timeout_ms: int) -> None:
    _ask(connection, "SELECT set_config('statement_timeout', %s, true)", [str(timeout_ms)])


def _ask(connection: Any, sql: str, parameters: list[str]) -> str:
    # Past Django's cursors, which would call the wrapper again; its exceptions are what the application knows.
    with connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return str(cursor.fetchone()[0])
