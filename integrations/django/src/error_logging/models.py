"""The log of errors."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models
from django.utils import timezone

from error_logging import classification
from error_logging.conf import current


class SeverityField(models.CharField):  # type: ignore[type-arg]
    """A severity that comes from the error's type where nobody set it; in `bulk_create` too."""

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        given = getattr(model_instance, self.attname)
        if not given:
            error_type = str(getattr(model_instance, "error_type", ""))
            environment = getattr(model_instance, "environment", "") or current().environment
            given = classification.classify_type(error_type, environment).severity
            setattr(model_instance, self.attname, given)
        return given

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.CharField", args, kwargs


def environment_now() -> str:
    return current().environment


class ErrorLog(models.Model):
    """One error, and what became of it.

    Rows are written by the middleware, the decorator and the context manager; the application may create its own:
    `service`, `error_type` and `message` suffice.
    """

    class Severity(models.TextChoices):
        CRITICAL = "critical"
        HIGH = "high"
        MEDIUM = "medium"
        LOW = "low"

    error_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    service = models.CharField(max_length=200, default="django")
    error_type = models.CharField(max_length=200)
    severity = SeverityField(max_length=10, choices=Severity.choices, blank=True)
    message = models.TextField(blank=True, default="")
    context = models.JSONField(blank=True, default=dict)
    """What the application told of the error, and recovery_attempted, recovery_success, recovery_strategy, recovery."""
    resolved = models.BooleanField(default=False)
    timestamp = models.DateTimeField(default=timezone.now)
    environment = models.CharField(max_length=50, blank=True, default=environment_now)
    route = models.CharField(max_length=500, blank=True, default="")
    method = models.CharField(max_length=20, blank=True, default="")
    details = models.JSONField(blank=True, default=dict)
    """Class names, frames, request and measurements, as the event has them; scrubbed."""

    class Meta:
        ordering = ["-timestamp"]
        verbose_name = "error"
        indexes = [
            models.Index(fields=["severity", "resolved", "-timestamp"], name="errorlog_severity_resolved"),
            models.Index(fields=["service", "-timestamp"], name="errorlog_service"),
            models.Index(fields=["error_type", "-timestamp"], name="errorlog_error_type"),
            models.Index(fields=["-timestamp"], name="errorlog_timestamp"),
        ]

    def __str__(self) -> str:
        return f"{self.error_type} in {self.service} ({self.error_id})"

    @property
    def traceback(self) -> str:
        """The frames as text, the innermost last."""
        return "\n".join(
            f"{'' if frame.get('in_app') else '  '}{frame.get('module')}:{frame.get('line')} in {frame.get('function')}"
            for frame in (self.details or {}).get("frames", [])
        )

    @property
    def recovery(self) -> dict[str, Any]:
        """The report of its latest recovery; empty where there is none."""
        found = self.told.get("recovery")
        return found if isinstance(found, dict) else {}

    @property
    def told(self) -> dict[str, Any]:
        """The context, whatever someone wrote there."""
        return self.context if isinstance(self.context, dict) else {}
