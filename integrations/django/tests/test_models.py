"""ErrorLog: the guide's snippets as printed, defaults, and the indexes that its queries use."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models import Count, QuerySet
from django.test import Client
from django.utils import timezone

from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, action, final, recovered, report

pytestmark = pytest.mark.django_db


class TestCreate:
    def test_with_a_severity_as_printed(self) -> None:
        ErrorLog.objects.create(
            service='django',
            error_type='TimeoutError',
            severity='high',  # Critical or High for time-sensitive
            message='Database query timeout',
        )  # fmt: skip
        row = ErrorLog.objects.get()
        assert (row.service, row.error_type, row.severity, row.message) == (
            "django", "TimeoutError", "high", "Database query timeout",
        )  # fmt: skip
        assert (row.resolved, row.context, row.details, row.environment) == (False, {}, {}, "production")
        assert isinstance(row.error_id, uuid.UUID)
        assert abs(timezone.now() - row.timestamp) < timedelta(minutes=1)

    def test_with_context_as_printed(self) -> None:
        error_log = ErrorLog.objects.create(
            service='django',
            error_type='DatabaseError',
            message='Connection pool exhausted',
            context={
                'current_connections': 25,
                'max_connections': 25,
                'pending_requests': 15,
                'affected_queries': ['SELECT', 'UPDATE'],
            }
        )  # fmt: skip
        assert error_log.severity == "critical"
        error_log.refresh_from_db()
        assert error_log.context["affected_queries"] == ["SELECT", "UPDATE"]

    @pytest.mark.parametrize(
        ("error_type", "severity"),
        [
            ("DatabaseError", "critical"),
            ("TimeoutError", "high"),
            ("KeyError", "medium"),
            ("Nothing", "low"),
            ("", "low"),
        ],
    )
    def test_the_severity_comes_from_the_type(self, error_type: str, severity: str) -> None:
        assert ErrorLog.objects.create(error_type=error_type).severity == severity
        ErrorLog.objects.bulk_create([ErrorLog(error_type=error_type)])
        assert set(ErrorLog.objects.values_list("severity", flat=True)) == {severity}

    def test_in_its_environment(self, settings) -> None:
        settings.ENVIRONMENT = "development"
        row = ErrorLog.objects.create(error_type="DatabaseError")
        assert (row.environment, row.severity) == ("development", "high")
        assert ErrorLog.objects.create(error_type="DatabaseError", environment="production").severity == "critical"

    def test_one_that_was_set_stays(self) -> None:
        row = ErrorLog.objects.create(error_type="DatabaseError", severity="low")
        row.message = "changed"
        row.save()
        row.refresh_from_db()
        assert row.severity == "low"

    def test_forms_know_what_is_allowed(self) -> None:
        with pytest.raises(ValidationError, match="terrible"):
            ErrorLog(error_type="X", severity="terrible").full_clean()
        ErrorLog(error_type="X").full_clean()

    def test_an_error_is_one_row(self) -> None:
        row = ErrorLog.objects.create(error_type="X")
        with pytest.raises(IntegrityError), transaction.atomic():
            ErrorLog.objects.create(error_type="X", error_id=row.error_id)

    def test_it_tells_what_it_is(self) -> None:
        row = ErrorLog(error_type="KeyError", service="shop")
        assert str(row) == f"KeyError in shop ({row.error_id})"


class TestTheGuidesQueries:
    def test_recent_critical_errors_as_printed(
        self, service: ScriptedService, client: Client, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = ErrorLog.objects.create(error_type="DatabaseError")
        service.on_error(final(report("not_recovered", action("retry", "not_recovered")), severity="critical"))
        answered = client.get("/broken/").json()["error"]["error_id"]
        ErrorLog.objects.create(error_type="DatabaseError", resolved=True)

        critical_errors = ErrorLog.objects.filter(severity="critical", resolved=False).order_by("-timestamp")[:10]

        for error in critical_errors:
            print(f"{error.error_id}: {error.error_type}")
            print(f"  Recovery attempted: {error.context.get('recovery_attempted')}")
            print(f"  Recovery successful: {error.context.get('recovery_success')}")
        assert capsys.readouterr().out.splitlines() == [
            f"{answered}: ValueError",
            "  Recovery attempted: True",
            "  Recovery successful: False",
            f"{made.error_id}: DatabaseError",
            "  Recovery attempted: None",
            "  Recovery successful: None",
        ]

    def test_the_most_successful_strategies_as_printed(self, service: ScriptedService, client: Client) -> None:
        for strategy in ("pool_increase", "retry", "pool_increase"):
            service.on_error(recovered(strategy))
            client.get("/broken/")
        service.on_error(final(report("not_recovered", action("cache_clear", "not_recovered"))))
        client.get("/broken/")

        successful_recoveries = ErrorLog.objects.filter(
            context__recovery_success=True
        ).values('context__recovery_strategy').annotate(
            count=Count('id')
        ).order_by('-count')  # fmt: skip

        assert list(successful_recoveries) == [
            {"context__recovery_strategy": "pool_increase", "count": 2},
            {"context__recovery_strategy": "retry", "count": 1},
        ]


class TestIndexes:
    @pytest.fixture(autouse=True)
    def many(self) -> None:
        now = timezone.now()
        ErrorLog.objects.bulk_create(
            ErrorLog(
                error_type="KeyError" if number % 500 == 0 else ("ValueError", "DatabaseError")[number % 2],
                service=f"service-{number % 20}",
                resolved=number % 50 != 0,
                timestamp=now - timedelta(minutes=number),
            )
            for number in range(6_000)
        )
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE error_logging_errorlog")

    def plan(self, query: QuerySet[Any, Any]) -> str:
        return query.explain()

    def test_recent_critical_errors(self) -> None:
        critical = ErrorLog.objects.filter(severity="critical", resolved=False).order_by("-timestamp")[:10]
        plan = self.plan(critical)
        assert "errorlog_severity_resolved" in plan
        assert "Sort" not in plan

    def test_the_summary_of_a_service(self) -> None:
        day = ErrorLog.objects.filter(service="service-3", timestamp__gte=timezone.now() - timedelta(hours=24))
        assert "errorlog_" in self.plan(day)
        assert "Seq Scan" not in self.plan(day.order_by())

    def test_those_of_a_type(self) -> None:
        assert "errorlog_error_type" in self.plan(ErrorLog.objects.filter(error_type="KeyError")[:50])

    def test_the_newest(self) -> None:
        assert "errorlog_timestamp" in self.plan(ErrorLog.objects.all()[:50])

    def test_one_by_its_id(self) -> None:
        assert "Index Scan" in self.plan(ErrorLog.objects.filter(error_id=uuid.uuid4()).order_by())


class TestWhatItTells:
    def test_the_traceback_of_an_error(self, client: Client) -> None:
        client.get("/broken/")
        assert ErrorLog.objects.get().traceback.splitlines()[-1].strip().startswith("site_urls:")

    def test_the_report_of_its_recovery(self, service: ScriptedService, client: Client) -> None:
        service.on_error(recovered("retry"))
        client.get("/broken/")
        assert ErrorLog.objects.get().recovery["status"] == "recovered"

    @pytest.mark.parametrize("context", [{}, {"recovery": None}, {"recovery": "by hand"}])
    def test_nothing_where_there_is_none(self, context: dict[str, Any]) -> None:
        row = ErrorLog.objects.create(error_type="X", context=context)
        assert (row.recovery, row.traceback) == ({}, "")


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "error_logging", check=True, dry_run=True, verbosity=0)
