"""The settings, typed. A wrong value never breaks a request: its default is used, and `manage.py check` tells of it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.signals import setting_changed

from error_logging import signatures
from error_logging.threads import threads_of_server

logger = logging.getLogger("error_logging")

Limits = Mapping[str, Mapping[str, tuple[float, float]]]

SEVERITIES = ("critical", "high", "medium", "low")
ENVIRONMENTS = ("production", "staging", "development")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
SHIPPED_LIMITS: dict[str, dict[str, tuple[float, float]]] = {
    "pool_increase": {"max_size": (1, 50)},
    "timeout_increase": {"timeout_ms": (1, 60_000)},
    "queue_priority": {"boost_factor": (1, 10)},
    "circuit_break": {
        "failure_threshold": (1, 1000),
        "timeout_seconds": (0.1, 3600),
        "half_open_requests": (1, 100),
    },
    "request_throttle": {"requests_per_minute": (10, 1_000_000), "burst_size": (1, 100_000)},
}


@dataclass(frozen=True)
class Conf:
    """What the project set, or the defaults. Attribute names are the settings' names in lower case, without prefix."""

    url: str | None = None
    """The service's address, without a slash at its end. None: errors are logged locally only."""
    secrets: tuple[str, ...] = ()
    """The first one signs, all are accepted."""
    tenant: str = "default"
    service: str = "django"
    enabled: bool = True
    kill_file: Path | None = None
    """While it exists, nothing is changed in this process."""
    spool_dir: Path = field(default_factory=lambda: default_spool_dir())
    spool_max_files: int = 10_000
    spool_fsync: bool = False
    max_waiters: int = 1
    log_timeout_ms: int = 100
    limits: Limits = field(default_factory=lambda: SHIPPED_LIMITS)
    allowed_strategies: frozenset[str] | None = None
    """None: all of them."""
    replay: bool = True
    test_error: bool = False
    scrub_keys: tuple[str, ...] = ()
    scrub_patterns: tuple[re.Pattern[str], ...] = ()
    databases: tuple[str, ...] = ("default",)
    executor: str | None = None
    """Dotted path of the application's subclass of AutoRecoveryExecutor."""
    sql_checks: tuple[str, ...] = ()
    """Databases that a runbook's queries may read."""
    agent: bool = True
    fallback_services: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name to address, without a slash at its end."""
    fallback_forward: tuple[str, ...] = ()
    fallback_timeout_ms: int = 3000
    fallback_views: Mapping[str, str] = field(default_factory=dict[str, str])
    """Route to the dotted path of a view."""
    last_good: frozenset[str] = frozenset()
    """Routes."""
    last_good_cache: str | None = None
    """None: in each process by itself."""
    last_good_max_age_s: int = 86_400
    rate_limit_storage: str | None = None
    """None: each process counts for itself."""
    health_paths: frozenset[str] = frozenset()
    trusted_proxies: int = 0
    recovery_timeout_ms: int = 5000
    alert_recipients: tuple[str, ...] = ()
    escalation_recipients: tuple[str, ...] = ()
    alerts_by_severity: Mapping[str, tuple[str, ...]] | None = None
    environment: str = "production"
    auto_scale_on_error: bool = False
    max_scale_factor: float = 1.0

    @property
    def delivers(self) -> bool:
        """Whether events are sent to a service."""
        return self.enabled and self.url is not None and bool(self.secrets)


@dataclass(frozen=True)
class Problem:
    """A setting that can't be used as it is."""

    setting: str
    reason: str


_cached: Conf | None = None


def current() -> Conf:
    """The settings as they are now; cheap enough for every request."""
    global _cached
    if _cached is None:
        conf, problems = read()
        for problem in problems:
            logger.error("%s %s; its default is used. See `manage.py check`.", problem.setting, problem.reason)
        _cached = conf
    return _cached


def read() -> tuple[Conf, list[Problem]]:
    """Read and validate Django's settings."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, (attribute, parse) in SETTINGS.items():
        try:
            given = getattr(settings, name)
        except AttributeError:
            given = None
        if given is None:
            continue
        try:
            values[attribute] = parse(given)
        except _Wrong as wrong:
            problems.append(Problem(name, str(wrong)))
        except Exception as error:
            problems.append(Problem(name, f"can't be read ({type(error).__name__})"))
    values.setdefault("max_waiters", max(1, threads_of_server() // 4))
    values.setdefault("databases", _looked_after())
    return Conf(**values), problems


def default_spool_dir() -> Path:
    """One for each user and project under the system's temporary directory."""
    project = f"{getattr(settings, 'BASE_DIR', '')}|{os.environ.get('DJANGO_SETTINGS_MODULE', '')}"
    digest = hashlib.sha256(project.encode()).hexdigest()[:12]
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"upright-{user}-{digest}"


def loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class _Wrong(Exception):
    """Says what is allowed."""


def _looked_after() -> tuple[str, ...]:
    databases: Mapping[str, Mapping[str, Any]] = getattr(settings, "DATABASES", {})
    pooled = [
        alias
        for alias, entry in databases.items()
        if "postgresql" in str(entry.get("ENGINE", "")) and (entry.get("OPTIONS") or {}).get("pool")
    ]
    return tuple(dict.fromkeys([*(["default"] if "default" in databases else []), *pooled]))


def _url(value: object) -> str | None:
    if value == "":
        return None
    address = "must be an http:// or https:// address"
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        raise _Wrong(address)
    try:
        parts = urlsplit(value)
    except ValueError:
        raise _Wrong(address) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Wrong(address)
    if parts.query or parts.fragment or parts.username or parts.password:
        raise _Wrong("must be an address without credentials, query and fragment")
    try:
        _ = parts.port
    except ValueError:
        raise _Wrong("must have a port from 0 to 65535, or none") from None
    return value.rstrip("/")


def _secrets(value: object) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)):
        raise _Wrong("must be a whsec_… secret, or a list of them")
    kept = [entry for entry in found if entry != ""]
    for entry in kept:
        if not isinstance(entry, str):
            raise _Wrong("must be a whsec_… secret, or a list of them")
        try:
            signatures.key_of(entry)
        except signatures.SecretInvalid as invalid:
            raise _Wrong(str(invalid)) from None
    return tuple(kept)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("must be True or False")
    return value


def _integer(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _Wrong(f"must be a whole number from {low} to {high}")
        return value

    return parse


def _name(value: object) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _Wrong("must be 1 to 100 letters, digits, dots, dashes and underscores")
    return value


def _dotted(value: object) -> str:
    if not isinstance(value, str) or not all(part.isidentifier() for part in value.split(".")) or "." not in value:
        raise _Wrong("must be the dotted path of a class, such as 'shop.recovery.Executor'")
    return value


def _path(of: str) -> Callable[[object], Path]:
    def parse(value: object) -> Path:
        if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
            raise _Wrong(f"must be the path of a {of}")
        return Path(str(value)).absolute()

    return parse


def _environment(value: object) -> str:
    if value not in ENVIRONMENTS:
        raise _Wrong(f"must be one of {', '.join(ENVIRONMENTS)}")
    return str(value)


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(entry, str) for entry in value):
        raise _Wrong("must be a list of strings")
    return tuple(str(entry) for entry in value)


def _strategies(value: object) -> frozenset[str]:
    return frozenset(_strings(value))


def _patterns(value: object) -> tuple[re.Pattern[str], ...]:
    if not isinstance(value, (list, tuple)):
        raise _Wrong("must be a list of regular expressions")
    compiled: list[re.Pattern[str]] = []
    for entry in value:
        try:
            pattern = re.compile(entry)
            pattern.sub("", "")
            compiled.append(pattern)
        except (re.error, TypeError) as error:  # TypeError: of bytes, or no pattern at all
            raise _Wrong(f"must be a list of regular expressions; {entry!r} is none: {error}") from None
    return tuple(compiled)


def _databases(value: object) -> tuple[str, ...]:
    aliases = _strings(value)
    known = sorted(getattr(settings, "DATABASES", {}))
    unknown = [alias for alias in aliases if alias not in known]
    if unknown:
        raise _Wrong(f"names {', '.join(unknown)}, and DATABASES has {', '.join(known) or 'none'}")
    return aliases


def _limits(value: object) -> Limits:
    shape = "must be {strategy: {parameter: (low, high)}}"
    if not isinstance(value, Mapping):
        raise _Wrong(shape)
    merged = {strategy: dict(bounds) for strategy, bounds in SHIPPED_LIMITS.items()}
    for strategy, bounds in value.items():
        if not isinstance(strategy, str) or not isinstance(bounds, Mapping):
            raise _Wrong(shape)
        for parameter, pair in bounds.items():
            if not isinstance(parameter, str) or not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise _Wrong(shape)
            low, high = pair
            if (
                not all(isinstance(bound, (int, float)) and not isinstance(bound, bool) for bound in pair)
                or not low <= high
            ):
                raise _Wrong(f"{shape}, numbers with low ≤ high; {strategy}.{parameter} is {pair!r}")
            merged.setdefault(strategy, {})[parameter] = (low, high)
    return merged


def _addresses(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise _Wrong("must be {name: address}")
    found: dict[str, str] = {}
    for name, address in value.items():
        parsed = _url(address)
        if parsed is None:
            raise _Wrong(f"must be {{name: address}}; {name!r} has none")
        found[_name(name)] = parsed
    return found


def _dotted_paths(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(route, str) and isinstance(path, str) and "." in path for route, path in value.items()
    ):
        raise _Wrong("must be {route: dotted path of a view}")
    return {str(route): str(path) for route, path in value.items()}


def _routes(value: object) -> frozenset[str]:
    return frozenset(_strings(value))


def _paths(value: object) -> frozenset[str]:
    paths = _strings(value)
    wrong = [one for one in paths if not one.startswith("/")]
    if wrong:
        raise _Wrong(f"must be a list of paths that begin with /; {wrong[0]!r} does not")
    return frozenset(paths)


def _cache_alias(value: object) -> str:
    known = sorted(getattr(settings, "CACHES", {}))
    if value not in known:
        raise _Wrong(f"must be one of CACHES: {', '.join(known) or 'none'}")
    return str(value)


def _storage(value: object) -> str | None:
    if value == "":
        return None
    schemes = ("redis", "rediss", "redis+unix", "redis+sentinel", "redis+cluster", "memory")
    if not isinstance(value, str) or value.partition("://")[0] not in schemes or "://" not in value:
        raise _Wrong(f"must be an address of one of {', '.join(f'{one}://' for one in schemes)}")
    return None if value.startswith("memory://") else value


def _alerts_by_severity(value: object) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, Mapping) or not all(key in SEVERITIES for key in value):
        raise _Wrong(f"must be a dict with the keys {', '.join(SEVERITIES)}, each a list of recipients")
    try:
        return {str(severity): _strings(recipients) for severity, recipients in value.items()}
    except _Wrong:
        raise _Wrong("must hold a list of strings for each severity") from None


def _scale(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1.0 <= value <= 100.0:
        raise _Wrong("must be a number from 1.0 to 100.0")
    return float(value)


SETTINGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "UPRIGHT_URL": ("url", _url),
    "UPRIGHT_SECRET": ("secrets", _secrets),
    "UPRIGHT_TENANT": ("tenant", _name),
    "UPRIGHT_SERVICE": ("service", _name),
    "UPRIGHT_ENABLED": ("enabled", _boolean),
    "UPRIGHT_KILL_FILE": ("kill_file", _path("file")),
    "UPRIGHT_SPOOL_DIR": ("spool_dir", _path("directory")),
    "UPRIGHT_SPOOL_MAX_FILES": ("spool_max_files", _integer(1, 1_000_000)),
    "UPRIGHT_SPOOL_FSYNC": ("spool_fsync", _boolean),
    "UPRIGHT_MAX_WAITERS": ("max_waiters", _integer(0, 1000)),
    "UPRIGHT_LOG_TIMEOUT_MS": ("log_timeout_ms", _integer(0, 60_000)),
    "UPRIGHT_LIMITS": ("limits", _limits),
    "UPRIGHT_ALLOWED_STRATEGIES": ("allowed_strategies", _strategies),
    "UPRIGHT_REPLAY": ("replay", _boolean),
    "UPRIGHT_TEST_ERROR": ("test_error", _boolean),
    "UPRIGHT_SCRUB_KEYS": ("scrub_keys", _strings),
    "UPRIGHT_SCRUB_PATTERNS": ("scrub_patterns", _patterns),
    "UPRIGHT_DATABASES": ("databases", _databases),
    "UPRIGHT_EXECUTOR": ("executor", _dotted),
    "UPRIGHT_SQL_CHECKS": ("sql_checks", _databases),
    "UPRIGHT_AGENT": ("agent", _boolean),
    "UPRIGHT_FALLBACK_SERVICES": ("fallback_services", _addresses),
    "UPRIGHT_FALLBACK_FORWARD": ("fallback_forward", _strings),
    "UPRIGHT_FALLBACK_TIMEOUT_MS": ("fallback_timeout_ms", _integer(1, 60_000)),
    "UPRIGHT_FALLBACK_VIEWS": ("fallback_views", _dotted_paths),
    "UPRIGHT_LAST_GOOD": ("last_good", _routes),
    "UPRIGHT_LAST_GOOD_CACHE": ("last_good_cache", _cache_alias),
    "UPRIGHT_LAST_GOOD_MAX_AGE": ("last_good_max_age_s", _integer(1, 31_536_000)),
    "UPRIGHT_RATE_LIMIT_STORAGE": ("rate_limit_storage", _storage),
    "UPRIGHT_HEALTH_PATHS": ("health_paths", _paths),
    "UPRIGHT_TRUSTED_PROXIES": ("trusted_proxies", _integer(0, 100)),
    "ERROR_RECOVERY_TIMEOUT": ("recovery_timeout_ms", _integer(0, 60_000)),
    "ERROR_ALERT_RECIPIENTS": ("alert_recipients", _strings),
    "ERROR_ESCALATION_RECIPIENTS": ("escalation_recipients", _strings),
    "ALERTS_BY_SEVERITY": ("alerts_by_severity", _alerts_by_severity),
    "ENVIRONMENT": ("environment", _environment),
    "AUTO_SCALE_ON_ERROR": ("auto_scale_on_error", _boolean),
    "MAX_SCALE_FACTOR": ("max_scale_factor", _scale),
}
"""Django's name of each setting, the attribute of Conf, and how its value is read."""

assert {attribute for attribute, _ in SETTINGS.values()} == {entry.name for entry in fields(Conf)}  # noqa: S101


def forget(**_: object) -> None:
    """Read the settings again when next asked for."""
    global _cached
    _cached = None


def _changed(*, setting: str, **_: object) -> None:
    if setting in SETTINGS or setting in ("DATABASES", "CACHES", "BASE_DIR"):
        forget()


setting_changed.connect(_changed, dispatch_uid="error_logging.conf")
