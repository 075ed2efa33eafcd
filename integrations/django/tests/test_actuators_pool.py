"""pool_increase on a real psycopg pool, exhausted by real threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import django.db
import psycopg
import pytest
from django.db import connection, connections
from faults import until

from error_logging import desired_state, measurements
from error_logging.testing import directive

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def small_pool() -> Iterator[None]:
    pool = {"min_size": 1, "max_size": 2, "timeout": 10, "max_idle": 1}
    kept = connection.settings_dict["OPTIONS"]["pool"]
    connection.close()
    connection.close_pool()
    connection.settings_dict["OPTIONS"]["pool"] = pool
    yield
    desired_state.reset()
    connection.close()
    connection.close_pool()
    connection.settings_dict["OPTIONS"]["pool"] = kept


class Crowd:
    """Requests, each in its thread, that hold a connection until they are let go."""

    def __init__(self, number: int) -> None:
        self.go = threading.Event()
        self.have = threading.Semaphore(0)
        self.outcomes: list[str] = []
        self._threads = [threading.Thread(target=self._hold) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _hold(self) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                self.have.release()
                self.go.wait(20)
            self.outcomes.append("served")
        except django.db.Error as error:
            self.outcomes.append(type(error).__name__)
        finally:
            connections.close_all()

    def served(self, number: int) -> None:
        for _ in range(number):
            assert self.have.acquire(timeout=20)

    def end(self) -> list[str]:
        self.go.set()
        for thread in self._threads:
            thread.join()
        return self.outcomes


@pytest.fixture
def crowd() -> Iterator[Callable[[int], Crowd]]:
    made: list[Crowd] = []
    yield lambda number: (made.append(Crowd(number)), made[-1])[1]
    for one in made:
        one.end()


def increase(max_size: int = 8, **more: Any) -> dict[str, Any]:
    return desired_state.apply_one(directive("pool_increase", max_size=max_size, **more))


def waiting() -> int:
    return measurements.pool_numbers("default").get("requests_waiting", 0)


def test_requests_that_wait_already_are_served(crowd: Callable[[int], Crowd]) -> None:
    requests = crowd(8)
    requests.served(2)
    until(lambda: waiting() == 6)
    told = increase(8)
    assert told["status"] == "applied"
    assert told["before"] == {"max_size": 2, "size": 2, "requests_waiting": 6}
    assert told["after"]["max_size"] == 8
    requests.served(6)
    assert requests.end() == ["served"] * 8


def test_the_minimum_stays_so_that_no_connection_is_made_in_advance(crowd: Callable[[int], Crowd]) -> None:
    requests = crowd(2)
    requests.served(2)
    increase(8)
    numbers = measurements.pool_numbers("default")
    assert (numbers["min"], numbers["max"]) == (1, 8)
    assert numbers["size"] <= 3


def test_its_end_is_measured_and_its_connections_leave(crowd: Callable[[int], Crowd], postgres: Any) -> None:
    requests = crowd(6)
    requests.served(2)
    increase(6)
    requests.served(4)
    (ended,) = desired_state.apply_desired(2, [])
    assert ended["status"] == "reverted"
    assert ended["before"]["max_size"] == 6
    assert ended["after"]["max_size"] == 2
    assert ended["after"]["size"] == 6
    assert "4 connections above the maximum" in ended["reason"]
    requests.end()
    with psycopg.connect(postgres.url("postgres")) as outside:
        until(lambda: backends(outside) <= 2)


def backends(outside: psycopg.Connection[Any]) -> int:
    outside.rollback()
    row = outside.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'test_site'").fetchone()
    assert row is not None
    return int(row[0])


def test_brought_twice_it_is_done_once_and_ends_where_it_began() -> None:
    one = directive("pool_increase", max_size=8)
    assert desired_state.apply_one(one) == desired_state.apply_one(one)
    increase(6, version=2)
    desired_state.reset()
    assert connection.pool.max_size == 2


def test_a_process_that_has_not_used_its_database_yet() -> None:
    assert measurements.pool_of("default") is None
    told = increase(4)
    assert told["status"] == "applied"
    assert told["after"]["max_size"] == 4
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert connection.pool.max_size == 4


@pytest.mark.parametrize(("value", "status"), [
    (51, "refused"), (0, "refused"), ("8", "failed"), (None, "failed"), (True, "failed"), (2.5, "failed"),
])  # fmt: skip
def test_what_is_out_of_bounds_changes_nothing(value: Any, status: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert increase(value)["status"] in (status, "refused")
    assert connection.pool.max_size == 2


def test_less_than_the_minimum_is_refused() -> None:
    connection.close()
    connection.close_pool()
    connection.settings_dict["OPTIONS"]["pool"] = {"min_size": 2, "max_size": 4, "timeout": 5}
    told = increase(1)
    assert told["status"] == "failed"
    assert "minimum of 2" in told["reason"]
    assert connection.pool.max_size == 4


def test_a_database_without_a_pool_is_unsupported() -> None:
    pool = connection.settings_dict["OPTIONS"].pop("pool")
    try:
        assert increase(8)["status"] == "unsupported"
    finally:
        connection.settings_dict["OPTIONS"]["pool"] = pool
    assert increase(8, target="elsewhere")["status"] == "unsupported"


def test_when_it_runs_out_it_reverts_by_itself() -> None:
    assert increase(8, ttl_s=0.05)["status"] == "applied"
    until(lambda: connection.pool.max_size == 2)
    (told,) = desired_state.take_reverted()
    assert (told["status"], told["reason"]) == ("reverted", "expired")
