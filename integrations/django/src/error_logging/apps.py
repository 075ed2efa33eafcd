"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class ErrorLoggingConfig(AppConfig):
    name = "error_logging"
    verbose_name = "Errors and recoveries"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Nothing starts here: a server forks after this, and most commands serve no requests.
        from django.core.signals import request_finished

        from error_logging import checks, drain, recording

        checks.register()
        drain.start_with_first_request()
        request_finished.connect(recording.write_deferred, dispatch_uid="error_logging.recording")
