"""A Django site in one file, whose query takes as long as the test says: settings, pages and the WSGI application."""

from __future__ import annotations

import os
from typing import Any

BASE_DIR = os.path.dirname(__file__)  # noqa: PTH120
SECRET_KEY = "only-for-tests"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "verified_site"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "error_logging"]
MIDDLEWARE = ["error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["SITE_DATABASE"],
        "USER": "postgres",
        "HOST": os.environ["SITE_DATABASE_HOST"],
        "CONN_MAX_AGE": 60,
        "OPTIONS": {"options": "-c statement_timeout=400"},
    }
}
UPRIGHT_URL = os.environ["SITE_UPRIGHT_URL"]
UPRIGHT_SECRET = os.environ["SITE_UPRIGHT_SECRET"]
UPRIGHT_SERVICE = os.environ["SITE_SERVICE"]
UPRIGHT_SPOOL_DIR = os.environ["SITE_SPOOL_DIR"]
UPRIGHT_MAX_WAITERS = 2
ERROR_RECOVERY_TIMEOUT = 8000


class OrderTooSlow(Exception):
    """An order that took too long; what waits for it can't do it again."""


def _query() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT seconds FROM pace")
        cursor.execute("SELECT pg_sleep(%s)", cursor.fetchone())


def report(request: Any) -> Any:
    from django.http import HttpResponse

    _query()
    return HttpResponse(str(os.getpid()))


def order(request: Any) -> Any:
    from django.db import OperationalError
    from django.http import HttpResponse

    try:
        _query()
    except OperationalError as error:
        raise OrderTooSlow from error
    return HttpResponse("ordered")


def _patterns() -> list[Any]:
    from django.urls import path

    return [path("report/", report), path("order/", order)]


urlpatterns = _patterns()
