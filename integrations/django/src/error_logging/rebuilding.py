"""Rebuilding: a value that is missing is made by one caller, while the others wait for it.

After a `cache_clear` many callers miss the same key at once; without this, each of them makes it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT

LOCK_SUFFIX = ":upright-rebuild"
LOCK_S = 30
"""For how long one that died while it made a value holds the others up, unless their patience ends before."""
PATIENCE_S = 10.0
FIRST_LOOK_S, LAST_LOOK_S = 0.005, 0.1

_MISSING = object()


def get_or_rebuild(
    cache: Any,
    key: str,
    default: Any,
    timeout: float | None = DEFAULT_TIMEOUT,  # type: ignore[assignment]
    version: int | None = None,
    *,
    patience_s: float = PATIENCE_S,
) -> Any:
    """As Django's `cache.get_or_set`, but that one caller makes a missing value, over all processes that share the
    cache. Where it fails, or takes longer than `patience_s`, the next one makes it.

    `default` is the value, or a callable that makes it.
    """
    found = cache.get(key, _MISSING, version=version)
    if found is not _MISSING:
        return found
    if not callable(default):
        cache.add(key, default, timeout=timeout, version=version)
        return cache.get(key, default, version=version)
    lock, token, until, pause_s = key + LOCK_SUFFIX, uuid.uuid4().hex, time.monotonic() + patience_s, FIRST_LOOK_S
    while not (mine := cache.add(lock, token, timeout=LOCK_S, version=version)) and time.monotonic() < until:
        time.sleep(pause_s)
        pause_s = min(LAST_LOOK_S, pause_s * 2)
        found = cache.get(key, _MISSING, version=version)
        if found is not _MISSING:
            return found
    try:
        # Whoever had the lock before may have made it between our look and our turn.
        found = cache.get(key, _MISSING, version=version)
        return found if found is not _MISSING else _made(cache, key, default, timeout, version)
    finally:
        if mine and cache.get(lock, version=version) == token:
            cache.delete(lock, version=version)


class RebuiltOnce:
    """For a cache backend, before Django's own: its `get_or_set` has a missing value made by one caller.

    class Cache(RebuiltOnce, RedisCache): ...
    """

    def get_or_set(
        self, key: str, default: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None  # type: ignore[assignment]
    ) -> Any:  # fmt: skip
        return get_or_rebuild(self, key, default, timeout, version)


def _made(cache: Any, key: str, make: Callable[[], Any], timeout: float | None, version: int | None) -> Any:
    value = make()
    cache.set(key, value, timeout=timeout, version=version)
    return value
