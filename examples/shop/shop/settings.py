"""Settings of the sample shop, from the environment. `upright up` sets it; SHOP_… are the shop's own engines."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "only-for-the-sample-shop")
DEBUG = os.environ.get("SHOP_DEBUG") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "django.contrib.staticfiles",
    "error_logging",
    "storefront",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware",
]

ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
ASGI_APPLICATION = "shop.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# A pool as small as this is a mistake that shops make; so is a report that outgrows the statement timeout.
POOL_MAX_SIZE = int(os.environ.get("SHOP_POOL_MAX_SIZE", "2"))
STATEMENT_TIMEOUT_MS = int(os.environ.get("SHOP_STATEMENT_TIMEOUT_MS", "500"))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ.get("SHOP_DB_HOST", ""),
        "PORT": os.environ.get("SHOP_DB_PORT", ""),
        "NAME": os.environ.get("SHOP_DB_NAME", "shop"),
        "USER": os.environ.get("SHOP_DB_USER", "postgres"),
        "PASSWORD": os.environ.get("SHOP_DB_PASSWORD", ""),
        "OPTIONS": {
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
            "application_name": os.environ.get("SHOP_APPLICATION_NAME", "shop"),
            "pool": {"min_size": 1, "max_size": POOL_MAX_SIZE, "timeout": 0.5, "max_idle": 60},
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHE_URL = os.environ.get("SHOP_REDIS_URL", "redis://127.0.0.1:6379/0")
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": CACHE_URL,
        "KEY_PREFIX": os.environ.get("SHOP_CACHE_PREFIX", "shop"),
        "TIMEOUT": 600,
    }
}

UPSTREAM_URL = os.environ.get("SHOP_UPSTREAM_URL", "http://127.0.0.1:9000")
"""The carrier that quotes shipping."""

PREFECT_UI_URL = os.environ.get("SHOP_PREFECT_UI_URL", "")
"""Linked from the front page."""

STATIC_URL = "static/"
USE_TZ = True
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
EMAIL_HOST = "127.0.0.1"
EMAIL_PORT = int(os.environ.get("SHOP_SMTP_PORT", "25"))
EMAIL_TIMEOUT = 5
DEFAULT_FROM_EMAIL = "errors@shop.example"

# Upright
UPRIGHT_URL = os.environ.get("UPRIGHT_URL")
UPRIGHT_SECRET = os.environ.get("UPRIGHT_SECRET")
UPRIGHT_ENABLED = os.environ.get("UPRIGHT_ENABLED", "1") != "0"
UPRIGHT_SERVICE = os.environ.get("UPRIGHT_SERVICE", "shop")
UPRIGHT_TEST_ERROR = os.environ.get("SHOP_TEST_ERROR") == "1"
if "SHOP_SPOOL_DIR" in os.environ:
    UPRIGHT_SPOOL_DIR = os.environ["SHOP_SPOOL_DIR"]

ERROR_ALERT_RECIPIENTS = ["error-team@shop.example", "ops@shop.example"]
ERROR_ESCALATION_RECIPIENTS = ["incident-commander@shop.example"]
ERROR_RECOVERY_TIMEOUT = 5000
ENVIRONMENT = "production"
