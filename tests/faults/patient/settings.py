"""The application that is broken: one Django project, run as several services, with recovery on or off."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BASE_DIR = Path(__file__).parent
SERVICE = os.environ["PATIENT_SERVICE"]
UPRIGHT_ENABLED = os.environ["PATIENT_ENABLED"] == "1"
WHO = os.environ["PATIENT_WHO"]
"""Tells the peers apart who calls, and keys and connections of one instance from another's."""
if Path(os.environ["PATIENT_DIR"], "broken").exists():
    raise ImportError("No module named 'basket'")
if os.environ.get("PATIENT_FULL"):
    # No file can grow: what a full disk does to a process.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
SECRET_KEY = "only-for-tests"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "pages"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "error_logging"]
MIDDLEWARE = ["error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATEMENT_TIMEOUT_MS, POOL_SIZE = 500, 2
_database = urlsplit(os.environ["PATIENT_DATABASE_URL"])


def _connection(name: str, **changes: Any) -> dict[str, Any]:
    options = {"application_name": name, "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _database.path.lstrip("/"),
        "USER": "postgres",
        "HOST": os.environ["PATIENT_DATABASE_HOST"],
        "PORT": os.environ["PATIENT_DATABASE_PORT"],
        "OPTIONS": options,
        **changes,
    }


DATABASES: dict[str, dict[str, Any]] = {
    "default": _connection(WHO),
    # One that nobody can log in to.
    "ledger": _connection(f"{WHO}-ledger", USER="ledger", PASSWORD="wrong", HOST="127.0.0.1"),
}
DATABASES["default"]["OPTIONS"]["pool"] = {"min_size": 1, "max_size": POOL_SIZE, "timeout": 0.5, "max_idle": 2}
UPRIGHT_DATABASES = ["default"]
_redis = {
    "BACKEND": "django.core.cache.backends.redis.RedisCache",
    "LOCATION": os.environ["PATIENT_REDIS_URL"],
    "KEY_PREFIX": WHO,
    "OPTIONS": {"socket_connect_timeout": 1, "socket_timeout": 1},
}
CACHES: dict[str, dict[str, Any]] = {
    "default": _redis,
    "table": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "cached_pages",
        "KEY_PREFIX": WHO,
    },
    "files": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": os.environ["PATIENT_DIR"] + "/cache",
        "KEY_PREFIX": WHO,
    },
    "memory": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "KEY_PREFIX": WHO},
}
CELERY_BROKER = os.environ["PATIENT_BROKER_URL"]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

UPRIGHT_URL = os.environ["PATIENT_UPRIGHT_URL"]
UPRIGHT_SECRET = os.environ["PATIENT_UPRIGHT_SECRET"]
UPRIGHT_SERVICE = SERVICE
UPRIGHT_SPOOL_DIR = os.environ["PATIENT_DIR"] + "/spool"
UPRIGHT_MAX_WAITERS = 4
UPRIGHT_LAST_GOOD_CACHE = "default"
UPRIGHT_FALLBACK_SERVICES = {"laravel": os.environ["PATIENT_ALTERNATIVE_URL"]}
UPRIGHT_HEALTH_PATHS = ["/healthz"]
UPRIGHT_RATE_LIMIT_STORAGE = os.environ["PATIENT_REDIS_URL"]
ERROR_RECOVERY_TIMEOUT = 8000
AUTO_SCALE_ON_ERROR = True
MAX_SCALE_FACTOR = 3.0
PEER_URL = os.environ["PATIENT_PEER_URL"]
OWN_URL = os.environ["PATIENT_OWN_URL"]
