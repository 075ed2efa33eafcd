"""Forks: what a process had opened for Upright is never shared with its children."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from error_logging import counters, desired_state, process
from error_logging.testing import directive

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_pool_yet() -> Iterator[None]:
    connection.close()
    connection.close_pool()
    yield
    desired_state.reset()
    connection.close()
    connection.close_pool()


def in_a_child(work: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def increase(strategy: str = "pool_increase", **values: Any) -> dict[str, Any]:
    return directive(strategy, **(values or {"max_size": 8}))


def test_a_pool_that_a_directive_opened_in_a_server_before_it_forked(postgres: Any) -> None:
    """gunicorn --preload: the master's agent obeys too, and its workers must not talk over its connections."""
    assert desired_state.apply_one(increase())["status"] == "applied"
    connection.close()
    mine = backend()
    connection.close()  # back in the pool

    def work() -> bool:
        theirs = backend()
        connection.close()
        return theirs != mine and connection.pool.max_size == 4

    assert in_a_child(work)
    with connection.cursor() as cursor:  # and the child has not hung up on it
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [mine])
        assert cursor.fetchone() == (1,)
    assert connection.pool.max_size == 8


def test_the_child_applies_it_to_its_own_pool_when_the_list_comes() -> None:
    one = increase()
    desired_state.apply_desired(3, [one])

    def work() -> bool:
        if desired_state.complete_version() == 3:
            return False
        (told,) = desired_state.apply_desired(3, [one])
        applied = told["status"] == "applied" and connection.pool.max_size == 8
        desired_state.apply_desired(4, [])
        return applied and connection.pool.max_size == 4

    assert in_a_child(work)


def test_a_pool_of_the_applications_own_is_its_own_affair() -> None:
    backend()
    pool = connection.pool
    connection.close()
    assert in_a_child(lambda: connection.pool is pool)


def test_a_timeout_is_obeyed_in_the_child_from_its_first_statement() -> None:
    desired_state.apply_one(increase("timeout_increase", timeout_ms=20_000))
    connection.close()

    def work() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout')")
            return bool(cursor.fetchone()[0] == "20s")

    assert in_a_child(work)


def test_a_child_is_another_instance_with_counters_of_its_own() -> None:
    counters.add("captured")
    mine = process.instance()
    assert in_a_child(lambda: process.instance() != mine and counters.snapshot() == {})
    assert process.instance() == mine
