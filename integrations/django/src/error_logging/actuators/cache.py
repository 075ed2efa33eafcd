"""cache_clear: the keys of one pattern in a Redis cache of Django's. Never anything outside the cache's own prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core.cache import caches

from error_logging.actuators.base import Change, NotSupported

BATCH = 500
_DJANGO = "django.core.cache.backends.redis.RedisCache"
_DJANGO_REDIS = "django_redis.cache.RedisCache"


def supported(alias: str) -> bool:
    return str(settings.CACHES.get(alias, {}).get("BACKEND")) in (_DJANGO, _DJANGO_REDIS)


class CacheClear:
    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        pattern = values.get("pattern")
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"pattern must be a glob over the cache's keys, not {pattern!r}")
        if target not in settings.CACHES:
            raise NotSupported(f"there is no cache {target!r}")
        if not supported(target):
            raise NotSupported(f"cache {target!r} is not Redis; its keys can't be listed")
        backend = caches[target]
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
        raise NotSupported("what was cleared is rebuilt by the application")


def _client(backend: Any) -> Any:
    inner = getattr(backend, "_cache", None)
    if inner is not None:
        return inner.get_client(None, write=True)
    return backend.client.get_client(write=True)


def _counted(client: Any, pattern: str) -> Iterator[bytes]:
    yield from client.scan_iter(match=pattern, count=BATCH)


def _glob(backend: Any, pattern: str) -> str:
    """The pattern over Redis' own keys: prefix and version as they are, with nothing in them read as a wildcard."""
    marker = "UPRIGHTPATTERN"
    made = str(backend.make_key(marker))
    if made.count(marker) != 1:
        raise NotSupported("the cache's KEY_FUNCTION does not keep the key as it is")
    prefix, _, suffix = made.partition(marker)
    if not prefix:
        raise NotSupported("the cache's keys have no prefix of their own")
    return f"{_escaped(prefix)}{pattern}{_escaped(suffix)}"


def _escaped(literal: str) -> str:
    return re.sub(r"([*?\[\]^\\])", r"\\\1", literal)
