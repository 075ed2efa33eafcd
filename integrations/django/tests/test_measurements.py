"""What a process can tell of itself and of an exception: docs/protocol.md lists the keys."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import django.db
import httpx
import psycopg
import pytest
import redis
import requests
import urllib3
from django.core.cache import cache
from django.db import connection, transaction

from error_logging import measurements
from error_logging.measurements import of


def raised(call: Any) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.fixture(autouse=True)
def nothing_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "_databases", {})


@pytest.mark.django_db(transaction=True)
def test_the_pool_at_the_time_of_the_error() -> None:
    connection.close()
    connection.close_pool()
    assert "pools" not in of(ValueError())  # none is opened for it
    assert measurements.pool_of("default") is None
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    numbers = of(ValueError())["pools"]["default"]
    assert set(numbers) == {
        "min", "max", "size", "available", "requests_waiting", "requests_errors", "connections_errors",
    }  # fmt: skip
    assert (numbers["min"], numbers["max"]) == (1, 4)
    assert numbers["available"] < numbers["size"]


@pytest.mark.django_db(transaction=True)
def test_a_pool_timeout_is_seen_in_the_numbers() -> None:
    connection.close()
    pool = connection.pool
    pool.open()
    held = [pool.getconn() for _ in range(pool.max_size)]
    try:
        error = raised(connection.ensure_connection)
        assert of(error)["pools"]["default"]["requests_errors"] >= 1
    finally:
        for one in held:
            pool.putconn(one)


@pytest.mark.django_db(transaction=True)
def test_the_limits_of_the_server_outside_of_the_pool(postgres: Any) -> None:
    pool = connection.pool
    pool.open()
    held = [pool.getconn() for _ in range(pool.max_size)]
    try:
        read = measurements.read_databases()["default"]
    finally:
        for one in held:
            pool.putconn(one)
    assert read["vendor"] == "postgresql"
    assert read["max_connections"] == 100
    assert read["reserved_connections"] >= 3
    assert read["connections"] >= len(held)
    assert read["other_connections"] >= 0
    assert of(ValueError())["databases"] == {"default": read}


@pytest.mark.django_db(transaction=True)
def test_other_applications_connections_are_told_apart(postgres: Any) -> None:
    before = measurements.read_databases()["default"]
    with psycopg.connect(postgres.url("test_site"), application_name="reports"):
        after = measurements.read_databases()["default"]
    assert after["other_connections"] == before["other_connections"] + 1


@pytest.mark.django_db(transaction=True)
def test_a_database_that_cannot_be_read_is_left_out(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "HOST", "/nowhere")
    assert measurements.read_databases() == {}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("setting", "wanted"), [
    ("statement_timeout", "statement_timeout"), ("lock_timeout", "lock_timeout"),
])  # fmt: skip
def test_why_the_database_cancelled_a_query(postgres: Any, setting: str, wanted: str) -> None:
    def wait() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL {setting} = '20ms'")
            cursor.execute("LOCK TABLE auth_user")

    with psycopg.connect(postgres.url("test_site")) as other:
        other.execute("LOCK TABLE auth_user")
        error = raised(wait)
    assert isinstance(error, django.db.OperationalError)
    assert of(error)["query_cancelled"] == wanted


@pytest.mark.django_db(transaction=True)
def test_a_query_that_somebody_cancelled_was_no_timeout(postgres: Any) -> None:
    def cancelled() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(1)")

    assert "query_cancelled" not in of(raised(cancelled))


def test_the_key_that_a_cache_failed_at(redis_cache: str, settings: Any) -> None:
    with redis.Redis.from_url(redis_cache) as client:
        client.set("site:1:report", b"\x80\x05broken")
        error = raised(lambda: cache.get("report"))
        client.delete("site:1:report")
    assert of(error)["cache"] == {"alias": "default", "key": "report", "prefix": "site", "kind": "redis"}


def test_a_cache_out_of_reach(settings: Any) -> None:
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:9"}}
    error = raised(lambda: cache.get("menu"))
    assert of(error)["cache"]["key"] == "menu"


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        yield taken.getsockname()[1]


@pytest.mark.parametrize("call", [
    lambda url: requests.get(url, timeout=1), lambda url: httpx.get(url, timeout=1),
    lambda url: urllib3.request("GET", url, retries=False, timeout=1),
    lambda url: urllib3.request("GET", url, retries=1, timeout=1),
], ids=["requests", "httpx", "urllib3", "urllib3 with retries"])  # fmt: skip
def test_the_peer_that_did_not_answer(closed_port: int, call: Any) -> None:
    error = raised(lambda: call(f"http://127.0.0.1:{closed_port}/x"))
    assert of(error)["upstream"] == {"host": "127.0.0.1", "port": closed_port}


def test_a_peer_is_told_without_its_credentials() -> None:
    error = requests.ConnectionError(request=requests.Request("GET", "https://user:secret@api.example/x").prepare())
    assert of(error)["upstream"] == {"host": "api.example", "port": 443}


@pytest.mark.parametrize(("header", "wanted"), [("7", 7.0), ("999999", 3600.0), ("soon", None), ("²", None)])
def test_when_the_peer_wants_to_be_asked_again(header: str, wanted: float | None) -> None:
    response = requests.Response()
    response.headers["Retry-After"] = header
    assert of(requests.HTTPError(response=response)).get("retry_after_s") == wanted


def test_causes_are_looked_at_too(closed_port: int) -> None:
    def wrapped() -> None:
        try:
            requests.get(f"http://127.0.0.1:{closed_port}/", timeout=1)
        except requests.ConnectionError as error:
            raise LookupError("no rates today") from error

    assert of(raised(wrapped))["upstream"]["port"] == closed_port


def test_an_exception_that_bites_is_no_harm() -> None:
    class Biting(Exception):
        @property
        def request(self) -> None:
            raise KeyError

        response = sqlstate = request

    assert "upstream" not in of(Biting())
