"""pool_increase: the maximum of a psycopg pool in this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from django.db import connections

from error_logging.actuators.base import Change, NotSupported, whole
from error_logging.measurements import pool_numbers

logger = logging.getLogger("error_logging")

CHECK_WAIT_S = 1.0


def configured(alias: str) -> bool:
    connection: Any = connections[alias]
    return connection.vendor == "postgresql" and bool((connection.settings_dict.get("OPTIONS") or {}).get("pool"))


class PoolIncrease:
    def __init__(self) -> None:
        self._original: dict[str, tuple[Any, int]] = {}
        """The pool, and its maximum before the first change, by alias."""

    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        size = whole(values, "max_size", 1, 10_000)
        pool = _pool(target)
        before = _numbers(target)
        if size < pool.min_size:
            raise ValueError(f"max_size {size} is below the pool's minimum of {pool.min_size}")
        if self._original.get(target, (None, 0))[0] is not pool:
            self._original[target] = (pool, pool.max_size)
        pool.resize(pool.min_size, size)
        _serve_waiting(pool)
        return Change(before, _numbers(target))

    def revert(self, target: str) -> Change:
        pool = _pool(target)
        before = _numbers(target)
        changed, original = self._original.pop(target, (None, 0))
        if changed is pool:  # and not one that the application has made since, as it is configured
            pool.resize(pool.min_size, original)
        after = _numbers(target)
        left = max(0, after["size"] - after["max_size"])
        note = f"{left} connections above the maximum leave as they become idle" if left else ""
        return Change(before, after, note)


def _pool(alias: str) -> Any:
    if alias not in connections.settings or not configured(alias):
        raise NotSupported(f"database {alias!r} has no connection pool in this process")
    connection: Any = connections[alias]
    return connection.pool


def _numbers(alias: str) -> dict[str, int]:
    numbers = pool_numbers(alias)
    return {"max_size": numbers["max"], "size": numbers["size"], "requests_waiting": numbers["requests_waiting"]}


def _serve_waiting(pool: Any) -> None:
    """Requests that wait already are only served when a connection is added or comes back: a check makes one do so. It
    may block on a broken connection, and so runs beside."""

    def check() -> None:
        try:
            pool.check()
        except Exception:
            logger.debug("the pool's check failed", exc_info=True)

    thread = threading.Thread(target=check, name="upright-pool-check", daemon=True)
    thread.start()
    thread.join(CHECK_WAIT_S)
