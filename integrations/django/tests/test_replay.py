"""Replays: what may be done again, what counts as evidence, and what they leave behind."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.core.signals import request_finished
from django.db import connection
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client
from django.urls import path

from error_logging import replay
from error_logging.ai_recovery_middleware import ai_error_handler
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, apply
from error_logging.testing import replay as have_replayed
from error_logging.testing import retry as have_retried

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

ATTEMPTS: list[str] = []
THEN: dict[str, Callable[[HttpRequest], Any]] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    ATTEMPTS.clear()
    THEN["do"] = lambda request: HttpResponse("it works")


def once_broken(request: HttpRequest) -> Any:
    """Fails at the first attempt; then does what the test says."""
    ATTEMPTS.append(request.method or "")
    if len(ATTEMPTS) == 1:
        raise ConnectionError("the first time")
    return THEN["do"](request)


def counts(request: HttpRequest) -> HttpResponse:
    ATTEMPTS.append(request.method or "")
    request.session["visits"] = request.session.get("visits", 0) + 1
    messages.info(request, f"visit {request.session['visits']}")
    if len(ATTEMPTS) < 4:
        raise RuntimeError("at first")
    return HttpResponse("welcome")


def visits(request: HttpRequest) -> HttpResponse:
    told = [str(one) for one in messages.get_messages(request)]
    return HttpResponse(f"{request.session.get('visits', 0)} {told}")


def signs_in(request: HttpRequest) -> HttpResponse:
    ATTEMPTS.append(request.method or "")
    if len(ATTEMPTS) == 1:
        raise RuntimeError("at first")
    request.session.cycle_key()
    request.session["signed_in"] = True
    return HttpResponse("welcome")


def signed_in(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.session.get("signed_in")))


def in_block(request: HttpRequest) -> HttpResponse:
    ATTEMPTS.append(str(connection.in_atomic_block))
    ErrorLog.objects.create(service="half", error_type="Half")
    if len(ATTEMPTS) == 1:
        raise RuntimeError("at first")
    raise ValueError("and then otherwise")


@login_required
def for_members(request: HttpRequest) -> HttpResponse:
    return once_broken(request)


@ai_error_handler(replay=False)
def never_again(request: HttpRequest) -> HttpResponse:
    return once_broken(request)


urlpatterns = [
    path("once/", once_broken),
    path("counts/", counts),
    path("served/", ai_error_handler(serve_recovered=True)(counts)),
    path("visits/", visits),
    path("signs-in/", signs_in),
    path("signed-in/", signed_in),
    path("in-block/", in_block),
    path("members/", for_members),
    path("never/", never_again),
    path("sign-in/", visits, name="sign-in"),
]


def evidence(service: ScriptedService) -> dict[str, Any]:
    found = service.results[0].evidence
    assert found is not None
    return found


def test_a_replay_that_works_is_the_proof(service: ScriptedService, client: Client) -> None:
    service.on_error(apply())
    response = client.get("/once/")
    told = response.json()["recovery"]
    assert (told["success"], told["status"]) == (True, "recovered")
    assert response.status_code == 503  # The user's own request did fail.
    proof = evidence(service)
    assert (proof["kind"], proof["outcome"], proof["status_code"], proof["attempts"]) == ("replay", "passed", 200, 1)
    assert ATTEMPTS == ["GET", "GET"]
    assert ErrorLog.objects.get().resolved


def test_head_is_repeated_as_head(service: ScriptedService, client: Client) -> None:
    service.on_error(apply())
    client.head("/once/")
    assert ATTEMPTS == ["HEAD", "HEAD"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_else_is_repeated(service: ScriptedService, client: Client, method: str) -> None:
    service.on_error(apply())
    told = client.generic(method, "/once/").json()["recovery"]
    assert [method] == ATTEMPTS
    assert service.errors[0].body["waiter"]["can"] == ["apply"]
    assert service.results[0].evidence is None
    assert (told["success"], told["status"]) == (False, "unknown")


def test_a_view_that_opts_out_is_not_repeated(service: ScriptedService, client: Client) -> None:
    service.on_error(apply())
    assert client.get("/never/").json()["recovery"]["status"] == "unknown"
    assert ATTEMPTS == ["GET"]
    assert service.errors[0].body["request"]["replayable"] is False


def test_a_setting_opts_all_out(service: ScriptedService, client: Client, settings) -> None:
    settings.UPRIGHT_REPLAY = False
    service.on_error(apply())
    client.get("/once/")
    assert ATTEMPTS == ["GET"]


def raising(error: Exception) -> Callable[[HttpRequest], Any]:
    def do(request: HttpRequest) -> Any:
        raise error

    return do


@pytest.mark.parametrize(
    ("then", "outcome"),
    [
        (lambda _: HttpResponse(status=201), "passed"),
        (lambda _: HttpResponse(status=304), "passed"),
        (lambda _: HttpResponseRedirect("/elsewhere/"), "passed"),
        (lambda _: HttpResponse(status=500), "failed"),
        (lambda _: HttpResponse(status=503), "failed"),
        (raising(ConnectionError("again")), "failed"),
        (raising(ZeroDivisionError("another")), "failed"),
        (lambda _: None, "failed"),
        (lambda _: HttpResponse(status=400), "inconclusive"),
        (lambda _: HttpResponse(status=401), "inconclusive"),
        (lambda _: HttpResponse(status=403), "inconclusive"),
        (lambda _: HttpResponse(status=404), "inconclusive"),
        (lambda _: HttpResponse(status=429), "inconclusive"),
        (raising(Http404()), "inconclusive"),
        (raising(PermissionDenied()), "inconclusive"),
        (lambda _: HttpResponseRedirect("/accounts/login/"), "inconclusive"),
        (lambda _: HttpResponseRedirect("https://id.example.com/?next=/once/"), "inconclusive"),
    ],
)
def test_what_a_replay_proves(service: ScriptedService, client: Client, then: Any, outcome: str) -> None:
    THEN["do"] = then
    service.on_error(apply())
    told = client.get("/once/").json()["recovery"]
    assert evidence(service)["outcome"] == outcome
    assert told["success"] is (outcome == "passed")


def test_a_login_that_ran_out_proves_nothing(service: ScriptedService, client: Client, settings) -> None:
    settings.LOGIN_URL = "sign-in"
    client.force_login(User.objects.create_user("jane"))
    THEN["do"] = lambda request: HttpResponseRedirect("/sign-in/")
    service.on_error(apply())
    assert client.get("/members/").json()["recovery"]["status"] == "unknown"
    assert evidence(service)["outcome"] == "inconclusive"


def test_it_is_the_same_users_request(service: ScriptedService, client: Client) -> None:
    client.force_login(User.objects.create_user("jane"))
    who: list[str] = []
    THEN["do"] = lambda request: who.append(f"{request.user} {request.GET['page']}") or HttpResponse()
    service.on_error(apply())
    client.get("/members/?page=7")
    assert who == ["jane 7"]


def test_templates_are_rendered_since_they_may_be_what_fails(service: ScriptedService, client: Client) -> None:
    THEN["do"] = lambda request: TemplateResponse(request, engines["django"].from_string("hello"))
    service.on_error(apply())
    client.get("/once/")
    assert evidence(service)["outcome"] == "passed"
    ATTEMPTS.clear()
    THEN["do"] = lambda request: TemplateResponse(request, "missing.html")
    service.on_error(apply())
    client.get("/once/")
    assert (service.results[1].evidence or {})["outcome"] == "failed"


def test_retries_are_counted_and_end_with_the_first_that_works(service: ScriptedService, client: Client) -> None:
    service.on_error(have_retried(max_retries=5))
    told = client.get("/counts/").json()["recovery"]
    proof = evidence(service)
    assert (proof["kind"], proof["outcome"], proof["attempts"]) == ("retry", "passed", 3)
    assert len(ATTEMPTS) == 4
    assert told["success"]


class TestSession:
    def test_what_replays_did_to_it_is_undone(self, service: ScriptedService, client: Client) -> None:
        service.on_error(have_retried(max_retries=5))
        client.get("/counts/")
        assert len(ATTEMPTS) == 4
        assert client.get("/visits/").content.decode() == "1 ['visit 1']"

    def test_a_replay_begins_with_what_is_stored(self, service: ScriptedService, client: Client) -> None:
        session = client.session
        session["visits"] = 10
        session.save()
        service.on_error(have_replayed())
        client.get("/counts/")
        assert client.get("/visits/").content.decode() == "11 ['visit 11']"

    def test_a_served_replays_own_is_kept(self, service: ScriptedService, client: Client) -> None:
        service.on_error(have_retried(max_retries=5))
        response = client.get("/served/")
        assert (response.content, "X-Upright-Recovered" in response.headers) == (b"welcome", True)
        assert client.get("/visits/").content.decode() == "1 ['visit 1']"

    def test_who_logs_in_stays_logged_in(self, service: ScriptedService, client: Client) -> None:
        service.on_error(apply())
        client.get("/signs-in/")
        assert client.get("/signed-in/").content == b"True"


def test_atomic_requests_apply_to_the_replay(service: ScriptedService, client: Client) -> None:
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        service.on_error(apply())
        client.get("/in-block/")
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert ATTEMPTS == ["True", "True"]
    assert not ErrorLog.objects.filter(service="half").exists()


def test_what_is_not_served_is_closed_and_no_one_thinks_that_the_request_is_over(
    service: ScriptedService, client: Client
) -> None:
    opened: list[io.BytesIO] = []
    ended: list[int] = []

    def file(request: HttpRequest) -> FileResponse:
        opened.append(io.BytesIO(b"x"))
        return FileResponse(opened[0])

    def over(**_: Any) -> None:
        ended.append(len(ATTEMPTS))

    THEN["do"] = file
    service.on_error(apply())
    request_finished.connect(over)
    try:
        client.get("/once/")
    finally:
        request_finished.disconnect(over)
    assert opened[0].closed
    assert ended == [2]


class TestAnonymous:
    """For a caller that has gone."""

    DETAIL = {"method": "GET", "path": "/once/", "path_intact": True}

    @pytest.fixture(autouse=True)
    def second_attempt(self) -> None:
        ATTEMPTS.append("the caller's own")

    def test_it_passes_where_the_page_works(self) -> None:
        found = replay.anonymous(self.DETAIL, ["builtins.ConnectionError"])
        assert (found["kind"], found["outcome"], found["status_code"]) == ("anonymous_replay", "passed", 200)

    def test_it_fails_where_it_fails_likewise(self) -> None:
        THEN["do"] = raising(ConnectionError("again"))
        assert replay.anonymous(self.DETAIL, ["builtins.ConnectionError"])["outcome"] == "failed"

    @pytest.mark.parametrize(
        "then",
        [raising(KeyError("another")), raising(Http404()), lambda _: HttpResponseRedirect("/"), lambda _: None]
        + [lambda _, status=status: HttpResponse(status=status) for status in (302, 400, 403, 500)],
    )
    def test_anything_else_is_another_matter(self, then: Any) -> None:
        THEN["do"] = then
        assert replay.anonymous(self.DETAIL, ["builtins.ConnectionError"])["outcome"] == "inconclusive"

    @pytest.mark.parametrize(
        "detail",
        [
            {"method": "POST", "path": "/once/"},
            {"method": "GET", "path": "/nowhere/"},
            {"method": "GET", "path": "/never/"},
            {"method": "GET", "path": ""},
            {"method": "GET", "path": "/once/", "path_intact": False},
            {},
        ],
    )
    def test_what_can_not_be_repeated_is_not(self, detail: dict[str, Any]) -> None:
        assert replay.anonymous(detail, ["builtins.ConnectionError"])["outcome"] == "inconclusive"
        assert ATTEMPTS == ["the caller's own"]

    def test_it_has_no_user(self) -> None:
        found = replay.anonymous({"method": "GET", "path": "/members/"}, ["builtins.ConnectionError"])
        assert found["outcome"] == "inconclusive"
        assert ATTEMPTS == ["the caller's own"]
