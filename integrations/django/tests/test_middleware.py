"""AIErrorRecoveryMiddleware under WSGI: what it answers, what it leaves alone, and who else still hears of errors."""

from __future__ import annotations

import io
import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from django.core.exceptions import BadRequest, PermissionDenied, RequestAborted, SuspiciousOperation
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import got_request_exception
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, connection
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    StreamingHttpResponse,
    UnreadablePostError,
)
from django.http.multipartparser import MultiPartParserError
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client, RequestFactory
from django.urls import path

from error_logging import drain, handling
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, action, apply, final, recovered, replay, report

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
OURS = "error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"


class OutOfMemoryError(Exception):
    pass


class FrozenError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("frozen")


RAISED: dict[str, Callable[[], BaseException]] = {}
CALLS: list[str] = []


def fail(request: HttpRequest) -> HttpResponse:
    CALLS.append(request.method or "")
    raise RAISED["next"]()


def fine(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


def named(request: HttpRequest, year: int) -> HttpResponse:
    raise ValueError(f"no report for {year}")


def chained(request: HttpRequest) -> HttpResponse:
    try:
        raise OperationalError("connection refused")
    except OperationalError as error:
        raise RuntimeError("the shop could not be read") from error


def template(request: HttpRequest) -> HttpResponse:
    return TemplateResponse(request, engines["django"].from_string("{{ explode }}"), {"explode": _Explosive()})


class _Explosive:
    def __str__(self) -> str:
        raise ValueError("while it was rendered")


def streamed(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[str]:
        yield "first"
        raise ValueError("in the middle")

    return StreamingHttpResponse(parts())


def download(request: HttpRequest) -> FileResponse:
    return FileResponse(io.BytesIO(b"all of it"))


def nothing(request: HttpRequest) -> None:
    return None


def writes(request: HttpRequest) -> HttpResponse:
    ErrorLog.objects.create(service="half", error_type="Half", message="of an order")
    raise ValueError("after the first write")


def breaks_transaction(request: HttpRequest) -> HttpResponse:
    ErrorLog.objects.create(service="half", error_type="Half", message="of an order")
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")
    return HttpResponse()


urlpatterns = [
    path("fail/", fail),
    path("fine/", fine),
    path("reports/<int:year>/", named),
    path("chained/", chained),
    path("template/", template),
    path("streamed/", streamed),
    path("download/", download),
    path("nothing/", nothing),
    path("writes/", writes),
    path("breaks-transaction/", breaks_transaction),
]


@pytest.fixture(autouse=True)
def raised() -> None:
    RAISED["next"] = lambda: ValueError("it is broken")
    CALLS.clear()


@pytest.fixture
def heard() -> Iterator[list[BaseException | None]]:
    """What an error tracker would report."""
    exceptions: list[BaseException | None] = []

    def tracker(sender: Any, request: HttpRequest, **_: Any) -> None:
        exceptions.append(sys.exc_info()[1])

    got_request_exception.connect(tracker)
    yield exceptions
    got_request_exception.disconnect(tracker)


class TestTheAnswer:
    def test_it_is_the_guides_format_exactly(self, service: ScriptedService, client: Client) -> None:
        RAISED["next"] = lambda: DatabaseError("Connection timeout")
        service.on_error(
            final(
                report(
                    "recovered", action("pool_increase"), action("timeout_increase", "not_recovered"),
                    message="Recovery successful: Pool Increase",
                ),
                severity="critical",
            )
        )  # fmt: skip
        response = client.post("/fail/")
        assert response.status_code == 500
        assert response.headers["Content-Type"] == "application/json"
        answer = response.json()
        error_id = answer["error"]["error_id"]
        assert str(uuid.UUID(error_id)) == error_id
        assert answer["error"] == {
            "type": "DatabaseError",
            "message": "Connection timeout",
            "error_id": error_id,
            "severity": "critical",
        }
        assert list(answer) == ["error", "recovery"]
        told = answer["recovery"]
        assert set(told) == {"attempted", "success", "status", "message", "actions"}
        assert (told["attempted"], told["success"]) == (True, True)
        assert told["message"] == "Recovery successful: Pool Increase"
        assert [(one["strategy"], one["success"]) for one in told["actions"]] == [
            ("pool_increase", True),
            ("timeout_increase", False),
        ]
        assert set(told["actions"][0]) == {"strategy", "success", "verdict", "duration_ms", "reason"}
        assert response.headers["X-Upright-Error"] == error_id
        assert "no-store" in response.headers["Cache-Control"]

    def test_the_row_is_there_with_the_answer_in_it(self, service: ScriptedService, client: Client) -> None:
        service.on_error(recovered("cache_clear"))
        error_id = client.get("/fail/").json()["error"]["error_id"]
        row = ErrorLog.objects.get(error_id=error_id)
        assert (row.error_type, row.message, row.severity, row.method, row.route) == (
            "ValueError", "it is broken", "medium", "GET", "fail/",
        )  # fmt: skip
        assert row.context["recovery_attempted"] is True
        assert row.context["recovery_success"] is True
        assert row.context["recovery_strategy"] == "cache_clear"
        assert row.resolved

    @pytest.mark.parametrize(
        ("make", "status", "severity"),
        [
            (lambda: DatabaseError("x"), 500, "critical"),
            (lambda: OperationalError("x"), 500, "critical"),
            (lambda: IntegrityError("x"), 500, "critical"),
            (lambda: InterfaceError("x"), 500, "critical"),
            (lambda: OutOfMemoryError("x"), 500, "critical"),
            (lambda: MemoryError("x"), 500, "critical"),
            (lambda: SystemError("x"), 500, "critical"),
            (lambda: AssertionError("x"), 500, "critical"),
            (lambda: TimeoutError("x"), 503, "high"),
            (lambda: ConnectionRefusedError("x"), 503, "high"),
            (lambda: OSError("x"), 503, "high"),
            (lambda: FileNotFoundError("x"), 503, "high"),
            (lambda: ValueError("x"), 400, "medium"),
            (lambda: KeyError("x"), 400, "medium"),
            (lambda: AttributeError("x"), 400, "medium"),
            (lambda: TypeError("x"), 400, "medium"),
            (lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), 400, "medium"),
            (lambda: ZeroDivisionError("x"), 400, "low"),
            (lambda: RuntimeError("x"), 400, "low"),
        ],
    )
    def test_status_and_severity_are_the_guides(
        self, client: Client, make: Callable[[], BaseException], status: int, severity: str
    ) -> None:
        RAISED["next"] = make
        response = client.get("/fail/")
        assert (response.status_code, response.json()["error"]["severity"]) == (status, severity)

    def test_causes_count_where_the_outermost_says_nothing(self, client: Client) -> None:
        response = client.get("/chained/")
        assert response.status_code == 500
        assert response.json()["error"] | {"error_id": ""} == {
            "type": "RuntimeError", "message": "the shop could not be read", "error_id": "", "severity": "critical",
        }  # fmt: skip

    def test_the_environment_lowers_the_severity_but_not_the_status(self, client: Client, settings) -> None:
        RAISED["next"] = lambda: TimeoutError("x")
        settings.ENVIRONMENT = "staging"
        response = client.get("/fail/")
        assert (response.status_code, response.json()["error"]["severity"]) == (503, "medium")

    def test_the_services_severity_is_final(self, service: ScriptedService, client: Client) -> None:
        service.on_error(final(report("not_recovered"), severity="critical"))
        error = client.get("/fail/").json()["error"]
        assert error["severity"] == "critical"
        assert ErrorLog.objects.get(error_id=error["error_id"]).severity == "critical"

    def test_secrets_in_a_message_are_not_given_away(self, client: Client) -> None:
        RAISED["next"] = lambda: ValueError("no access for jane@example.com with password=hunter2hunter2")
        text = client.get("/fail/").content.decode()
        assert "jane@example.com" not in text
        assert "hunter2" not in text

    def test_without_a_service_nothing_is_claimed(self, client: Client) -> None:
        told = client.get("/fail/").json()["recovery"]
        assert (told["attempted"], told["success"], told["actions"]) == (False, False, [])
        assert "no service is configured" in told["message"]
        row = ErrorLog.objects.get()
        assert row.context["recovery_attempted"] is False
        assert not row.resolved

    def test_switched_off_it_only_logs(self, service: ScriptedService, client: Client, settings) -> None:
        settings.UPRIGHT_ENABLED = False
        told = client.get("/fail/").json()["recovery"]
        assert (told["attempted"], told["message"]) == (False, "Recovery not attempted: it is switched off")
        assert told["status"] == "not_attempted"
        assert ErrorLog.objects.count() == 1
        assert service.received == []

    @pytest.mark.parametrize("method", ["get", "post", "put", "delete", "options"])
    def test_each_method_gets_it(self, client: Client, method: str) -> None:
        assert getattr(client, method)("/fail/").json()["error"]["type"] == "ValueError"

    def test_head_gets_the_status(self, client: Client) -> None:
        response = client.head("/fail/")
        assert (response.status_code, response.content) == (400, b"")

    def test_the_route_is_told_and_the_service_it_belongs_to(self, service: ScriptedService, client: Client) -> None:
        client.get("/reports/2026/?token=abcdefghijkl")
        sent = service.errors[0].body
        assert sent["request"]["route"] == "reports/<int:year>/"
        assert sent["request"]["view"] == f"{__name__}.named"
        assert "abcdefghijkl" not in sent["request"]["path"]
        assert sent["service"] == "django"
        assert sent["waiter"]["can"] == ["apply", "replay", "retry"]


class TestWhatIsLeftAlone:
    @pytest.mark.parametrize(
        ("make", "status"),
        [
            (lambda: Http404("no such thing"), 404),
            (lambda: PermissionDenied("no"), 403),
            (lambda: SuspiciousOperation("no"), 400),
            (lambda: BadRequest("no"), 400),
            (lambda: MultiPartParserError("no"), 400),
        ],
    )
    def test_what_django_answers_itself(self, client: Client, make: Callable[[], BaseException], status: int) -> None:
        RAISED["next"] = make
        response = client.get("/fail/")
        assert response.status_code == status
        assert "json" not in response.headers["Content-Type"]
        assert ErrorLog.objects.count() == 0

    @pytest.mark.parametrize("make", [lambda: UnreadablePostError("gone"), lambda: RequestAborted("gone")])
    def test_a_client_that_went_away(self, make: Callable[[], BaseException]) -> None:
        RAISED["next"] = make
        assert Client(raise_request_exception=False).post("/fail/").status_code == 500
        assert ErrorLog.objects.count() == 0

    @pytest.mark.parametrize("make", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_what_ends_the_process(self, client: Client, make: type[BaseException]) -> None:
        RAISED["next"] = make
        with pytest.raises(make):
            client.get("/fail/")
        assert ErrorLog.objects.count() == 0

    def test_healthy_requests_are_untouched(self, client: Client, django_assert_num_queries) -> None:
        with django_assert_num_queries(0):
            response = client.get("/fine/")
        assert response.content == b"fine"
        assert "X-Upright-Error" not in response.headers

    def test_missing_pages_are_djangos(self, client: Client) -> None:
        assert client.get("/nowhere/").status_code == 404
        assert ErrorLog.objects.count() == 0


class TestWhoGetsDjangosOwnPage:
    def test_a_browser(self) -> None:
        response = Client(raise_request_exception=False).get("/fail/", headers={"accept": BROWSER})
        assert response.status_code == 500
        assert response.headers["Content-Type"].startswith("text/html")
        assert b"Server Error (500)" in response.content
        assert ErrorLog.objects.get().error_type == "ValueError"

    def test_with_debug_everybody(self, settings) -> None:
        settings.DEBUG = True
        response = Client(raise_request_exception=False).get("/fail/", headers={"accept": "application/json"})
        assert response.status_code == 500
        assert b"Traceback" in response.content
        assert ErrorLog.objects.count() == 1

    def test_where_exceptions_propagate_they_do(self, client: Client, settings) -> None:
        settings.DEBUG_PROPAGATE_EXCEPTIONS = True
        with pytest.raises(ValueError, match="it is broken"):
            client.get("/fail/")
        assert ErrorLog.objects.count() == 1

    @pytest.mark.parametrize("accept", ["*/*", "application/json", "application/*", "text/plain", "", "nonsense"])
    def test_everyone_else_gets_json(self, client: Client, accept: str) -> None:
        response = client.get("/fail/", headers={"accept": accept})
        assert response.json()["error"]["type"] == "ValueError"

    def test_a_browsers_error_is_delivered_all_the_same(self, service: ScriptedService) -> None:
        Client(raise_request_exception=False).get("/fail/", headers={"accept": BROWSER})
        (sent,) = service.wait_for("error")
        assert sent.error_id == str(ErrorLog.objects.get().error_id)
        assert "waiter" not in sent.body


class TestOthersStillHear:
    def test_an_error_tracker_hears_of_it_once(self, client: Client, heard: list[BaseException | None]) -> None:
        client.get("/fail/")
        assert [str(one) for one in heard] == ["it is broken"]

    @pytest.mark.parametrize("headers", [{"accept": BROWSER}, {"accept": "application/json"}])
    def test_and_once_where_django_answers(self, heard: list[BaseException | None], headers: dict[str, str]) -> None:
        Client(raise_request_exception=False).get("/fail/", headers=headers)
        assert [str(one) for one in heard] == ["it is broken"]

    def test_receivers_that_are_coroutines_hear_too(self, client: Client) -> None:
        exceptions: list[str] = []

        async def tracker(sender: Any, **_: Any) -> None:
            exceptions.append("heard")

        got_request_exception.connect(tracker)
        try:
            client.get("/fail/")
        finally:
            got_request_exception.disconnect(tracker)
        assert exceptions == ["heard"]

    def test_a_receiver_that_fails_harms_nobody(self, client: Client, heard: list[BaseException | None]) -> None:
        def broken(**_: Any) -> None:
            raise RuntimeError("the tracker is down")

        got_request_exception.connect(broken)
        try:
            assert client.get("/fail/").status_code == 400
        finally:
            got_request_exception.disconnect(broken)
        assert len(heard) == 1

    def test_the_test_client_returns_the_answer(self, client: Client) -> None:
        assert client.get("/fail/").status_code == 400

    def test_so_does_a_subclass_of_another_module(self) -> None:
        # As REST framework's APIClient is.
        assert type("APIClient", (Client,), {"__module__": "elsewhere"})().get("/fail/").status_code == 400

    def test_a_browsers_error_still_raises_in_the_test_client(self, client: Client) -> None:
        with pytest.raises(ValueError, match="it is broken"):
            client.get("/fail/", headers={"accept": BROWSER})

    def test_djangos_log_has_the_traceback(self, client: Client, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.ERROR, "django.request"):
            client.get("/fail/")
        (line,) = [one for one in caplog.records if one.name == "django.request"]
        assert line.getMessage() == "Internal Server Error: /fail/"
        assert line.levelname == "ERROR"
        assert line.exc_info is not None
        assert str(line.exc_info[1]) == "it is broken"


class TestErrorsThatReachOnlyTheSignal:
    @pytest.mark.parametrize("position", ["before", "after"])
    @pytest.mark.parametrize("phase", ["request", "response"])
    def test_those_of_other_middleware(self, settings, position: str, phase: str) -> None:
        others = [name for name in settings.MIDDLEWARE if name != OURS]
        broken = f"{__name__}.breaks_on_{phase}"
        settings.MIDDLEWARE = [*others, broken, OURS] if position == "before" else [*others, OURS, broken]
        assert Client(raise_request_exception=False).get("/fine/").status_code == 500
        assert ErrorLog.objects.get().message == f"on {phase}"

    def test_those_of_a_view_that_returns_nothing(self) -> None:
        assert Client(raise_request_exception=False).get("/nothing/").status_code == 500
        assert "didn't return an HttpResponse" in ErrorLog.objects.get().message

    def test_those_that_come_after_an_answered_one(self, settings) -> None:
        """An exception's identity may be used again once it is gone."""
        settings.MIDDLEWARE = [f"{__name__}.breaks_on_response", *settings.MIDDLEWARE]
        for _ in range(20):
            assert Client(raise_request_exception=False).get("/fail/").status_code == 500
        assert ErrorLog.objects.filter(message="it is broken").count() == 20
        assert ErrorLog.objects.filter(message="on response").count() == 20

    def test_an_exception_that_is_made_once_is_logged_each_time(self, client: Client) -> None:
        always = ValueError("the only one")
        RAISED["next"] = lambda: always
        assert len({client.get("/fail/").json()["error"]["error_id"] for _ in range(3)}) == 3
        assert ErrorLog.objects.count() == 3

    def test_an_exception_that_can_not_be_changed(self, client: Client) -> None:
        RAISED["next"] = FrozenError
        assert client.get("/fail/").json()["error"]["type"] == "FrozenError"

    def test_rendering_counts_as_the_view(self, client: Client) -> None:
        assert client.get("/template/").json()["error"]["message"] == "while it was rendered"


def breaks_on_request(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        raise RuntimeError("on request")

    return middleware


def breaks_on_response(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        get_response(request)
        raise RuntimeError("on response")

    return middleware


class TestStreaming:
    def test_an_error_in_the_body_is_logged_and_goes_on(self, client: Client) -> None:
        response = client.get("/streamed/")
        parts = iter(response)
        assert next(parts) == b"first"
        with pytest.raises(ValueError, match="in the middle"):
            next(parts)
        row = ErrorLog.objects.get()
        assert (row.message, row.route) == ("in the middle", "streamed/")

    def test_a_file_is_still_sent_by_the_server(self, client: Client) -> None:
        environ = RequestFactory().get("/download/").environ | {"wsgi.file_wrapper": FileWrapper}
        sent = WSGIHandler()(environ, lambda *_: None)
        assert isinstance(sent, FileWrapper)
        assert b"".join(sent) == b"all of it"
        sent.close()

    def test_a_file_comes_whole(self, client: Client) -> None:
        assert client.get("/download/").getvalue() == b"all of it"


class TestThroughARealHandler:
    def test_the_error_is_answered_over_wsgi(self, service: ScriptedService) -> None:
        service.on_error(recovered())
        told: list[Any] = []
        environ = RequestFactory().get("/fail/").environ
        body = b"".join(WSGIHandler()(environ, lambda *given: told.append(given)))
        status, headers = told[0]
        assert status == f"400 {HTTPStatus(400).phrase}"
        assert dict(headers)["Content-Type"] == "application/json"
        assert b'"success": true' in body


@pytest.mark.django_db(transaction=True)
class TestAtomicRequests:
    @pytest.fixture(autouse=True)
    def atomic(self, settings) -> Iterator[None]:
        connection.settings_dict["ATOMIC_REQUESTS"] = True
        yield
        connection.settings_dict["ATOMIC_REQUESTS"] = False

    @pytest.mark.parametrize("address", ["/writes/", "/breaks-transaction/"])
    def test_half_a_request_is_never_committed_and_the_log_survives(self, client: Client, address: str) -> None:
        response = client.get(address)
        drain.settle()
        assert not ErrorLog.objects.filter(service="half").exists()
        assert ErrorLog.objects.get(error_id=response.json()["error"]["error_id"]).service == "django"

    def test_nor_by_a_replay_that_fails(self, service: ScriptedService, client: Client) -> None:
        service.on_error(replay())
        told = client.get("/writes/").json()["recovery"]
        assert (service.results[0].evidence or {})["outcome"] == "failed"
        assert told["status"] == "not_recovered"
        drain.settle()
        assert [row.service for row in ErrorLog.objects.all()] == ["django"]


@pytest.mark.django_db(transaction=True)
def test_the_row_of_a_real_transaction_is_there_when_the_answer_is(client: Client, settings) -> None:
    settings.UPRIGHT_LOG_TIMEOUT_MS = 10_000
    error_id = client.get("/fail/").json()["error"]["error_id"]
    assert ErrorLog.objects.filter(error_id=error_id).exists()


class TestOurOwnFaults:
    """Whatever breaks in us, the request goes on as it would without us, and the error is not lost."""

    def test_while_it_waits(
        self, service: ScriptedService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(handling, "recover", broken)
        response = Client(raise_request_exception=False).get("/fail/")
        assert response.status_code == 500
        assert "Upright failed while it handled an error" in caplog.text
        assert service.wait_for("error")[0].error_id == str(ErrorLog.objects.get(message="it is broken").error_id)

    def test_before_anything_is_recorded(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(handling, "capture", broken)
        assert Client(raise_request_exception=False).get("/fail/").status_code == 500
        assert "Upright failed" in caplog.text

    def test_a_worker_that_is_told_to_stop_while_it_waits_keeps_the_error(
        self, service: ScriptedService, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stopped(*_: Any) -> Any:
            raise SystemExit(1)

        monkeypatch.setattr(handling, "recover", stopped)
        with pytest.raises(SystemExit):
            client.get("/fail/")
        assert service.wait_for("error")[0].error_id == str(ErrorLog.objects.get().error_id)

    def test_a_spool_that_can_not_be_written(
        self, service: ScriptedService, client: Client, settings, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("no directory")
        settings.UPRIGHT_SPOOL_DIR = str(tmp_path / "file" / "spool")
        service.on_error(recovered())
        assert client.get("/fail/").json()["recovery"]["success"]
        assert ErrorLog.objects.count() == 1


class TestReplays:
    def test_what_fails_again_is_not_recovered(self, service: ScriptedService, client: Client) -> None:
        service.on_error(apply())
        told = client.get("/fail/").json()["recovery"]
        assert (told["success"], told["status"]) == (False, "not_recovered")
        assert CALLS == ["GET", "GET"]

    def test_a_post_is_never_repeated(self, service: ScriptedService, client: Client) -> None:
        service.on_error(replay())
        told = client.post("/fail/").json()["recovery"]
        assert CALLS == ["POST"]
        assert service.results[0].result["status"] == "unsupported"
        assert not told["success"]
