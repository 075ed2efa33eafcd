"""With Django REST framework: what it handles never arrives, what it lets through is answered and recovered."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from rest_framework.decorators import api_view
from rest_framework.exceptions import NotAuthenticated, ParseError, Throttled
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from error_logging.ai_recovery_middleware import ai_error_handler
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, apply

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

OURS = "error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"
ATTEMPTS: list[str] = []
WORKS_FROM = {"attempt": 2}
RAISED: list[Exception] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    ATTEMPTS.clear()
    RAISED.clear()
    WORKS_FROM["attempt"] = 2


@pytest.fixture(params=["with middleware", "without middleware"])
def middleware(request: pytest.FixtureRequest, settings) -> str:
    if request.param == "without middleware":
        settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != OURS]
    return request.param


def attempt(request: Request) -> Response:
    ATTEMPTS.append(str(request.query_params.get("page")))
    if RAISED:
        raise RAISED[0]
    if len(ATTEMPTS) < WORKS_FROM["attempt"]:
        raise ValueError("it is broken")
    return Response({"attempt": len(ATTEMPTS)})


class Plain(APIView):
    def get(self, request: Request) -> Response:
        return attempt(request)


@method_decorator(ai_error_handler(serve_recovered=True), name="dispatch")
class OnDispatch(Plain):
    pass


class OnMethod(APIView):
    @method_decorator(ai_error_handler)
    def get(self, request: Request) -> Response:
        return attempt(request)


@ai_error_handler
@api_view()
def outside(request: Request) -> Response:
    return attempt(request)


@api_view()
@ai_error_handler
def inside(request: Request) -> Response:
    return attempt(request)


urlpatterns = [
    path("plain/", Plain.as_view()),
    path("dispatch/", OnDispatch.as_view()),
    path("method/", OnMethod.as_view()),
    path("outside/", outside),
    path("inside/", inside),
]
DECORATED = ["dispatch", "method", "outside", "inside"]


def test_a_view_is_recovered_by_the_middleware(service: ScriptedService) -> None:
    service.on_error(apply())
    response = APIClient().get("/plain/?page=3")
    assert (response.status_code, response.json()["recovery"]["success"]) == (400, True)
    assert ATTEMPTS == ["3", "3"]
    assert ErrorLog.objects.count() == 1


@pytest.mark.parametrize("name", ["method", "outside", "inside"])
def test_a_decorated_one_too_and_logged_once(service: ScriptedService, middleware: str, name: str) -> None:
    service.on_error(apply())
    response = APIClient().get(f"/{name}/?page=3")
    assert (response.status_code, response.json()["recovery"]["success"]) == (400, True)
    assert ATTEMPTS == ["3", "3"]
    assert ErrorLog.objects.get().route == f"{name}/"


def test_a_replay_is_served_as_it_was_rendered(service: ScriptedService, middleware: str) -> None:
    service.on_error(apply())
    response = APIClient().get("/dispatch/")
    assert (response.status_code, response.json()) == (200, {"attempt": 2})
    assert "X-Upright-Recovered" in response.headers


@pytest.mark.parametrize("name", DECORATED)
def test_a_browsers_error_is_logged_once(middleware: str, name: str) -> None:
    WORKS_FROM["attempt"] = 1_000
    response = APIClient(raise_request_exception=False).get(f"/{name}/", headers={"accept": "text/html"})
    assert response.status_code == 500
    assert ErrorLog.objects.count() == 1


@pytest.mark.parametrize("name", ["plain", *DECORATED])
@pytest.mark.parametrize("error", [ParseError(), Throttled(), NotAuthenticated()])
def test_what_the_framework_answers_is_left_alone(
    service: ScriptedService, middleware: str, name: str, error: Any
) -> None:
    RAISED.append(error)
    assert APIClient().get(f"/{name}/").json() == {"detail": str(error.detail)}
    assert (service.received, ErrorLog.objects.count()) == ([], 0)


def test_a_replay_that_the_framework_refuses_proves_nothing(service: ScriptedService) -> None:
    service.on_error(lambda _: RAISED.append(Throttled()) or apply())
    with override_settings(MIDDLEWARE=[OURS]):
        assert APIClient().get("/plain/").json()["recovery"]["status"] == "unknown"
    assert (service.results[0].evidence or {})["status_code"] == 429
