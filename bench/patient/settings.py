"""Settings of the patient, from the environment that bench/stack.py gives it."""

import os

DEBUG = False
SECRET_KEY = "bench"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "bench.patient.urls"
WSGI_APPLICATION = "bench.patient.wsgi.application"
INSTALLED_APPS = ["error_logging"]
MIDDLEWARE = [
    "bench.patient.stopwatch.Answered",
    "error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware",
    "bench.patient.stopwatch.Raised",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PATIENT_DATABASE"],
        "USER": "postgres",
        "HOST": os.environ["PATIENT_HOST"],
        "OPTIONS": {"options": "-c statement_timeout=40", "pool": {"min_size": 2, "max_size": 10, "timeout": 2}},
    }
}
SILENCED_SYSTEM_CHECKS = ["upright.W004"]  # the stopwatch stands inside on purpose
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING = {"version": 1, "disable_existing_loggers": True}
USE_TZ = True
ERROR_RECOVERY_TIMEOUT = 5000
UPRIGHT_URL = os.environ.get("UPRIGHT_URL")
UPRIGHT_SECRET = os.environ.get("UPRIGHT_SECRET")
UPRIGHT_SERVICE = "bench"
UPRIGHT_SPOOL_DIR = os.environ["PATIENT_SPOOL"]
