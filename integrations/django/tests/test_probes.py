"""Probes: what shows that something works again, with real engines."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from django.db import connection, transaction

from error_logging.probes import default, evidence_of, run


def outcome(names: list[str], measurements: dict[str, Any] | None = None) -> str | None:
    probe = default(names, measurements or {})
    return None if probe is None else run(probe)["outcome"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", [
    "django.db.utils.OperationalError", "psycopg.errors.QueryCanceled", "psycopg_pool.PoolTimeout", "DatabaseError",
])  # fmt: skip
def test_a_database_is_asked_through_its_pool(name: str) -> None:
    connection.close()
    assert outcome([name]) == "passed"
    assert connection.connection is None  # given back
    pool = connection.pool
    held = [pool.getconn() for _ in range(pool.max_size)]
    try:
        assert outcome([name]) == "failed"
    finally:
        for one in held:
            pool.putconn(one)
    assert outcome([name]) == "passed"


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_is_in_use_stays_open() -> None:
    with transaction.atomic():
        assert outcome(["DatabaseError"]) == "passed"
        assert connection.in_atomic_block
        assert connection.connection is not None


def test_a_cache_is_asked_for_what_it_was_given(redis_cache: str, settings: Any) -> None:
    assert outcome(["redis.exceptions.ConnectionError"]) == "passed"
    assert outcome(["builtins.ValueError"], {"cache": {"alias": "default", "key": "x", "prefix": ""}}) == "passed"
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:9"}}
    assert outcome(["redis.exceptions.ConnectionError"]) == "failed"


def test_a_cache_that_keeps_nothing_fails(settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert outcome([], {"cache": {"alias": "default"}}) == "failed"


def test_a_peer_is_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = {"upstream": {"host": "127.0.0.1", "port": listening.getsockname()[1]}}
        assert outcome(["requests.exceptions.ConnectionError"], peer) == "passed"
    assert outcome(["requests.exceptions.ConnectionError"], peer) == "failed"


@pytest.mark.parametrize("measurements", [{}, {"upstream": {"host": "x"}}, {"upstream": 5}, {"cache": None}])
def test_without_anything_to_ask_there_is_no_probe(measurements: dict[str, Any]) -> None:
    assert default(["builtins.ValueError"], measurements) is None


@pytest.mark.parametrize(("probe", "wanted"), [
    (lambda: None, "passed"), (lambda: True, "passed"), (lambda: 0, "passed"), (lambda: False, "failed"),
    (lambda: 1 / 0, "failed"),
])  # fmt: skip
def test_what_counts_as_failed(probe: Any, wanted: str) -> None:
    evidence = run(probe)
    assert (evidence["kind"], evidence["outcome"]) == ("probe", wanted)


def test_the_callers_own_probe_comes_first() -> None:
    event = {"error": {"classes": [["DatabaseError"]]}, "measurements": {}}
    chosen = evidence_of(lambda: False, None, event)
    assert chosen is not None
    assert chosen()["outcome"] == "failed"
    assert evidence_of(None, ValueError(), {"measurements": {}}) is None
