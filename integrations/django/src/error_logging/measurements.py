"""Measurements: what the process can tell of itself when an error is caught. Never any I/O in `of`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.cache import caches
from django.db import connections

from error_logging import breakers, cache_kinds, celery, circuits, http_clients
from error_logging.classification import chain as chain_of
from error_logging.conf import current

logger = logging.getLogger("error_logging")

CANCELLED = {"57014": "statement_timeout", "55P03": "lock_timeout"}
CONNECT_TIMEOUT_S = 2
LONGEST_RETRY_AFTER_S = 3600.0
_CACHE_MODULES = ("django.core.cache.backends.", "django_redis.", "django_valkey.")
_POOL_KEYS = {
    "pool_min": "min",
    "pool_max": "max",
    "pool_size": "size",
    "pool_available": "available",
    "requests_waiting": "requests_waiting",
    "requests_errors": "requests_errors",
    "connections_errors": "connections_errors",
}
_databases: dict[str, dict[str, Any]] = {}
_opened: dict[str, Any] = {}
"""Pools that are there because Upright needed a connection before the application did, by alias."""
_left_behind: list[Any] = []


def of(exc: BaseException) -> dict[str, Any]:
    """Readings that belong to an exception: docs/protocol.md lists the keys."""
    found: dict[str, Any] = of_process()
    chain = list(chain_of(exc))
    for name, read in (
        ("cache", _cache), ("query_cancelled", _cancelled), ("upstream", _upstream), ("retry_after_s", _retry_after),
        ("task", celery.task_of),
    ):  # fmt: skip
        value = next((value for one in chain if (value := _safely(read, one)) is not None), None)
        if value is not None:
            found[name] = value
    return found


def of_process() -> dict[str, Any]:
    """The pools as they are now, and the databases as the agent last read them."""
    found: dict[str, Any] = {}
    pools = {alias: numbers for alias in current().databases if (numbers := pool_numbers(alias))}
    if pools:
        found["pools"] = pools
    if _databases:
        found["databases"] = dict(_databases)
    if queues := celery.readings():
        found["queues"] = queues
    if clients := http_clients.readings():
        found["http_clients"] = clients
    if circuits.active():
        found["circuits"] = dict(circuits.measured())
    return found


def pool_of(alias: str) -> Any:
    """The process's open pool of a database, or None. Opens none."""
    pools: Mapping[str, Any] = getattr(type(connections[alias]), "_connection_pools", {})
    return pools.get(alias)


@contextlib.contextmanager
def opening_pools() -> Iterator[None]:
    """Around work of Upright's own: a pool that is new afterwards is its own too, and stays with this process."""
    before = {alias: pool_of(alias) for alias in current().databases}
    try:
        yield
    finally:
        for alias, pool in before.items():
            made = pool_of(alias)
            if pool is None and made is not None:
                _opened[alias] = made


def leave_pools_behind() -> set[str]:
    """In a forked child: it makes pools of its own in the place of those that Upright opened before the fork, whose
    connections are the parent's. The aliases in question.

    gunicorn --preload forks a process in which the agent runs. What the application opened is its own affair.
    """
    left = {alias: pool for alias, pool in _opened.items() if pool_of(alias) is pool}
    for alias, pool in left.items():
        connection: Any = connections[alias]
        type(connection)._connection_pools.pop(alias, None)
        # Kept, lest the garbage collector hang up on the parent's server.
        _left_behind.extend((pool, connection.connection))
        connection.connection = None
    _opened.clear()
    return set(left)


def pool_numbers(alias: str) -> dict[str, int]:
    pool = pool_of(alias)
    if pool is None:
        return {}
    stats: Mapping[str, int] = pool.get_stats()
    return {ours: int(stats.get(theirs, 0)) for theirs, ours in _POOL_KEYS.items()}


def read_databases() -> dict[str, dict[str, Any]]:
    """Ask each PostgreSQL server for its limits, on a short-lived connection outside the pool; remembers them."""
    for alias in current().databases:
        if connections[alias].vendor != "postgresql":
            continue
        try:
            _databases[alias] = _read_database(alias)
        except Exception as error:
            logger.debug("Upright can't read the figures of database %s: %s", alias, error)
    return dict(_databases)


def _read_database(alias: str) -> dict[str, Any]:
    wrapper: Any = connections[alias]
    parameters: dict[str, Any] = dict(wrapper.get_connection_params())
    # What belongs to Django's wrapper and not to a connection.
    for name in ("pool", "server_side_binding", "assume_role", "isolation_level", "cursor_factory", "context"):
        parameters.pop(name, None)
    import psycopg

    parameters |= {"connect_timeout": CONNECT_TIMEOUT_S, "autocommit": True}
    with psycopg.connect(**parameters) as connection:
        row = connection.execute(
            """
            SELECT
              (SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'),
              (SELECT setting::int FROM pg_settings WHERE name = 'max_connections'),
              (SELECT coalesce(sum(setting::int), 0) FROM pg_settings
                WHERE name IN ('superuser_reserved_connections', 'reserved_connections')),
              (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
                AND datname = current_database() AND usename = current_user
                AND application_name = current_setting('application_name')),
              (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())
            """
        ).fetchone()
    if row is None:
        return {}
    timeout, limit, reserved, own, everyone = (int(value) for value in row)
    return {
        "vendor": "postgresql",
        "statement_timeout_ms": timeout,
        "max_connections": limit,
        "reserved_connections": reserved,
        "connections": own,
        "other_connections": everyone - own,
    }


def _cache(exc: BaseException) -> dict[str, Any] | None:
    """The key that a cache backend was asked for, as the application names it: the outermost such frame."""
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(_CACHE_MODULES):
            values = frame.f_locals
            key = values.get("key")
            backend: Any = values.get("self")
            alias = _alias_of(backend)
            if isinstance(key, str) and alias is not None:
                # By now the backend may have put its prefix and version before the application's key.
                made = str(backend.make_key("", version=values.get("version")))
                key = key.removeprefix(made) if made else key
                prefix = str(getattr(backend, "key_prefix", ""))[:100]
                return {"alias": alias, "key": key[:250], "prefix": prefix, "kind": cache_kinds.kind(alias)}
        traceback = traceback.tb_next
    return None


def _alias_of(backend: Any) -> str | None:
    made: Any = caches._connections  # pyright: ignore[reportAttributeAccessIssue]
    for alias in settings.CACHES:
        # Only those that this thread has made: to ask for another one would make it.
        if getattr(made, alias, None) is backend:
            return str(alias)
    return None


def _cancelled(exc: BaseException) -> str | None:
    state = getattr(exc, "sqlstate", None)
    if state == "57014" and "statement timeout" not in str(exc):
        return None
    return CANCELLED.get(state) if isinstance(state, str) else None


def _upstream(exc: BaseException) -> dict[str, Any] | None:
    peer, client = _peer(exc), http_clients.client_of(exc)
    return peer if peer is None or client is None else {**peer, "client": client}


def _peer(exc: BaseException) -> dict[str, Any] | None:
    guarded = breakers.peer_of(exc)
    if guarded is not None:
        return {"host": guarded[0], "port": guarded[1], "guarded": True}
    for address in _addresses(exc):
        parts = urlsplit(address)
        if parts.hostname:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            return {"host": parts.hostname, "port": port}
    # urllib3 has a connection or a pool; those with a connection warn of `pool`.
    peer: Any = getattr(exc, "conn", None) or getattr(exc, "pool", None)
    if isinstance(getattr(peer, "host", None), str) and isinstance(getattr(peer, "port", None), int):
        return {"host": peer.host, "port": peer.port}
    return None


def _addresses(exc: BaseException) -> Iterator[str]:
    for holder in ("request", "response"):
        try:
            url = getattr(getattr(exc, holder, None), "url", None)
        except RuntimeError:  # httpx raises where no request was set
            continue
        if url is not None:
            yield str(url)


def _retry_after(exc: BaseException) -> float | None:
    headers: Any = getattr(getattr(exc, "response", None), "headers", None)
    if headers is None:
        headers = getattr(exc, "headers", None)  # urllib.error.HTTPError
    value = headers.get("retry-after") if hasattr(headers, "get") else None
    if not isinstance(value, str):
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_RETRY_AFTER_S)
    # A date is meant on the peer's own clock, which its `Date` tells.
    until, now = _date(value), _date(headers.get("date")) or datetime.now(UTC)
    return None if until is None else min(max(0.0, (until - now).total_seconds()), LONGEST_RETRY_AFTER_S)


def retry_after(exc: BaseException) -> float | None:
    """Seconds that the peer asks to wait, by the exception or one of its causes."""
    return next((value for one in chain_of(exc) if (value := _safely(_retry_after, one)) is not None), None)


def _date(text: object) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo is not None else found.replace(tzinfo=UTC)


def _safely(read: Any, exc: BaseException) -> Any:
    try:
        return read(exc)
    except Exception:
        logger.debug("Upright could not read something of an error", exc_info=True)
        return None
