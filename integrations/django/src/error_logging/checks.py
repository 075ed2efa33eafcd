"""What `manage.py check` says about the settings, with what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from error_logging import conf, recipients, spool

MIDDLEWARE = (
    "error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware",
    "error_logging.middleware.AIErrorRecoveryMiddleware",
)
_BEFORE = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
_TAG = "upright"


def register() -> None:
    for check in (
        check_settings, check_service, check_middleware, check_spool, check_recipients, check_executor, check_traffic,
    ):  # fmt: skip
        checks.register(check, _TAG)


def check_settings(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> Iterable[CheckMessage]:
    """Types and values; the secret has an id of its own."""
    _read, problems = conf.read()
    for problem in problems:
        if problem.setting == "UPRIGHT_SECRET":
            yield Error(
                f"UPRIGHT_SECRET {problem.reason}.",
                hint='Make one with: echo "whsec_$(head -c 32 /dev/urandom | base64)"; the service must know it too.',
                id="upright.E003",
            )
        else:
            yield Error(
                f"{problem.setting} {problem.reason}.",
                hint="Until it is changed, its default is used.",
                id="upright.E001",
            )


def check_service(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> Iterable[CheckMessage]:
    """The address and the secret belong together."""
    read, problems = conf.read()
    if any(problem.setting in ("UPRIGHT_URL", "UPRIGHT_SECRET") for problem in problems):
        return
    if read.url is None:
        yield Warning(
            "UPRIGHT_URL is not set: errors are logged, and nothing recovers from them.",
            hint='Set UPRIGHT_URL = "https://…" to the address of the Upright service, and UPRIGHT_SECRET.',
            id="upright.W001",
        )
        return
    if not read.secrets:
        yield Error(
            "UPRIGHT_URL is set and UPRIGHT_SECRET isn't: nothing can be sent.",
            hint="Set UPRIGHT_SECRET to the same whsec_… secret as the service's UPRIGHT_SECRETS.",
            id="upright.E002",
        )
    if urlsplit(read.url).scheme != "https" and not conf.loopback(read.url):
        yield Warning(
            f"UPRIGHT_URL ({read.url}) is not https: events can be read on their way.",
            hint="Use https:// for a service on another machine.",
            id="upright.W002",
        )


def check_middleware(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> Iterable[CheckMessage]:
    """Errors reach the middleware, and the request has its session and its user by then."""
    listed = list(getattr(settings, "MIDDLEWARE", None) or [])
    positions = [position for position, name in enumerate(listed) if name in MIDDLEWARE]
    if not positions:
        yield Warning(
            "The middleware is not in MIDDLEWARE: errors of views are not caught.",
            hint=f"Add '{MIDDLEWARE[0]}' at the end of MIDDLEWARE.",
            id="upright.W003",
        )
        return
    if len(positions) > 1:
        yield Error(
            "The middleware is in MIDDLEWARE more than once.",
            hint=f"Keep one '{MIDDLEWARE[0]}', at the end.",
            id="upright.E004",
        )
    late = [name for name in _BEFORE if name in listed[positions[0] + 1 :]]
    if late:
        yield Error(
            f"The middleware comes before {' and '.join(late)}.",
            hint=f"Move '{MIDDLEWARE[0]}' to the end of MIDDLEWARE.",
            id="upright.E005",
        )
    elif positions[-1] != len(listed) - 1:
        yield Warning(
            "The middleware is not the last one: those after it may turn an error into a response before it is seen.",
            hint=f"Move '{MIDDLEWARE[0]}' to the end of MIDDLEWARE, unless it is meant to be so "
            "(then add upright.W004 to SILENCED_SYSTEM_CHECKS).",
            id="upright.W004",
        )


def check_spool(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> Iterable[CheckMessage]:
    read, problems = conf.read()
    if any(problem.setting == "UPRIGHT_SPOOL_DIR" for problem in problems):
        return
    try:
        # Nothing is made here: whoever runs the check need not be the server's user, whose directory it is.
        spool.foresee(read.spool_dir)
    except OSError as error:
        yield Error(
            f"The spool can't be used: {error.strerror}.",
            hint="Set UPRIGHT_SPOOL_DIR to a directory that belongs to the user of the server.",
            id="upright.E006",
        )


def check_executor(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> Iterable[CheckMessage]:
    """The application's own strategies are declared, and can be carried out."""
    name = conf.read()[0].executor
    if name is None:
        return
    from error_logging import execution
    from error_logging.ai_error_recovery import RecoveryStrategy

    try:
        executor = execution.load(name)
    except Exception as error:
        yield Error(
            f"UPRIGHT_EXECUTOR {name!r} can't be used: {error}.",
            hint="Name a subclass of error_logging.ai_error_recovery.AutoRecoveryExecutor.",
            id="upright.E007",
        )
        return
    declared, shipped = RecoveryStrategy.declared(), set(RecoveryStrategy.names())
    for strategy in sorted(declared - shipped):
        if not callable(getattr(executor, f"_execute_{strategy}", None)):
            yield Warning(
                f"The strategy {strategy!r} is declared, and {name} has no _execute_{strategy}.",
                hint=f"Add _execute_{strategy}(self, action), or take the name out of its RecoveryStrategy.",
                id="upright.W006",
            )
    for method in dir(executor):
        strategy = method.removeprefix("_execute_")
        if strategy != method and strategy not in declared:
            yield Warning(
                f"{name} has {method}, and no RecoveryStrategy declares {strategy!r}.",
                hint=f'Declare it: class MyStrategy(RecoveryStrategy): {strategy.upper()} = "{strategy}"',
                id="upright.W007",
            )


def check_recipients(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> Iterable[CheckMessage]:
    read, _problems = conf.read()
    for setting, recipient in recipients.of_settings(read):
        if recipients.channel(recipient) == "unknown":
            yield Warning(
                f"{setting}: {recipients.shown(recipient)!r} is neither an e-mail address nor an https:// webhook; "
                "it gets no alerts.",
                hint="Write an address such as ops@example.com, or the whole URL of a webhook.",
                id="upright.W005",
            )


def check_traffic(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> Iterable[CheckMessage]:
    """What fallbacks and throttles need is there."""
    read, _problems = conf.read()
    for route, dotted in read.fallback_views.items():
        try:
            import_string(dotted)
        except Exception as error:
            yield Error(
                f"UPRIGHT_FALLBACK_VIEWS[{route!r}] can't be imported ({type(error).__name__}).",
                hint="Name a view by its dotted path, such as shop.views.prices_of_yesterday.",
                id="upright.E008",
            )
    if read.rate_limit_storage is not None and find_spec("redis") is None:
        yield Error(
            "UPRIGHT_RATE_LIMIT_STORAGE is set and the package redis is not installed: each process counts for itself.",
            hint="Install redis, or leave the setting out.",
            id="upright.E009",
        )
    for name, address in read.fallback_services.items():
        if urlsplit(address).scheme != "https" and not conf.loopback(address):
            yield Warning(
                f"UPRIGHT_FALLBACK_SERVICES[{name!r}] ({address}) is not https: requests can be read on their way.",
                hint="Use https:// for a service on another machine.",
                id="upright.W008",
            )
