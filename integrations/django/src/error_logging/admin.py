"""Errors in the admin: to read, to find, and to mark as resolved."""

from __future__ import annotations

import time
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import ngettext

from error_logging.conf import current
from error_logging.manual import trigger_manual_recovery
from error_logging.models import ErrorLog

FIELDSETS: list[Any] = [
    (None, {"fields": ["error_id", "timestamp", "service", "environment", "severity", "resolved"]}),
    ("Error", {"fields": ["error_type", "message", "method", "route", "traceback_text"]}),
    ("Recovery", {"fields": ["recovery_message", "recovery_actions"]}),
    ("Context", {"fields": ["context_table"]}),
]


@admin.register(ErrorLog)
class ErrorLogAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["timestamp", "service", "error_type", "severity", "short_message", "recovered_by", "resolved"]
    list_filter = ["service", "severity", "error_type", "resolved", "environment"]
    search_fields = ["=error_id", "error_type", "message", "route"]
    date_hierarchy = "timestamp"
    ordering = ["-timestamp"]
    list_per_page = 50
    show_full_result_count = False
    actions = ["resolve", "recover"]
    fieldsets = FIELDSETS

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: ErrorLog | None = None) -> bool:
        # The page is read-only; whoever may change errors may run the actions on the list.
        return obj is None and super().has_change_permission(request, obj)

    def has_view_permission(self, request: HttpRequest, obj: ErrorLog | None = None) -> bool:
        return super().has_view_permission(request, obj) or super().has_change_permission(request, None)

    @admin.action(description="Mark as resolved", permissions=["change"])
    def resolve(self, request: HttpRequest, queryset: QuerySet[ErrorLog]) -> None:
        changed = queryset.filter(resolved=False).update(resolved=True)
        text = ngettext("%d error is resolved now.", "%d errors are resolved now.", changed) % changed
        self.message_user(request, text, messages.SUCCESS)

    @admin.action(description="Recover again", permissions=["change"])
    def recover(self, request: HttpRequest, queryset: QuerySet[ErrorLog]) -> None:
        """One after the other, for as long as one request may wait for a recovery."""
        deadline = time.monotonic() + current().recovery_timeout_ms / 1000
        identities = list(queryset.values_list("error_id", flat=True))
        results: list[bool] = []
        for error_id in identities:
            results.append(trigger_manual_recovery(error_id)["success"])
            if time.monotonic() >= deadline:
                break
        text = f"{sum(results)} of {len(identities)} errors recovered."
        if len(results) < len(identities):
            text += f" {len(identities) - len(results)} were not begun: choose fewer at a time."
        self.message_user(request, text, messages.SUCCESS if all(results) else messages.WARNING)

    @admin.display(description="message")
    def short_message(self, error: ErrorLog) -> str:
        return error.message if len(error.message) <= 80 else error.message[:79] + "…"

    @admin.display(description="recovered by")
    def recovered_by(self, error: ErrorLog) -> str:
        context = error.told
        return str(context.get("recovery_strategy") or "–") if context.get("recovery_success") else "–"

    @admin.display(description="traceback")
    def traceback_text(self, error: ErrorLog) -> SafeString:
        return format_html("<pre>{}</pre>", error.traceback or "–")

    @admin.display(description="outcome")
    def recovery_message(self, error: ErrorLog) -> str:
        report = error.recovery
        return f"{report.get('status', '')}: {report.get('message', '')}" if report else "No recovery"

    @admin.display(description="actions")
    def recovery_actions(self, error: ErrorLog) -> SafeString | str:
        told = error.recovery.get("actions")
        actions = [entry for entry in (told if isinstance(told, list) else []) if isinstance(entry, dict)]
        if not actions:
            return "None"
        cells = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{} ms</td><td>{}</td></tr>",
            (
                (
                    entry.get("strategy", ""),
                    entry.get("verdict", ""),
                    _whole(entry.get("duration_ms")),
                    entry.get("reason", ""),
                )
                for entry in actions
            ),
        )
        return format_html(
            "<table><thead><tr><th>Strategy</th><th>Verdict</th><th>Took</th><th>Reason</th></tr></thead>"
            "<tbody>{}</tbody></table>",
            cells,
        )

    @admin.display(description="context")
    def context_table(self, error: ErrorLog) -> SafeString | str:
        shown = [(key, entry) for key, entry in error.told.items() if not key.startswith("recovery")]
        if not shown:
            return "None"
        return format_html(
            "<table>{}</table>",
            format_html_join("", "<tr><th>{}</th><td>{}</td></tr>", ((k, str(v)) for k, v in shown)),
        )

    def get_readonly_fields(self, request: HttpRequest, obj: ErrorLog | None = None) -> Any:
        return [name for _, options in FIELDSETS for name in options["fields"]]


def _whole(given: object) -> str:
    return f"{given:.0f}" if isinstance(given, (int, float)) else "–"
