"""Severity and status by the guide's tables, along classes and causes. The golden rows are in test_golden.py."""

from __future__ import annotations

import django.core.exceptions
import django.db
import psycopg
import psycopg_pool
import pytest
import redis
import urllib3

from error_logging.classification import chain, classes_of, classify, classify_type, lowered

GUIDE = {
    "critical": (500, "DatabaseError OutOfMemoryError SystemError AssertionError"),
    "high": (503, "TimeoutError ConnectionError IOError OSError"),
    "medium": (400, "ValueError KeyError AttributeError TypeError"),
    "low": (400, "SomethingElse ValidationError"),
}


@pytest.mark.parametrize("severity", GUIDE)
def test_the_guides_tables(severity: str) -> None:
    status, names = GUIDE[severity]
    for name in names.split():
        found = classify_type(name)
        assert (found.severity, found.http_status, found.priority) == (severity, status, severity.upper()), name


@pytest.mark.parametrize(("error", "severity"), [
    (django.db.OperationalError(), "critical"),
    (django.db.InterfaceError(), "critical"),
    (django.db.IntegrityError(), "critical"),
    (psycopg.errors.QueryCanceled(), "critical"),
    (psycopg_pool.PoolTimeout(), "critical"),
    (MemoryError(), "critical"),
    (RecursionError(), "low"),
    (ConnectionResetError(), "high"),
    (FileNotFoundError(), "high"),
    (redis.ConnectionError(), "high"),
    (redis.TimeoutError(), "high"),
    (urllib3.exceptions.ReadTimeoutError(None, "", ""), "high"),  # type: ignore[arg-type]
    (UnicodeDecodeError("utf-8", b"", 0, 1, ""), "medium"),
    (KeyError(), "medium"),
    (ZeroDivisionError(), "low"),
    (django.core.exceptions.ValidationError(""), "low"),
])  # fmt: skip
def test_real_exceptions_go_by_their_base_classes(error: Exception, severity: str) -> None:
    assert classify(classes_of(error)).severity == severity


def raised(error: BaseException, cause: BaseException | None = None, context: BaseException | None = None) -> Exception:
    try:
        if context is not None:
            try:
                raise context
            except type(context):
                raise error  # noqa: B904
        raise error from cause
    except Exception as caught:
        return caught


class Odd(Exception):
    pass


def test_the_outermost_exception_comes_before_its_causes() -> None:
    assert classify(classes_of(raised(ValueError(), cause=django.db.DatabaseError()))).severity == "medium"


def test_an_exception_of_no_known_class_goes_by_its_cause() -> None:
    assert classify(classes_of(raised(Odd(), cause=TimeoutError()))).http_status == 503
    assert classify(classes_of(raised(Odd(), context=django.db.OperationalError()))).http_status == 500


def test_a_hidden_context_does_not_count() -> None:
    error = raised(Odd(), context=TimeoutError())
    error.__suppress_context__ = True
    assert classify(classes_of(error)).severity == "low"


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = Odd("first"), Odd("second")
    first.__cause__, second.__cause__ = second, first
    assert list(chain(first)) == [first, second]
    assert len(classes_of(first)) == 2


def test_long_chains_and_names_are_bounded() -> None:
    error: Exception = Odd()
    for _ in range(50):
        error = raised(Odd(), cause=error)
    assert len(classes_of(error)) == 10
    long = type("L" * 5_000, (Exception,), {})
    assert all(len(name) <= 300 for names in classes_of(long()) for name in names)


def test_the_names_are_qualified_nearest_first_and_without_what_all_share() -> None:
    assert classes_of(ConnectionResetError()) == [
        ["builtins.ConnectionResetError", "builtins.ConnectionError", "builtins.OSError"]
    ]


@pytest.mark.parametrize(("environment", "severity"), [
    ("production", "critical"), ("staging", "high"), ("development", "high"),
])  # fmt: skip
def test_the_environment_lowers_the_severity_by_one_step_and_not_the_status(environment: str, severity: str) -> None:
    found = classify_type("DatabaseError", environment)
    assert (found.severity, found.http_status) == (severity, 500)


def test_low_stays_low() -> None:
    assert [lowered(one) for one in ("critical", "high", "medium", "low")] == ["high", "medium", "low", "low"]
