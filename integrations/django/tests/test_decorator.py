"""ai_error_handler: the middleware's work for one view, with or without the middleware."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.signals import got_request_exception
from django.db import connection, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from error_logging import drain
from error_logging.ai_recovery_middleware import ai_error_handler
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, apply, recovered, refusal, replay

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

OURS = "error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"
BROWSER = {"accept": "text/html,*/*;q=0.8"}
ATTEMPTS: list[str] = []
WORKS_FROM = {"attempt": 1_000}


def attempt(request: HttpRequest) -> HttpResponse:
    ATTEMPTS.append(request.method or "")
    if len(ATTEMPTS) < WORKS_FROM["attempt"]:
        raise ValueError("it is broken")
    return JsonResponse({"attempt": len(ATTEMPTS)})


@pytest.fixture(autouse=True)
def fresh() -> None:
    ATTEMPTS.clear()
    WORKS_FROM["attempt"] = 1_000


@pytest.fixture(params=["with middleware", "without middleware"])
def middleware(request: pytest.FixtureRequest, settings) -> str:
    if request.param == "without middleware":
        settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != OURS]
    return request.param


@ai_error_handler
def plain(request: HttpRequest) -> HttpResponse:
    """What the view does."""
    return attempt(request)


@ai_error_handler
async def coroutine(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return attempt(request)


@method_decorator(ai_error_handler, name="dispatch")
class OnClass(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return attempt(request)

    post = get


@method_decorator(ai_error_handler(replay=False), name="dispatch")
class OnClassOnce(OnClass):
    pass


@method_decorator(ai_error_handler(serve_recovered=True), name="dispatch")
class OnClassServed(OnClass):
    pass


@method_decorator(ai_error_handler, name="dispatch")
class OnAsyncClass(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        return attempt(request)


@ai_error_handler(replay=False)
async def coroutine_once(request: HttpRequest) -> HttpResponse:
    return attempt(request)


@ai_error_handler(serve_recovered=True)
def served(request: HttpRequest) -> HttpResponse:
    return attempt(request)


@ai_error_handler(serve_recovered=True)
async def coroutine_served(request: HttpRequest) -> HttpResponse:
    return attempt(request)


@ai_error_handler(service="billing")
def billing(request: HttpRequest) -> HttpResponse:
    return attempt(request)


@ai_error_handler
def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


@ai_error_handler
@ai_error_handler
def twice(request: HttpRequest) -> HttpResponse:
    return attempt(request)


@ai_error_handler
def calls_another(request: HttpRequest) -> HttpResponse:
    return plain(request)


def undecorated(request: HttpRequest) -> HttpResponse:
    return attempt(request)


@ai_error_handler
@transaction.atomic
def own_block(request: HttpRequest) -> HttpResponse:
    ErrorLog.objects.create(service="half", error_type="Half")
    return attempt(request)


@ai_error_handler
def writes(request: HttpRequest) -> HttpResponse:
    ErrorLog.objects.create(service="half", error_type="Half")
    return attempt(request)


@ai_error_handler
def breaks_transaction(request: HttpRequest) -> HttpResponse:
    ErrorLog.objects.create(service="half", error_type="Half")
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")
    return HttpResponse()


VIEWS: dict[str, Any] = {
    "plain": plain,
    "coroutine": coroutine,
    "class": OnClass.as_view(),
    "class-once": OnClassOnce.as_view(),
    "class-served": OnClassServed.as_view(),
    "async-class": OnAsyncClass.as_view(),
    "coroutine-once": coroutine_once,
    "served": served,
    "coroutine-served": coroutine_served,
    "billing": billing,
    "missing": missing,
    "twice": twice,
    "calls-another": calls_another,
    "undecorated": undecorated,
    "own-block": own_block,
    "writes": writes,
    "breaks-transaction": breaks_transaction,
}
urlpatterns = [path(f"{name}/", view) for name, view in VIEWS.items()]
EACH_KIND = ["plain", "coroutine", "class", "async-class", "twice", "calls-another"]


@pytest.mark.parametrize("name", EACH_KIND)
class TestEachKindOfView:
    def test_it_is_recovered_and_logged_once(
        self, service: ScriptedService, client: Client, middleware: str, name: str
    ) -> None:
        WORKS_FROM["attempt"] = 2
        service.on_error(apply())
        response = client.get(f"/{name}/")
        assert response.status_code == 400
        assert response.json()["recovery"]["success"]
        assert (
            ErrorLog.objects.get().error_id
            == ErrorLog.objects.get(error_id=response.json()["error"]["error_id"]).error_id
        )
        assert len(service.errors) == 1
        assert len(ATTEMPTS) == 2

    def test_what_stays_broken_is_logged_once_and_not_recovered(
        self, service: ScriptedService, client: Client, middleware: str, name: str
    ) -> None:
        service.on_error(apply())
        assert client.get(f"/{name}/").json()["recovery"]["status"] == "not_recovered"
        assert ErrorLog.objects.count() == 1
        assert len(service.errors) == 1
        assert len(ATTEMPTS) == 2

    def test_healthy_it_is_itself(self, client: Client, name: str) -> None:
        WORKS_FROM["attempt"] = 0
        assert client.get(f"/{name}/").json() == {"attempt": 1}
        assert ErrorLog.objects.count() == 0

    def test_a_browser_gets_djangos_page(self, middleware: str, name: str) -> None:
        response = Client(raise_request_exception=False).get(f"/{name}/", headers=BROWSER)
        assert (response.status_code, response.headers["Content-Type"]) == (500, "text/html; charset=utf-8")
        assert ErrorLog.objects.count() == 1

    def test_an_error_tracker_hears_once(self, client: Client, middleware: str, name: str) -> None:
        heard: list[str] = []

        def tracker(**_: Any) -> None:
            heard.append(str(sys.exc_info()[1]))

        got_request_exception.connect(tracker)
        try:
            client.get(f"/{name}/")
        finally:
            got_request_exception.disconnect(tracker)
        assert heard == ["it is broken"]


@pytest.mark.parametrize("name", ["plain", "coroutine", "class", "async-class"])
def test_each_kind_under_asgi(service: ScriptedService, middleware: str, name: str) -> None:
    WORKS_FROM["attempt"] = 2
    service.on_error(apply())
    # As Django's TestCase runs asynchronous tests: in its own thread, so in its transaction.
    response = async_to_sync(AsyncClient().get)(f"/{name}/")
    assert response.json()["recovery"]["success"]
    assert ErrorLog.objects.count() == 1
    assert len(service.errors) == 1


def test_names_and_docstring_stay() -> None:
    assert (plain.__name__, plain.__doc__) == ("plain", "What the view does.")


def test_what_is_no_error_goes_on(client: Client, middleware: str) -> None:
    assert client.get("/missing/").status_code == 404
    assert ErrorLog.objects.count() == 0


def test_without_the_middleware_other_views_are_not_our_business(settings) -> None:
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != OURS]
    got_request_exception.disconnect(dispatch_uid="error_logging.middleware")
    assert Client(raise_request_exception=False).get("/undecorated/").status_code == 500
    assert ErrorLog.objects.count() == 0


def test_it_names_the_service(service: ScriptedService, client: Client, middleware: str) -> None:
    client.get("/billing/")
    assert service.errors[0].body["service"] == "billing"
    assert ErrorLog.objects.get().service == "billing"


@pytest.mark.parametrize("name", ["class-once", "coroutine-once"])
def test_a_view_opts_out_of_replay(service: ScriptedService, client: Client, middleware: str, name: str) -> None:
    service.on_error(replay())
    client.get(f"/{name}/")
    assert service.results[0].result["status"] == "unsupported"
    assert len(ATTEMPTS) == 1


@pytest.mark.parametrize("headers", [{}, BROWSER, {"accept": "application/json"}])
@pytest.mark.parametrize("name", ["served", "coroutine-served", "class-served"])
class TestServeRecovered:
    def test_the_user_gets_the_real_response(
        self, service: ScriptedService, client: Client, middleware: str, name: str, headers: dict[str, str]
    ) -> None:
        WORKS_FROM["attempt"] = 2
        service.on_error(apply())
        response = client.get(f"/{name}/", headers=headers)
        assert (response.status_code, response.json()) == (200, {"attempt": 2})
        assert response.headers["X-Upright-Recovered"] == str(ErrorLog.objects.get().error_id)
        assert "X-Upright-Error" not in response.headers

    def test_not_where_the_service_does_not_say_so(
        self, service: ScriptedService, middleware: str, name: str, headers: dict[str, str]
    ) -> None:
        WORKS_FROM["attempt"] = 2
        service.on_error(apply())
        service.on_result(refusal(422))
        response = Client(raise_request_exception=False).get(f"/{name}/", headers=headers)
        assert response.status_code == (500 if headers == BROWSER else 400)
        assert "X-Upright-Recovered" not in response.headers
        assert ErrorLog.objects.count() == 1

    def test_not_where_there_was_no_replay(
        self, service: ScriptedService, middleware: str, name: str, headers: dict[str, str]
    ) -> None:
        service.on_error(recovered())
        response = Client(raise_request_exception=False).get(f"/{name}/", headers=headers)
        assert response.status_code == (500 if headers == BROWSER else 400)
        assert len(ATTEMPTS) == 1

    def test_an_error_tracker_hears_of_it_all_the_same(
        self, service: ScriptedService, client: Client, middleware: str, name: str, headers: dict[str, str]
    ) -> None:
        heard: list[str] = []

        def tracker(**_: Any) -> None:
            heard.append(str(sys.exc_info()[1]))

        WORKS_FROM["attempt"] = 2
        service.on_error(apply())
        got_request_exception.connect(tracker)
        try:
            client.get(f"/{name}/", headers=headers)
        finally:
            got_request_exception.disconnect(tracker)
        assert heard == ["it is broken"]


def test_a_view_that_did_not_opt_in_never_serves_a_replay(service: ScriptedService, client: Client) -> None:
    WORKS_FROM["attempt"] = 2
    service.on_error(apply())
    response = client.get("/plain/")
    assert (response.status_code, response.json()["recovery"]["success"]) == (400, True)


class TestBrokenBlocks:
    @pytest.fixture
    def atomic_requests(self) -> Any:
        connection.settings_dict["ATOMIC_REQUESTS"] = True
        yield
        connection.settings_dict["ATOMIC_REQUESTS"] = False

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("name", ["writes", "breaks-transaction"])
    @pytest.mark.parametrize("headers", [{}, BROWSER])
    def test_half_a_request_is_not_committed_and_the_log_survives(
        self, service: ScriptedService, atomic_requests: None, middleware: str, name: str, headers: dict[str, str]
    ) -> None:
        Client(raise_request_exception=False).get(f"/{name}/", headers=headers)
        assert drain.settle()
        assert [row.service for row in ErrorLog.objects.all()] == ["django"]
        # Nobody waited with the transaction open.
        assert "waiter" not in service.errors[0].body

    @pytest.mark.parametrize("name", ["writes", "breaks-transaction"])
    def test_nor_in_a_test_case(self, client: Client, atomic_requests: None, middleware: str, name: str) -> None:
        error_id = client.get(f"/{name}/").json()["error"]["error_id"]
        assert [str(row.error_id) for row in ErrorLog.objects.all()] == [error_id]

    def test_a_block_of_the_view_s_own_is_over_by_then(self, service: ScriptedService, client: Client) -> None:
        service.on_error(apply())
        assert client.get("/own-block/").json()["recovery"]["status"] == "not_recovered"
        assert [row.service for row in ErrorLog.objects.all()] == ["django"]


def test_our_own_fault_lets_the_exception_go_on(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch, middleware: str
) -> None:
    from error_logging import handling

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(handling, "recover", broken)
    with pytest.raises(ValueError, match="it is broken"):
        Client().get("/plain/")
    assert service.wait_for("error")[0].error_id == str(ErrorLog.objects.get().error_id)


def test_it_can_be_called_with_options_and_without() -> None:
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    decorate: Callable[..., Any] = ai_error_handler(replay=False)
    assert decorate(view).upright_replay is False
    assert not hasattr(ai_error_handler(view), "upright_replay")
