"""ErrorLog in the admin: lists, filters, searches, pages; nothing of an error's text becomes HTML."""

from __future__ import annotations

import threading
import uuid

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from error_logging.ai_recovery_middleware import trigger_manual_recovery
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, action, final, pending, recovered, report

pytestmark = pytest.mark.django_db

LIST = "/admin/error_logging/errorlog/"
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture
def boss() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("boss"))
    return client


def someone_with(*codenames: str) -> Client:
    user = User.objects.create_user("someone", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


def page_of(client: Client, row: ErrorLog) -> str:
    response = client.get(f"{LIST}{row.pk}/change/")
    assert response.status_code == 200
    return response.content.decode()


def test_an_error_is_listed_and_shown(service: ScriptedService, boss: Client) -> None:
    told = report("recovered", action("retry", "not_recovered", reason="still refused"), action("pool_increase"))
    service.on_error(final(told))
    Client().get("/broken/")
    row = ErrorLog.objects.get()
    listed = boss.get(LIST).content.decode()
    assert "ValueError" in listed
    assert "it is broken" in listed
    assert "pool_increase" in listed
    page = page_of(boss, row)
    for shown in (
        str(row.error_id), "it is broken", "broken/", "recovered: Recovery successful: Pool Increase", "retry",
        "not_recovered", "still refused", "pool_increase", "site_urls:",
    ):  # fmt: skip
        assert shown in page


def test_one_made_by_hand_too(boss: Client) -> None:
    row = ErrorLog.objects.create(error_type="DatabaseError", context={"current_connections": 25})
    page = page_of(boss, row)
    assert "No recovery" in page
    assert "current_connections" in page


@pytest.mark.parametrize(
    "context",
    [
        None, {}, {"recovery": None}, {"recovery": "text"}, {"recovery": {"actions": "text"}},
        {"recovery": {"actions": [None, {}, {"duration_ms": "long", "strategy": None}]}}, {"recovery_success": True},
        ["a", "list"], "text", 7,
    ],
)  # fmt: skip
def test_whatever_someone_wrote_into_context_is_shown_or_left_out(boss: Client, context: object) -> None:
    row = ErrorLog.objects.create(error_type="X")
    ErrorLog.objects.update(context=context if context is not None else {})
    page_of(boss, row)
    assert boss.get(LIST).status_code == 200
    assert trigger_manual_recovery(row.error_id)["success"] is False


def test_no_text_becomes_html(boss: Client) -> None:
    row = ErrorLog.objects.create(
        service=HOSTILE,
        error_type=HOSTILE,
        message=HOSTILE,
        route=HOSTILE,
        context={
            HOSTILE: HOSTILE,
            "recovery_success": True,
            "recovery_strategy": HOSTILE,
            "recovery": {
                "status": HOSTILE,
                "message": HOSTILE,
                "actions": [{"strategy": HOSTILE, "verdict": HOSTILE, "reason": HOSTILE, "duration_ms": HOSTILE}],
            },
        },
        details={"frames": [{"module": HOSTILE, "line": HOSTILE, "function": HOSTILE}]},
    )
    for page in (boss.get(LIST).content.decode(), page_of(boss, row)):
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("severity__exact=critical", {"DatabaseError"}),
        ("resolved__exact=1", {"KeyError"}),
        ("service=billing", {"KeyError"}),
        ("error_type=DatabaseError", {"DatabaseError"}),
        ("environment=production", {"DatabaseError", "KeyError"}),
        ("q=exhausted", {"DatabaseError"}),
        ("q=KeyErr", {"KeyError"}),
        ("q=orders/pay", {"KeyError"}),
        ("q=nothing+of+this", set()),
        ("q=550e8400-e29b-41d4-a716-446655440000", {"DatabaseError"}),
        (f"q={uuid.uuid4()}", set()),
        ("q=%22two+words%22", set()),
        ("q=%25", set()),
    ],
)
def test_filters_and_search(boss: Client, query: str, found: set[str]) -> None:
    ErrorLog.objects.create(
        error_id="550e8400-e29b-41d4-a716-446655440000", error_type="DatabaseError", message="Pool exhausted"
    )
    ErrorLog.objects.create(error_type="KeyError", service="billing", resolved=True, route="orders/pay/")
    response = boss.get(f"{LIST}?{query}")
    assert response.status_code == 200
    assert {row.error_type for row in response.context["cl"].result_list} == found


def test_by_date(boss: Client) -> None:
    row = ErrorLog.objects.create(error_type="X")
    at = row.timestamp
    response = boss.get(f"{LIST}?timestamp__year={at.year}&timestamp__month={at.month}&timestamp__day={at.day}")
    assert [one.pk for one in response.context["cl"].result_list] == [row.pk]


def test_marking_as_resolved(boss: Client) -> None:
    rows = [ErrorLog.objects.create(error_type="X") for _ in range(3)]
    chosen = [row.pk for row in rows[:2]]
    response = boss.post(LIST, {"action": "resolve", "_selected_action": chosen}, follow=True)
    assert "2 errors are resolved now." in response.content.decode()
    assert set(ErrorLog.objects.filter(resolved=True).values_list("pk", flat=True)) == set(chosen)


def test_nothing_is_typed_in(boss: Client) -> None:
    row = ErrorLog.objects.create(error_type="X", message="as it was")
    assert boss.get(f"{LIST}add/").status_code == 403
    assert boss.post(f"{LIST}{row.pk}/change/", {"message": "another"}).status_code == 403
    row.refresh_from_db()
    assert row.message == "as it was"


class TestWhoMay:
    def test_one_who_may_view_can_not_resolve(self) -> None:
        row = ErrorLog.objects.create(error_type="X")
        client = someone_with("view_errorlog")
        assert client.get(LIST).status_code == 200
        page_of(client, row)
        client.post(LIST, {"action": "resolve", "_selected_action": [row.pk]})
        assert not ErrorLog.objects.get().resolved

    def test_one_who_may_change_can(self) -> None:
        row = ErrorLog.objects.create(error_type="X")
        client = someone_with("change_errorlog")
        page_of(client, row)
        client.post(LIST, {"action": "resolve", "_selected_action": [row.pk]})
        assert ErrorLog.objects.get().resolved

    def test_others_see_nothing(self) -> None:
        row = ErrorLog.objects.create(error_type="X")
        client = someone_with()
        assert client.get(LIST).status_code == 403
        assert client.get(f"{LIST}{row.pk}/change/").status_code == 403


def test_a_long_list_needs_few_queries(boss: Client, django_assert_max_num_queries) -> None:
    ErrorLog.objects.bulk_create(ErrorLog(error_type=f"Error{number % 5}") for number in range(120))
    with django_assert_max_num_queries(12):
        assert boss.get(LIST).status_code == 200


def test_it_can_be_recovered_again_from_the_list(service: ScriptedService, boss: Client) -> None:
    rows = [ErrorLog.objects.create(error_type="TimeoutError") for _ in range(2)]
    service.on_recovery(recovered(), final(report("not_recovered")))
    response = boss.post(LIST, {"action": "recover", "_selected_action": [row.pk for row in rows]}, follow=True)
    assert len(service.recoveries) == 2
    assert ErrorLog.objects.filter(resolved=True).count() == 1
    text = response.content.decode()
    assert "1 of 2 errors recovered." in text


def test_recovering_takes_no_longer_than_one_request_may_wait(service: ScriptedService, boss: Client, settings) -> None:
    settings.ERROR_RECOVERY_TIMEOUT = 300
    rows = [ErrorLog.objects.create(error_type="TimeoutError") for _ in range(20)]
    service.on_recovery(*[pending().held(threading.Event())] * 20)
    response = boss.post(LIST, {"action": "recover", "_selected_action": [row.pk for row in rows]}, follow=True)
    assert len(service.recoveries) < 20
    assert "were not begun: choose fewer at a time" in response.content.decode()


def test_who_may_only_view_can_not_recover(service: ScriptedService) -> None:
    row = ErrorLog.objects.create(error_type="X")
    someone_with("view_errorlog").post(LIST, {"action": "recover", "_selected_action": [row.pk]})
    assert service.recoveries == []
