"""A Django site in one file, whose peer the test breaks: settings, pages and the WSGI application."""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

BASE_DIR = os.path.dirname(__file__)  # noqa: PTH120
SECRET_KEY = "only-for-tests"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "site_under_load"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "error_logging"]
MIDDLEWARE = ["error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
_database = urlsplit(os.environ["SITE_DATABASE_URL"])
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _database.path.lstrip("/"),
        "USER": "postgres",
        "HOST": os.environ["SITE_DATABASE_HOST"],
    }
}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": os.environ["SITE_REDIS_URL"],
        "KEY_PREFIX": "traffic",
    }
}
UPRIGHT_URL = os.environ["SITE_UPRIGHT_URL"]
UPRIGHT_SECRET = os.environ["SITE_UPRIGHT_SECRET"]
UPRIGHT_SERVICE = "traffic"
UPRIGHT_SPOOL_DIR = os.environ["SITE_SPOOL_DIR"]
UPRIGHT_MAX_WAITERS = 2
UPRIGHT_LAST_GOOD = ["prices/"]
UPRIGHT_LAST_GOOD_CACHE = "default"
ERROR_RECOVERY_TIMEOUT = 4000

PEER_HOST, PEER_PORT = "127.0.0.1", int(os.environ["SITE_PEER_PORT"])
CAPACITY = 3
_busy = threading.Semaphore(CAPACITY)


class OverloadedError(Exception):
    """More requests at a time than it can bear."""


def fetched() -> bytes:
    with urllib.request.urlopen(f"http://{PEER_HOST}:{PEER_PORT}/", timeout=5) as answer:
        return answer.read()


def pay(request: Any) -> Any:
    from django.http import HttpResponse

    from error_logging.breakers import guard

    with guard(PEER_HOST, PEER_PORT):
        return HttpResponse(fetched())


def prices(request: Any) -> Any:
    from django.http import HttpResponse

    return HttpResponse(fetched())


def busy(request: Any) -> Any:
    from django.http import HttpResponse

    if not _busy.acquire(blocking=False):
        raise OverloadedError
    try:
        time.sleep(0.1)
        return HttpResponse("done")
    finally:
        _busy.release()


def _patterns() -> list[Any]:
    from django.urls import path

    return [path("pay/", pay), path("prices/", prices), path("busy/", busy)]


urlpatterns = _patterns()
