"""Kinds of caches, by what can be done with their keys."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

_KINDS = {
    "django.core.cache.backends.redis.RedisCache": "redis",
    "django_redis.cache.RedisCache": "redis",
    "django.core.cache.backends.db.DatabaseCache": "database",
    "django.core.cache.backends.locmem.LocMemCache": "memory",
    "django.core.cache.backends.filebased.FileBasedCache": "file",
    "django.core.cache.backends.dummy.DummyCache": "dummy",
}
LISTING = ("redis", "database", "memory")
"""Kinds that can list their keys."""


def kind(alias: str) -> str:
    """redis, database, memory, file, dummy, or other; of subclasses too. Empty where there is no such cache."""
    backend: Any = settings.CACHES.get(alias, {}).get("BACKEND")
    if backend is None:
        return ""
    try:
        classes = (import_string(backend) if isinstance(backend, str) else backend).__mro__
    except ImportError:
        return "other"
    names = (f"{one.__module__}.{one.__name__}" for one in classes)
    return next((_KINDS[name] for name in names if name in _KINDS), "other")
