"""The endpoints of the guide: their formats, who may call them, and what is said to a bad request."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from error_logging import signatures
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, action, final, recovered, report

pytestmark = pytest.mark.django_db

SUMMARY, TRIGGER, TEST_ERROR = "/api/errors/summary/", "/api/errors/recovery/trigger/", "/api/test-error/"
SECRET = "whsec_" + "A" * 40


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("staff", is_staff=True))
    return client


def make(count: int, **fields: Any) -> list[ErrorLog]:
    return [ErrorLog.objects.create(**{"error_type": "TimeoutError", **fields}) for _ in range(count)]


class TestSummary:
    def test_it_is_what_the_guide_prints(self, staff: Client) -> None:
        make(15, error_type="TimeoutError")
        make(12, error_type="DatabaseError", resolved=True)
        make(10, error_type="ValidationError")
        response = staff.get(f"{SUMMARY}?service=django&hours=24")
        assert response.status_code == 200
        assert list(response.json().items()) == [
            ("total_errors", 37),
            ("critical_errors", 12),
            ("high_errors", 15),
            ("unresolved_errors", 25),
            (
                "error_types",
                [
                    {"error_type": "TimeoutError", "count": 15},
                    {"error_type": "DatabaseError", "count": 12},
                    {"error_type": "ValidationError", "count": 10},
                ],
            ),
        ]

    def test_empty_it_has_the_same_shape(self, staff: Client) -> None:
        assert staff.get(SUMMARY).json() == {
            "total_errors": 0, "critical_errors": 0, "high_errors": 0, "unresolved_errors": 0, "error_types": [],
        }  # fmt: skip

    def test_it_is_of_one_service(self, staff: Client) -> None:
        make(2, service="django")
        make(3, service="billing")
        assert staff.get(f"{SUMMARY}?service=billing").json()["total_errors"] == 3
        assert staff.get(SUMMARY).json()["total_errors"] == 5
        assert staff.get(f"{SUMMARY}?service=nobody").json()["total_errors"] == 0

    def test_it_is_of_the_last_hours(self, staff: Client) -> None:
        make(1)
        make(1, timestamp=timezone.now() - timedelta(hours=23))
        make(1, timestamp=timezone.now() - timedelta(hours=25))
        assert staff.get(SUMMARY).json()["total_errors"] == 2
        assert staff.get(f"{SUMMARY}?hours=48").json()["total_errors"] == 3
        assert staff.get(f"{SUMMARY}?hours=1").json()["total_errors"] == 1

    def test_errors_of_the_middleware_are_in_it(self, staff: Client) -> None:
        staff.get("/broken/")
        assert staff.get(f"{SUMMARY}?service=django").json()["error_types"] == [
            {"error_type": "ValueError", "count": 1}
        ]

    @pytest.mark.parametrize("hours", ["0", "-1", "1.5", "many", "8761", "", "9" * 30, "٣", "1e3", " 1"])
    def test_bad_hours_are_told(self, staff: Client, hours: str) -> None:
        response = staff.get(SUMMARY, {"hours": hours})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")
        assert response.json()["error"]["message"] == "hours must be a whole number from 1 to 8760"

    @pytest.mark.parametrize("service", ["x" * 201, "a\x00b"])
    def test_a_bad_service_is_told(self, staff: Client, service: str) -> None:
        response = staff.get(SUMMARY, {"service": service})
        assert (response.status_code, "service must be" in response.json()["error"]["message"]) == (400, True)

    def test_it_is_for_reading(self, staff: Client) -> None:
        assert staff.post(SUMMARY).status_code == 405

    def test_it_is_never_cached(self, staff: Client) -> None:
        assert "no-store" in staff.get(SUMMARY).headers["Cache-Control"]

    def test_two_queries_are_enough(self, staff: Client, django_assert_max_num_queries) -> None:
        make(5)
        with django_assert_max_num_queries(4):  # Two for session and user.
            staff.get(SUMMARY)


class TestTrigger:
    def post(self, client: Client, body: Any, **more: Any) -> Any:
        raw = body if isinstance(body, (str, bytes)) else json.dumps(body)
        return client.post(TRIGGER, raw, content_type="application/json", **more)

    def test_it_is_what_the_guide_prints(self, service: ScriptedService, staff: Client) -> None:
        (row,) = make(1)
        told = report("recovered", action("circuit_break"), message="Recovery successful: Circuit Break")
        service.on_recovery(final(told))
        response = self.post(staff, {"error_id": str(row.error_id)})
        assert response.status_code == 200
        answer = response.json()
        assert list(answer) == ["success", "error_id", "recovery"]
        assert (answer["success"], answer["error_id"]) == (True, str(row.error_id))
        assert {key: answer["recovery"][key] for key in ("attempted", "success", "message")} == {
            "attempted": True, "success": True, "message": "Recovery successful: Circuit Break",
        }  # fmt: skip
        (done,) = answer["recovery"]["actions"]
        assert (done["strategy"], done["success"]) == ("circuit_break", True)

    def test_an_unknown_error_is_not_found(self, staff: Client) -> None:
        unknown = str(uuid.uuid4())
        response = self.post(staff, {"error_id": unknown})
        assert response.status_code == 404
        assert response.json()["error"] == {"code": "not_found", "message": f"there is no error {unknown}"}

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("", "must be JSON"),
            ("{", "must be JSON"),
            (b"\xff\xfe", "must be JSON"),
            ("[" * 100_000, "must be JSON"),
            (json.dumps({"error_id": "x" * 70_000}), "must be JSON"),
            ("[]", "must be {"),
            ("null", "must be {"),
            ("{}", "must be {"),
            ({"error_id": 7}, "must be {"),
            ({"error_id": None}, "must be {"),
            ({"error_id": "error-uuid-here"}, "must be a UUID"),
            ({"error_id": ""}, "must be a UUID"),
            ({"error_id": "\x00"}, "must be a UUID"),
        ],
    )
    def test_a_bad_body_is_told(self, staff: Client, body: Any, reason: str) -> None:
        response = self.post(staff, body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")
        assert reason in response.json()["error"]["message"]
        assert ErrorLog.objects.count() == 0

    def test_it_is_for_posting(self, staff: Client) -> None:
        assert staff.get(TRIGGER).status_code == 405


class TestWhoMayCall:
    def call(self, client: Client, address: str, **more: Any) -> int:
        if address == SUMMARY:
            return client.get(address, **more).status_code
        (row,) = make(1)
        body = json.dumps({"error_id": str(row.error_id)})
        return client.post(address, body, content_type="application/json", **more).status_code

    @pytest.mark.parametrize("address", [SUMMARY, TRIGGER])
    def test_not_everybody(self, address: str) -> None:
        client = Client()
        assert self.call(client, address) == 403
        client.force_login(User.objects.create_user("jane"))
        assert self.call(client, address) == 403

    @pytest.mark.parametrize("address", [SUMMARY, TRIGGER])
    def test_not_one_who_was_staff(self, address: str, staff: Client) -> None:
        User.objects.update(is_active=False)
        assert self.call(staff, address) == 403

    @pytest.mark.parametrize(
        ("codename", "address", "status"),
        [
            ("view_errorlog", SUMMARY, 200),
            ("view_errorlog", TRIGGER, 403),
            ("change_errorlog", TRIGGER, 200),
        ],
    )
    def test_those_with_the_permission(self, codename: str, address: str, status: int) -> None:
        user = User.objects.create_user("jane")
        user.user_permissions.add(Permission.objects.get(codename=codename))
        client = Client()
        client.force_login(user)
        assert self.call(client, address) == status

    def test_what_is_needed_is_told(self) -> None:
        message = Client().get(SUMMARY).json()["error"]["message"]
        assert "log in as staff" in message
        assert "UPRIGHT_SECRET" in message

    def test_a_session_needs_the_csrf_token_to_change_something(self) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(User.objects.create_user("staff", is_staff=True))
        assert self.call(client, SUMMARY) == 200
        assert self.call(client, TRIGGER) == 403
        client.get("/admin/")
        token = client.cookies["csrftoken"].value if "csrftoken" in client.cookies else ""
        assert token
        assert self.call(client, TRIGGER, headers={"X-CSRFToken": token}) == 200
        assert self.call(client, TRIGGER, headers={"X-CSRFToken": token[::-1]}) == 403

    class TestASignature:
        def signed(self, body: bytes, secret: str = SECRET, **changes: Any) -> dict[str, str]:
            return {**signatures.headers(secret, str(uuid.uuid4()), body), **changes}

        def post(self, body: bytes, headers: dict[str, str]) -> int:
            client = Client(enforce_csrf_checks=True)
            return client.post(TRIGGER, body, content_type="application/json", headers=headers).status_code

        @pytest.fixture(autouse=True)
        def two_secrets(self, settings) -> None:
            settings.UPRIGHT_SECRET = [SECRET, "whsec_" + "B" * 40]

        @pytest.fixture
        def body(self) -> bytes:
            return json.dumps({"error_id": str(make(1)[0].error_id)}).encode()

        @pytest.mark.parametrize("secret", [SECRET, "whsec_" + "B" * 40])
        def test_is_as_good_while_secrets_rotate(self, body: bytes, secret: str) -> None:
            assert self.post(body, self.signed(body, secret)) == 200

        def test_opens_the_summary_too(self) -> None:
            assert Client().get(SUMMARY, headers=self.signed(b"")).status_code == 200

        def test_must_be_of_this_body(self, body: bytes) -> None:
            assert self.post(body, self.signed(b"{}")) == 403

        def test_must_be_made_with_the_secret(self, body: bytes) -> None:
            assert self.post(body, self.signed(body, "whsec_" + "C" * 40)) == 403

        def test_must_be_fresh(self, body: bytes) -> None:
            old = signatures.headers(SECRET, "id", body, now=timezone.now().timestamp() - 600)
            assert self.post(body, old) == 403

        @pytest.mark.parametrize(
            "change", [{"webhook-id": ""}, {"webhook-timestamp": "soon"}, {"webhook-signature": "v1,"}]
        )
        def test_must_be_whole(self, body: bytes, change: dict[str, str]) -> None:
            assert self.post(body, {**self.signed(body), **change}) == 403

        def test_is_worth_nothing_without_a_secret(self, body: bytes, settings) -> None:
            settings.UPRIGHT_SECRET = None
            assert self.post(body, self.signed(body)) == 403


class TestTestError:
    def test_it_does_not_exist_unless_it_is_enabled(self, client: Client) -> None:
        assert client.post(TEST_ERROR, headers={"X-Service": "django"}).status_code == 404
        assert ErrorLog.objects.count() == 0

    @pytest.fixture
    def enabled(self, settings) -> None:
        settings.UPRIGHT_TEST_ERROR = True

    def test_the_guides_call_works_as_printed(self, service: ScriptedService, enabled: None) -> None:
        service.on_error(recovered())
        client = Client(enforce_csrf_checks=True)
        response = client.post(TEST_ERROR, headers={"X-Service": "django", "accept": "*/*"})
        assert response.status_code == 400
        answer = response.json()
        assert answer["error"]["type"] == "DeliberateError"
        assert answer["recovery"]["success"]
        assert ErrorLog.objects.get(error_id=answer["error"]["error_id"]).service == "django"

    def test_the_header_names_the_service(self, service: ScriptedService, client: Client, enabled: None) -> None:
        client.post(TEST_ERROR, headers={"X-Service": "billing"})
        assert service.errors[0].body["service"] == "billing"
        assert ErrorLog.objects.get().service == "billing"

    def test_without_it_the_setting_does(self, client: Client, enabled: None, settings) -> None:
        settings.UPRIGHT_SERVICE = "shop"
        client.get(TEST_ERROR)
        assert ErrorLog.objects.get().service == "shop"

    @pytest.mark.parametrize("name", ["", "a b", "x" * 101, "<script>"])
    def test_a_bad_name_is_told(self, client: Client, enabled: None, name: str) -> None:
        response = client.post(TEST_ERROR, headers={"X-Service": name})
        assert (response.status_code, "X-Service must be" in response.json()["error"]["message"]) == (400, True)
        assert ErrorLog.objects.count() == 0
