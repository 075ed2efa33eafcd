"""The settings: each is read, each wrong value is named with what is allowed, and none breaks a request."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client, override_settings
from hypothesis import given
from hypothesis import strategies as st

from error_logging import conf

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "B" * 40

GOOD: list[tuple[str, Any, str, Any]] = [
    ("UPRIGHT_URL", "https://upright.example:8400/", "url", "https://upright.example:8400"),
    ("UPRIGHT_URL", "http://[::1]:8400/base", "url", "http://[::1]:8400/base"),
    ("UPRIGHT_URL", "", "url", None),
    ("UPRIGHT_SECRET", SECRET, "secrets", (SECRET,)),
    ("UPRIGHT_SECRET", [SECRET, OTHER], "secrets", (SECRET, OTHER)),
    ("UPRIGHT_SECRET", "", "secrets", ()),
    ("UPRIGHT_TENANT", "shop-eu", "tenant", "shop-eu"),
    ("UPRIGHT_SERVICE", "shop.api", "service", "shop.api"),
    ("UPRIGHT_ENABLED", False, "enabled", False),
    ("UPRIGHT_KILL_FILE", "/run/upright.stop", "kill_file", Path("/run/upright.stop")),
    ("UPRIGHT_SPOOL_DIR", Path("/var/spool/upright"), "spool_dir", Path("/var/spool/upright")),
    ("UPRIGHT_SPOOL_MAX_FILES", 5, "spool_max_files", 5),
    ("UPRIGHT_SPOOL_FSYNC", True, "spool_fsync", True),
    ("UPRIGHT_MAX_WAITERS", 0, "max_waiters", 0),
    ("UPRIGHT_LOG_TIMEOUT_MS", 250, "log_timeout_ms", 250),
    ("UPRIGHT_LIMITS", {"pool_increase": {"max_size": [2, 8]}, "mine": {"factor": (0.5, 2)}}, "limits", {
        **conf.SHIPPED_LIMITS, "pool_increase": {"max_size": (2, 8)}, "mine": {"factor": (0.5, 2)},
    }),
    ("UPRIGHT_ALLOWED_STRATEGIES", ["retry"], "allowed_strategies", frozenset({"retry"})),
    ("UPRIGHT_ALLOWED_STRATEGIES", [], "allowed_strategies", frozenset()),
    ("UPRIGHT_REPLAY", False, "replay", False),
    ("UPRIGHT_TEST_ERROR", True, "test_error", True),
    ("UPRIGHT_SCRUB_KEYS", ["iban"], "scrub_keys", ("iban",)),
    ("UPRIGHT_SCRUB_PATTERNS", [r"\d+"], "scrub_patterns", (re.compile(r"\d+"),)),
    ("UPRIGHT_DATABASES", ["default"], "databases", ("default",)),
    ("UPRIGHT_SQL_CHECKS", ["default"], "sql_checks", ("default",)),
    ("UPRIGHT_AGENT", False, "agent", False),
    ("UPRIGHT_EXECUTOR", "shop.recovery.Executor", "executor", "shop.recovery.Executor"),
    ("UPRIGHT_FALLBACK_SERVICES", {"laravel": "https://old.example/"}, "fallback_services", {
        "laravel": "https://old.example",
    }),
    ("UPRIGHT_FALLBACK_FORWARD", ["Authorization"], "fallback_forward", ("Authorization",)),
    ("UPRIGHT_FALLBACK_TIMEOUT_MS", 500, "fallback_timeout_ms", 500),
    ("UPRIGHT_FALLBACK_VIEWS", {"prices/": "shop.views.prices"}, "fallback_views", {"prices/": "shop.views.prices"}),
    ("UPRIGHT_LAST_GOOD", ["prices/"], "last_good", frozenset({"prices/"})),
    ("UPRIGHT_LAST_GOOD_CACHE", "default", "last_good_cache", "default"),
    ("UPRIGHT_LAST_GOOD_MAX_AGE", 60, "last_good_max_age_s", 60),
    ("UPRIGHT_RATE_LIMIT_STORAGE", "redis://cache:6379/1", "rate_limit_storage", "redis://cache:6379/1"),
    ("UPRIGHT_RATE_LIMIT_STORAGE", "memory://", "rate_limit_storage", None),
    ("UPRIGHT_HEALTH_PATHS", ["/healthz"], "health_paths", frozenset({"/healthz"})),
    ("UPRIGHT_TRUSTED_PROXIES", 2, "trusted_proxies", 2),
    ("ERROR_RECOVERY_TIMEOUT", 2000, "recovery_timeout_ms", 2000),
    ("ERROR_ALERT_RECIPIENTS", ["ops@example.com"], "alert_recipients", ("ops@example.com",)),
    ("ERROR_ESCALATION_RECIPIENTS", ("boss@example.com",), "escalation_recipients", ("boss@example.com",)),
    ("ALERTS_BY_SEVERITY", {"critical": ["ops@example.com"], "low": []}, "alerts_by_severity", {
        "critical": ("ops@example.com",), "low": (),
    }),
    ("ENVIRONMENT", "staging", "environment", "staging"),
    ("AUTO_SCALE_ON_ERROR", True, "auto_scale_on_error", True),
    ("MAX_SCALE_FACTOR", 3, "max_scale_factor", 3.0),
]  # fmt: skip
BAD: list[tuple[str, Any, str]] = [
    ("UPRIGHT_URL", "upright.example", "http:// or https://"),
    ("UPRIGHT_URL", "ftp://upright.example", "http:// or https://"),
    ("UPRIGHT_URL", 8400, "http:// or https://"),
    ("UPRIGHT_URL", "http://[::1", "http:// or https://"),
    ("UPRIGHT_URL", " http://upright.example", "http:// or https://"),
    ("UPRIGHT_URL", "http://upright.example/\n", "http:// or https://"),
    ("UPRIGHT_URL", "https://user:password@upright.example", "without credentials"),
    ("UPRIGHT_URL", "https://upright.example/?key=1", "without credentials, query"),
    ("UPRIGHT_URL", "https://upright.example:99999", "port from 0 to 65535"),
    ("UPRIGHT_SECRET", "hunter2", "must begin with whsec_"),
    ("UPRIGHT_SECRET", "whsec_c2hvcnQ=", "at least 24 bytes"),
    ("UPRIGHT_SECRET", {"a": 1}, "or a list of them"),
    ("UPRIGHT_SECRET", [SECRET, 5], "or a list of them"),
    ("UPRIGHT_TENANT", "", "1 to 100 letters"),
    ("UPRIGHT_SERVICE", "my shop", "1 to 100 letters"),
    ("UPRIGHT_SERVICE", "x" * 101, "1 to 100 letters"),
    ("UPRIGHT_SERVICE", "shop\n", "1 to 100 letters"),
    ("UPRIGHT_ENABLED", "False", "True or False"),
    ("UPRIGHT_KILL_FILE", 7, "path of a file"),
    ("UPRIGHT_SPOOL_DIR", "", "path of a directory"),
    ("UPRIGHT_SPOOL_DIR", 5, "path of a directory"),
    ("UPRIGHT_SPOOL_DIR", "spool\0", "path of a directory"),
    ("UPRIGHT_SPOOL_MAX_FILES", 0, "from 1 to 1000000"),
    ("UPRIGHT_SPOOL_FSYNC", 1, "True or False"),
    ("UPRIGHT_MAX_WAITERS", -1, "from 0 to 1000"),
    ("UPRIGHT_LOG_TIMEOUT_MS", "100", "whole number from 0 to 60000"),
    ("UPRIGHT_LIMITS", [], "{strategy: {parameter: (low, high)}}"),
    ("UPRIGHT_LIMITS", {"pool_increase": {"max_size": 10}}, "{strategy: {parameter: (low, high)}}"),
    ("UPRIGHT_LIMITS", {"pool_increase": {"max_size": (10, 2)}}, "low ≤ high"),
    ("UPRIGHT_LIMITS", {"pool_increase": {"max_size": ("1", "9")}}, "low ≤ high"),
    ("UPRIGHT_LIMITS", {"pool_increase": {"max_size": (float("nan"), 9)}}, "low ≤ high"),
    ("UPRIGHT_ALLOWED_STRATEGIES", "retry", "list of strings"),
    ("UPRIGHT_REPLAY", None.__class__, "True or False"),
    ("UPRIGHT_TEST_ERROR", "yes", "True or False"),
    ("UPRIGHT_SCRUB_KEYS", [1], "list of strings"),
    ("UPRIGHT_SCRUB_PATTERNS", ["("], "list of regular expressions"),
    ("UPRIGHT_SCRUB_PATTERNS", [b"bytes"], "list of regular expressions"),
    ("UPRIGHT_SCRUB_PATTERNS", [re.compile(b"bytes")], "list of regular expressions"),
    ("UPRIGHT_SCRUB_PATTERNS", "x", "list of regular expressions"),
    ("UPRIGHT_DATABASES", ["replica"], "DATABASES has default"),
    ("UPRIGHT_SQL_CHECKS", ["replica"], "DATABASES has default"),
    ("UPRIGHT_AGENT", 0, "True or False"),
    ("UPRIGHT_EXECUTOR", "no path", "dotted path"),
    ("UPRIGHT_EXECUTOR", 5, "dotted path"),
    ("UPRIGHT_FALLBACK_SERVICES", ["https://old.example"], "{name: address}"),
    ("UPRIGHT_FALLBACK_SERVICES", {"laravel": "old.example"}, "http:// or https://"),
    ("UPRIGHT_FALLBACK_FORWARD", "Cookie", "list of strings"),
    ("UPRIGHT_FALLBACK_TIMEOUT_MS", 0, "from 1 to 60000"),
    ("UPRIGHT_FALLBACK_VIEWS", {"prices/": "prices"}, "dotted path"),
    ("UPRIGHT_LAST_GOOD", "prices/", "list of strings"),
    ("UPRIGHT_LAST_GOOD_CACHE", "pages", "must be one of CACHES: default"),
    ("UPRIGHT_LAST_GOOD_MAX_AGE", 0, "from 1 to"),
    ("UPRIGHT_RATE_LIMIT_STORAGE", "cache:6379", "redis://"),
    ("UPRIGHT_HEALTH_PATHS", ["healthz"], "begin with /"),
    ("UPRIGHT_TRUSTED_PROXIES", -1, "from 0 to 100"),
    ("ERROR_RECOVERY_TIMEOUT", 5.5, "whole number from 0 to 60000"),
    ("ERROR_RECOVERY_TIMEOUT", True, "whole number from 0 to 60000"),
    ("ERROR_ALERT_RECIPIENTS", "ops@example.com", "list of strings"),
    ("ERROR_ESCALATION_RECIPIENTS", [None], "list of strings"),
    ("ALERTS_BY_SEVERITY", {"urgent": []}, "critical, high, medium, low"),
    ("ALERTS_BY_SEVERITY", {"critical": "ops@example.com"}, "list of strings for each severity"),
    ("ENVIRONMENT", "prod", "production, staging, development"),
    ("ENVIRONMENT", ["production"], "production, staging, development"),
    ("AUTO_SCALE_ON_ERROR", "on", "True or False"),
    ("MAX_SCALE_FACTOR", 0.5, "from 1.0 to 100.0"),
    ("MAX_SCALE_FACTOR", float("nan"), "from 1.0 to 100.0"),
]


def shown(case: Any) -> str:
    return repr(case)[:30] if not isinstance(case, str) else case[:30]


def test_every_setting_has_a_good_and_a_bad_example() -> None:
    assert {name for name, *_ in GOOD} == {name for name, *_ in BAD} == set(conf.SETTINGS)


@pytest.mark.parametrize(("name", "given_value", "attribute", "wanted"), GOOD, ids=shown)
def test_it_is_read(name: str, given_value: Any, attribute: str, wanted: Any) -> None:
    with override_settings(**{name: given_value}):
        read, problems = conf.read()
        assert problems == []
        assert getattr(read, attribute) == wanted
        assert getattr(conf.current(), attribute) == wanted


@pytest.mark.parametrize(("name", "given_value", "allowed"), BAD, ids=shown)
def test_a_wrong_value_is_named_with_what_is_allowed_and_its_default_is_used(
    name: str, given_value: Any, allowed: str, caplog: pytest.LogCaptureFixture
) -> None:
    attribute, _ = conf.SETTINGS[name]
    default = getattr(conf.read()[0], attribute)
    with override_settings(**{name: given_value}), caplog.at_level(logging.ERROR, "error_logging"):
        read, (problem,) = conf.read()
        assert problem.setting == name
        assert allowed in problem.reason
        assert conf.current() == read
    if name != "UPRIGHT_SPOOL_DIR":
        assert getattr(read, attribute) == default
    assert [record.message for record in caplog.records] == [
        f"{name} {problem.reason}; its default is used. See `manage.py check`."
    ]


def test_a_secret_is_never_told() -> None:
    with override_settings(UPRIGHT_SECRET=["whsec_c2hvcnQ="]):
        (problem,) = conf.read()[1]
    assert "c2hvcnQ" not in problem.reason


@pytest.mark.django_db
def test_with_everything_wrong_a_request_is_answered_and_logged_all_the_same() -> None:
    from error_logging.models import ErrorLog

    wrong = {name: value for name, value, _ in BAD}
    with override_settings(**wrong):
        assert Client().get("/fine/").content == b"fine"
        answer = Client().get("/broken/")
        assert answer.status_code == 400
        assert ErrorLog.objects.get(error_id=answer.json()["error"]["error_id"]).error_type == "ValueError"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(name=st.sampled_from(sorted(conf.SETTINGS)), value=ANYTHING)
def test_no_value_whatever_breaks_the_reading(name: str, value: Any) -> None:
    with override_settings(**{name: value}):
        read, problems = conf.read()
        assert isinstance(read, conf.Conf)
        assert all(problem.setting == name and problem.reason for problem in problems)


def test_a_value_that_fails_when_it_is_looked_at_is_a_problem_too() -> None:
    class Broken:
        def __fspath__(self) -> str:
            raise RuntimeError("no")

        __str__ = __fspath__

    with override_settings(UPRIGHT_SPOOL_DIR=Broken()):
        _, (problem,) = conf.read()
    assert problem.setting == "UPRIGHT_SPOOL_DIR"


def test_two_settings_suffice() -> None:
    assert not conf.current().delivers
    with override_settings(UPRIGHT_URL="http://127.0.0.1:8400"):
        assert not conf.current().delivers
        with override_settings(UPRIGHT_SECRET=SECRET):
            assert conf.current().delivers
            assert conf.read()[1] == []
            with override_settings(UPRIGHT_ENABLED=False):
                assert not conf.current().delivers


def test_the_defaults_are_the_guides() -> None:
    read = conf.current()
    assert (read.service, read.environment, read.recovery_timeout_ms) == ("django", "production", 5000)
    assert (read.auto_scale_on_error, read.alert_recipients, read.alerts_by_severity) == (False, (), None)


def test_each_project_and_user_has_a_spool_of_its_own(settings: Any) -> None:
    first = conf.default_spool_dir()
    settings.BASE_DIR = "/somewhere/else"
    assert conf.default_spool_dir() != first
    assert conf.default_spool_dir().parent == first.parent


def test_databases_with_a_pool_are_looked_after(settings: Any) -> None:
    assert conf.current().databases == ("default",)
    settings.UPRIGHT_DATABASES = []
    assert conf.current().databases == ()


@pytest.mark.parametrize(("url", "is_loopback"), [
    ("http://localhost:1", True), ("http://127.0.0.9", True), ("http://[::1]:1", True),
    ("http://127.example.com", False), ("http://10.0.0.1", False),
])  # fmt: skip
def test_loopback(url: str, is_loopback: bool) -> None:
    assert conf.loopback(url) is is_loopback
