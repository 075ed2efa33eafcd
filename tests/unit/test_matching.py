"""Which runbook answers which exception. The chains are the real MROs of the libraries, where installed."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from upright.adapters import runbook_files
from upright.domain.event import ErrorDetail
from upright.domain.matching import first_match, names
from upright.services.routing import Router
from upright.testing.events import DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT, error_event

BOOK = runbook_files.load(Path(__file__).parents[2])

EXPECTED = {
    "django.db.utils.OperationalError": "database-error",
    "django.db.utils.InterfaceError": "database-error",
    "django.db.utils.IntegrityError": "database-error",
    "psycopg.errors.QueryCanceled": "database-error",
    "psycopg.InterfaceError": "database-error",
    "psycopg_pool.PoolTimeout": "database-error",
    "psycopg_pool.PoolClosed": "database-error",
    "sqlalchemy.exc.OperationalError": "database-error",
    "sqlalchemy.exc.TimeoutError": "database-error",
    "builtins.TimeoutError": "timeout-error",
    "socket.timeout": "timeout-error",
    "requests.exceptions.ReadTimeout": "timeout-error",
    "httpx.ReadTimeout": "timeout-error",
    "httpx.PoolTimeout": "timeout-error",
    "urllib3.exceptions.ReadTimeoutError": "timeout-error",
    "redis.exceptions.TimeoutError": "timeout-error",
    "builtins.MemoryError": "memory-error",
    "builtins.ConnectionRefusedError": "connection-error",
    "requests.exceptions.ConnectionError": "connection-error",
    "requests.exceptions.ConnectTimeout": "connection-error",
    "requests.exceptions.SSLError": "connection-error",
    "httpx.ConnectError": "connection-error",
    "httpx.ConnectTimeout": "connection-error",
    "httpx.RemoteProtocolError": "connection-error",
    "urllib3.exceptions.NewConnectionError": "connection-error",
    "urllib3.exceptions.NameResolutionError": "connection-error",
    "urllib3.exceptions.MaxRetryError": "connection-error",
    "http.client.RemoteDisconnected": "connection-error",
    "urllib.error.URLError": "connection-error",
    "socket.gaierror": "connection-error",
    "redis.exceptions.ConnectionError": "connection-error",
    "redis.exceptions.MaxConnectionsError": "connection-error",
    "smtplib.SMTPServerDisconnected": "connection-error",
    "django.core.exceptions.ValidationError": "validation-error",
    "pydantic_core.ValidationError": "validation-error",
    "redis.exceptions.AuthenticationError": "authentication-error",
    "smtplib.SMTPAuthenticationError": "authentication-error",
    "requests.exceptions.HTTPError": "api-error",
    "requests.exceptions.TooManyRedirects": "api-error",
    "httpx.HTTPStatusError": "api-error",
    "urllib.error.HTTPError": "api-error",
    "redis.exceptions.BusyLoadingError": "service-unavailable-error",
    "pickle.UnpicklingError": "cache-corruption",
    "zlib.error": "cache-corruption",
    "lzma.LZMAError": "cache-corruption",
    "builtins.EOFError": "cache-corruption",
    "celery.exceptions.TimeoutError": "queue-congestion",
    "builtins.ZeroDivisionError": "low-fallback",
    "builtins.KeyError": "medium-fallback",
    "builtins.OSError": "high-fallback",
    "builtins.AssertionError": "critical-fallback",
}

# Of packages that are not installed for the tests, as their MROs were read once.
ELSEWHERE = {
    "rest_framework.exceptions.APIException": ("api-error", ()),
    "rest_framework.exceptions.Throttled": ("api-error", ("rest_framework.exceptions.APIException",)),
    "rest_framework.exceptions.AuthenticationFailed": (
        "authentication-error",
        ("rest_framework.exceptions.APIException",),
    ),
    "rest_framework.exceptions.ValidationError": ("validation-error", ("rest_framework.exceptions.APIException",)),
    "botocore.exceptions.ClientError": ("api-error", ()),
    "botocore.exceptions.NoCredentialsError": ("authentication-error", ("botocore.exceptions.BotoCoreError",)),
    "botocore.exceptions.ReadTimeoutError": (
        "timeout-error",
        ("botocore.exceptions.HTTPClientError", "botocore.exceptions.BotoCoreError"),
    ),
    "botocore.exceptions.EndpointConnectionError": (
        "service-unavailable-error",
        ("botocore.exceptions.ConnectionError", "botocore.exceptions.BotoCoreError"),
    ),
    "kombu.exceptions.OperationalError": ("connection-error", ("kombu.exceptions.KombuError",)),
    "billiard.exceptions.SoftTimeLimitExceeded": ("timeout-error", ()),
}


def mro(qualified: str) -> tuple[str, ...]:
    module, _, name = qualified.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    left_out = (object, BaseException, Exception)
    return tuple(f"{one.__module__}.{one.__qualname__}" for one in found.__mro__ if one not in left_out)


@pytest.mark.parametrize("exception", EXPECTED)
def test_a_real_exception_finds_its_runbook(exception: str) -> None:
    assert Router(BOOK).route(error_event(mro(exception))).runbook == EXPECTED[exception]


@pytest.mark.parametrize("exception", ELSEWHERE)
def test_an_exception_of_another_package_finds_its_runbook(exception: str) -> None:
    runbook, bases = ELSEWHERE[exception]
    assert Router(BOOK).route(error_event((exception, *bases))).runbook == runbook


def test_the_outermost_exception_goes_before_its_causes() -> None:
    routing = Router(BOOK).route(error_event(DJANGO_OPERATIONAL_ERROR, POOL_TIMEOUT))
    assert (routing.runbook, routing.matched) == ("database-error", "DatabaseError")
    routing = Router(BOOK).route(error_event(("shop.errors.ReportFailed",), POOL_TIMEOUT))
    assert (routing.runbook, routing.matched) == ("database-error", "psycopg_pool.PoolTimeout")
    routing = Router(BOOK).route(error_event(mro("builtins.TimeoutError"), DJANGO_OPERATIONAL_ERROR))
    assert routing.runbook == "timeout-error"


def test_the_nearest_class_goes_first() -> None:
    """A TimeoutError is an OSError too."""
    assert list(names(ErrorDetail(type="TimeoutError", classes=[list(mro("builtins.TimeoutError"))]))) == [
        "builtins.TimeoutError",
        "TimeoutError",
        "builtins.OSError",
        "OSError",
    ]


def test_a_qualified_name_goes_before_a_plain_one_of_the_same_class() -> None:
    error = ErrorDetail(type="Timeout", classes=[["pkg.Timeout"]])
    assert first_match(error, {"Timeout": 1, "pkg.Timeout": 2}) == ("pkg.Timeout", 2)


def test_an_error_that_is_known_by_name_alone_is_matched_by_it() -> None:
    event = error_event()
    event = event.model_copy(update={"error": ErrorDetail(type="DatabaseError", message="made by hand")})
    assert Router(BOOK).route(event).runbook == "database-error"
