"""Probes: something smaller than the failed operation that shows whether what it needs works."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from django.core.cache import caches
from django.db import connections

from error_logging import actuators
from error_logging.classification import classes_of
from error_logging.conf import NAME, current

logger = logging.getLogger("error_logging")

Evidence = dict[str, Any]
Probe = Callable[[], Any]
CONNECT_TIMEOUT_S = 2.0
_DATABASE = ("django.db.utils.", "psycopg.", "psycopg_pool.", "psycopg2.", "sqlalchemy.exc.")


_registered: dict[str, Probe] = {}


def register(name: str) -> Callable[[Probe], Probe]:
    """Make a function a check that runbooks may name (`{kind: check, name: …}`). It has failed if it raises or returns
    False. It runs beside the application's requests, again and again, and must change nothing.

        @probes.register("queue_drained")
        def queue_drained():
            return Job.objects.filter(done=False).count() < 100
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} must be 1 to 100 letters, digits, dots, dashes and underscores")

    def add(probe: Probe) -> Probe:
        _registered[name] = probe
        return probe

    return add


def registered() -> Mapping[str, Probe]:
    """By name."""
    return _registered


def default(names: list[str], measurements: Mapping[str, Any]) -> Probe | None:
    """The probe of an error's type: a query through the pool, a value through the cache, a connection to the peer."""
    cache = measurements.get("cache")
    if isinstance(cache, Mapping):
        return lambda: _through_cache(str(cache.get("alias", "default")))
    if any(name.startswith(_DATABASE) or name == "DatabaseError" for name in names):
        return _through_databases
    if any(name.startswith(("redis.", "django_redis.")) for name in names):
        return lambda: _through_cache("default")
    peer = measurements.get("upstream")
    if isinstance(peer, Mapping) and isinstance(peer.get("port"), int):
        return lambda: _connect(str(peer.get("host")), int(peer["port"]))
    return None


def run(probe: Probe) -> Evidence:
    """What a probe shows. A probe that returns False has failed, as has one that raises."""
    began = time.monotonic()
    try:
        actuators.prepare_thread()
        result = probe()
        outcome, detail = ("failed", "the probe returned False") if result is False else ("passed", "the probe works")
    except Exception as error:
        outcome, detail = "failed", f"the probe raised {type(error).__name__}"
    took_ms = round((time.monotonic() - began) * 1000, 1)
    return {"kind": "probe", "outcome": outcome, "detail": detail, "attempts": 1, "duration_ms": took_ms}


def evidence_of(
    probe: Probe | None, exc: BaseException | None, event: Mapping[str, Any]
) -> Callable[[], Evidence] | None:
    """What gives a caller's evidence: its own probe, else the default one of the error's type."""
    if probe is None:
        chains: list[list[str]] = classes_of(exc) if exc is not None else event["error"]["classes"]
        probe = default([name for chain in chains for name in chain], event.get("measurements") or {})
    if probe is None:
        return None
    chosen = probe
    return lambda: run(chosen)


def _through_databases() -> None:
    for alias in current().databases:
        connection = connections[alias]
        fresh = connection.connection is None
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                cursor.fetchone()
        finally:
            if fresh and not connection.in_atomic_block:
                connection.close()


def _through_cache(alias: str) -> bool:
    key, value = f"upright-probe:{uuid.uuid4().hex}", uuid.uuid4().hex
    cache = caches[alias]
    cache.set(key, value, timeout=10)
    found = cache.get(key)
    cache.delete(key)
    return bool(found == value)


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
