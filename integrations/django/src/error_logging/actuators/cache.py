"""cache_clear: the keys of one pattern in a cache of Django's. Never anything outside the cache's own prefix.

A cache that can't list its keys (files, memcached) loses the one key that is known to have failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.db import connections, router

from error_logging import cache_kinds
from error_logging.actuators.base import Change, NotSupported

BATCH = 500


def supported(alias: str) -> bool:
    return cache_kinds.kind(alias) not in ("", "dummy")


class CacheClear:
    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        pattern = values.get("pattern")
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"pattern must be a glob over the cache's keys, not {pattern!r}")
        if target not in settings.CACHES:
            raise NotSupported(f"there is no cache {target!r}")
        kind, backend = cache_kinds.kind(target), caches[target]
        if kind == "memory":
            return _clear_memory(backend, pattern)
        if kind == "database":
            return _clear_database(backend, pattern)
        if kind != "redis":
            return _clear_key(target, backend, values.get("key"))
        client = _client(backend)
        full = _glob(backend, pattern)
        before = after = deleted = 0
        batch: list[bytes] = []
        for key in client.scan_iter(match=full, count=BATCH):
            before += 1
            batch.append(key)
            if len(batch) == BATCH:
                deleted += int(client.unlink(*batch))
                batch.clear()
        if batch:
            deleted += int(client.unlink(*batch))
        after = sum(1 for _ in _counted(client, full))
        return Change({"keys": before}, {"keys": after, "deleted": deleted, "pattern": pattern})

    def revert(self, target: str) -> Change:
        return Change(note="what was cleared is rebuilt by the application")


def _clear_key(alias: str, backend: Any, key: object) -> Change:
    if not isinstance(key, str) or not key or not supported(alias):
        raise NotSupported(f"the keys of cache {alias!r} can't be listed, and no single one is known to have failed")
    deleted = int(bool(backend.delete(key)))
    note = "its keys can't be listed: only the one that failed was cleared"
    return Change({"keys": deleted}, {"keys": 0, "deleted": deleted, "pattern": key}, note)


def _clear_memory(backend: Any, pattern: str) -> Change:
    matches = _matcher(backend, pattern)
    with backend._lock:
        found = [key for key in backend._cache if matches(key)]
        for key in found:
            backend._delete(key)
        left = sum(1 for key in backend._cache if matches(key))
    return Change({"keys": len(found)}, {"keys": left, "deleted": len(found), "pattern": pattern})


def _clear_database(backend: Any, pattern: str) -> Change:
    matches, prefix = _matcher(backend, pattern), _parts(backend)[0]
    if not prefix:
        raise NotSupported("the cache's keys have no prefix of their own")
    connection = connections[router.db_for_write(backend.cache_model_class)]
    table = connection.ops.quote_name(backend._table)

    def listed() -> list[str]:
        with connection.cursor() as cursor:
            # The prefix narrows the scan; what matches is decided here, by the same rules for every database.
            cursor.execute(
                f"SELECT cache_key FROM {table} WHERE cache_key LIKE %s ESCAPE '!'",  # noqa: S608  # a quoted name
                [re.sub(r"([!%_])", r"!\1", prefix) + "%"],
            )
            return [key for (key,) in cursor.fetchall() if matches(key)]

    found, deleted = listed(), 0
    for start in range(0, len(found), BATCH):
        batch = found[start : start + BATCH]
        marks = ", ".join(["%s"] * len(batch))
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {table} WHERE cache_key IN ({marks})", batch)  # noqa: S608  # a quoted name
            deleted += cursor.rowcount
    return Change({"keys": len(found)}, {"keys": len(listed()), "deleted": deleted, "pattern": pattern})


def _matcher(backend: Any, pattern: str) -> Callable[[str], bool]:
    """Whether a key as it is stored is one of the pattern's, read as Redis reads globs."""
    prefix, suffix = _parts(backend)
    whole = re.compile(re.escape(prefix) + _regex(pattern) + re.escape(suffix), re.DOTALL)
    return lambda key: whole.fullmatch(key) is not None


_TOKEN = re.compile(
    r"\\(?P<literal>.)|(?P<any>\*)|(?P<one>\?)|\[(?P<not>\^?)(?P<set>(?:\\.|[^\]])*)\]|(?P<plain>.)", re.DOTALL
)


def _regex(pattern: str) -> str:
    def translated(found: re.Match[str]) -> str:
        if found["any"]:
            return ".*"
        if found["one"]:
            return "."
        if found["set"] is not None:
            listed = re.sub(r"([\[^&~|])", r"\\\1", found["set"])
            return f"[{found['not']}{listed}]" if listed else "(?!)"
        return re.escape(found["literal"] or found["plain"])

    return _TOKEN.sub(translated, pattern)


def _client(backend: Any) -> Any:
    inner = getattr(backend, "_cache", None)
    if inner is not None:
        return inner.get_client(None, write=True)
    return backend.client.get_client(write=True)


def _counted(client: Any, pattern: str) -> Iterator[bytes]:
    yield from client.scan_iter(match=pattern, count=BATCH)


def _glob(backend: Any, pattern: str) -> str:
    """The pattern over Redis' own keys: prefix and version as they are, with nothing in them read as a wildcard."""
    prefix, suffix = _parts(backend)
    if not prefix:
        raise NotSupported("the cache's keys have no prefix of their own")
    return f"{_escaped(prefix)}{pattern}{_escaped(suffix)}"


def _parts(backend: Any) -> tuple[str, str]:
    """What the cache's key function puts before and after a key."""
    marker = "UPRIGHTPATTERN"
    made = str(backend.make_key(marker))
    if made.count(marker) != 1:
        raise NotSupported("the cache's KEY_FUNCTION does not keep the key as it is")
    prefix, _, suffix = made.partition(marker)
    return prefix, suffix


def _escaped(literal: str) -> str:
    return re.sub(r"([*?\[\]^\\])", r"\\\1", literal)
