"""AIErrorRecoveryMiddleware under ASGI: through Django's AsyncClient, and through a real server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn
from asgiref.sync import async_to_sync
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIHandler
from django.core.signals import got_request_exception
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient
from django.urls import path

from error_logging import drain, handling, waiting
from error_logging.ai_recovery_middleware import ai_error_handler
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, apply, pending, recovered, replay, retry, silence

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

BROWSER = {"accept": "text/html,*/*;q=0.8"}
ATTEMPTS: list[str] = []
WORKS_FROM = {"attempt": 1_000}
ENDED: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    ATTEMPTS.clear()
    ENDED.clear()
    WORKS_FROM["attempt"] = 1_000
    yield
    assert waiting.waiters() == 0


def attempt(request: HttpRequest) -> HttpResponse:
    ATTEMPTS.append(request.method or "")
    if len(ATTEMPTS) < WORKS_FROM["attempt"]:
        raise ValueError("it is broken")
    return JsonResponse({"attempt": len(ATTEMPTS)})


async def coroutine(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return attempt(request)


def plain(request: HttpRequest) -> HttpResponse:
    ErrorLog.objects.count()  # It holds a connection when it fails.
    return attempt(request)


@ai_error_handler(serve_recovered=True)
async def served(request: HttpRequest) -> HttpResponse:
    return attempt(request)


async def by_session(request: HttpRequest) -> HttpResponse:
    # Without an await: a middleware has loaded it.
    request.session["visits"] = request.session.get("visits", 0) + 1
    return attempt(request)


async def fine(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


def fine_plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"fine {ErrorLog.objects.count() >= 0}")


async def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


async def forbidden(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied


async def cancelled(request: HttpRequest) -> HttpResponse:
    raise asyncio.CancelledError


async def streamed(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        try:
            yield "first"
            raise ValueError("in the middle")
        finally:
            ENDED.append("parts")

    return StreamingHttpResponse(parts())


async def endless(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        try:
            while True:
                yield "more"
        finally:
            ENDED.append("parts")

    return StreamingHttpResponse(parts())


urlpatterns = [
    path(f"{view.__name__}/", view)
    for view in (
        coroutine, plain, served, by_session, fine, fine_plain, missing, forbidden, cancelled, streamed, endless,
    )
]  # fmt: skip


def loads_session(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        await request.session.aget("visits")  # type: ignore[attr-defined]
        return await get_response(request)

    return middleware


loads_session.async_capable = True  # type: ignore[attr-defined]
loads_session.sync_capable = False  # type: ignore[attr-defined]


def get(address: str, **more: Any) -> Any:
    """As Django's TestCase runs asynchronous tests: in its own thread, so in its transaction."""
    return async_to_sync(AsyncClient(raise_request_exception=False).get)(address, **more)


class TestThroughDjangosClient:
    @pytest.mark.parametrize("view", ["coroutine", "plain"])
    def test_the_answer_is_the_guides(self, service: ScriptedService, view: str) -> None:
        service.on_error(recovered("cache_clear"))
        response = get(f"/{view}/")
        answer = response.json()
        assert response.status_code == 400
        assert answer["error"] == {
            "type": "ValueError", "message": "it is broken", "severity": "medium",
            "error_id": response.headers["X-Upright-Error"],
        }  # fmt: skip
        assert answer["recovery"]["message"] == "Recovery successful: Cache Clear"
        assert ErrorLog.objects.get(error_id=answer["error"]["error_id"]).resolved

    @pytest.mark.parametrize("view", ["coroutine", "plain"])
    def test_the_view_is_replayed_where_it_runs(self, service: ScriptedService, view: str) -> None:
        WORKS_FROM["attempt"] = 3
        service.on_error(retry())
        told = get(f"/{view}/").json()["recovery"]
        assert told["success"]
        assert ATTEMPTS == ["GET"] * 3
        assert (service.results[0].evidence or {})["attempts"] == 2

    def test_what_fails_again_is_not_recovered(self, service: ScriptedService) -> None:
        service.on_error(apply())
        assert get("/coroutine/").json()["recovery"]["status"] == "not_recovered"

    @pytest.mark.parametrize("headers", [{}, BROWSER])
    def test_a_view_that_opted_in_serves_its_replay(self, service: ScriptedService, headers: dict[str, str]) -> None:
        WORKS_FROM["attempt"] = 2
        service.on_error(replay())
        response = get("/served/", headers=headers)
        assert (response.json(), "X-Upright-Recovered" in response.headers) == ({"attempt": 2}, True)

    def test_a_session_that_was_loaded_is_loaded_for_the_replay(self, service: ScriptedService, settings) -> None:
        WORKS_FROM["attempt"] = 2
        settings.MIDDLEWARE = [*settings.MIDDLEWARE[:-1], f"{__name__}.loads_session", settings.MIDDLEWARE[-1]]
        service.on_error(replay())
        assert get("/by_session/").json()["recovery"]["success"]

    def test_a_browser_gets_djangos_page(self, service: ScriptedService) -> None:
        response = get("/coroutine/", headers=BROWSER)
        assert (response.status_code, response.headers["Content-Type"]) == (500, "text/html; charset=utf-8")
        assert service.wait_for("error")[0].error_id == str(ErrorLog.objects.get().error_id)

    @pytest.mark.parametrize("headers", [{}, BROWSER])
    @pytest.mark.parametrize("view", ["coroutine", "plain", "served"])
    def test_an_error_tracker_hears_once(self, view: str, headers: dict[str, str]) -> None:
        heard: list[str] = []

        def tracker(**_: Any) -> None:
            heard.append(str(sys.exc_info()[1]))

        got_request_exception.connect(tracker)
        try:
            get(f"/{view}/", headers=headers)
        finally:
            got_request_exception.disconnect(tracker)
        assert heard == ["it is broken"]

    @pytest.mark.parametrize("view", ["coroutine", "plain", "served"])
    def test_djangos_log_has_the_traceback_once(self, view: str, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "django.request"):
            get(f"/{view}/")
        (line,) = [one for one in caplog.records if one.name == "django.request"]
        assert (line.getMessage(), line.levelname) == (f"Internal Server Error: /{view}/", "ERROR")
        assert line.exc_info is not None
        assert str(line.exc_info[1]) == "it is broken"

    @pytest.mark.parametrize(("view", "status"), [("missing", 404), ("forbidden", 403)])
    def test_what_is_no_error_is_left_alone(self, service: ScriptedService, view: str, status: int) -> None:
        assert get(f"/{view}/").status_code == status
        assert (service.received, ErrorLog.objects.count()) == ([], 0)

    def test_nor_is_a_cancellation(self, service: ScriptedService) -> None:
        with pytest.raises(asyncio.CancelledError):
            get("/cancelled/")
        assert (service.received, ErrorLog.objects.count()) == ([], 0)

    def test_an_error_in_a_streamed_body_is_logged_and_goes_on(self) -> None:
        async def read() -> list[bytes]:
            got: list[bytes] = []
            response = await AsyncClient().get("/streamed/")
            with contextlib.suppress(ValueError):
                async for part in response:
                    got.append(part)
            return got

        assert async_to_sync(read)() == [b"first"]
        assert ErrorLog.objects.get().message == "in the middle"
        assert ENDED == ["parts"]

    def test_a_body_that_is_not_read_to_its_end_is_ended(self) -> None:
        async def read_one() -> None:
            response = await AsyncClient().get("/endless/")
            parts = aiter(response)
            await anext(parts)
            await response.streaming_content.aclose()  # type: ignore[union-attr]
            await parts.aclose()  # type: ignore[attr-defined]

        async_to_sync(read_one)()
        assert ErrorLog.objects.count() == 0

    def test_our_own_fault_leaves_the_request_to_django(
        self, service: ScriptedService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(*_: Any) -> Any:
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(handling, "arecover", broken)
        response = get("/coroutine/")
        assert (response.status_code, b"Server Error" in response.content) == (500, True)
        assert "Upright failed" in caplog.text
        assert service.wait_for("error")[0].error_id == str(ErrorLog.objects.get().error_id)


@pytest.fixture
def server(service: ScriptedService, transactional_db: None) -> Iterator[str]:
    """The address of the site under uvicorn, one process with one event loop."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        running = uvicorn.Server(uvicorn.Config(ASGIHandler(), lifespan="off", log_config=None))
        thread = threading.Thread(target=lambda: running.run(sockets=[listening]))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join(30)
    drain.writer.settle(5)


def fetch(address: str, **more: Any) -> httpx.Response:
    return httpx.get(address, timeout=30, **more)


@pytest.fixture
def beside() -> Iterator[Callable[..., Any]]:
    with ThreadPoolExecutor(8) as threads:
        yield threads.submit


@pytest.mark.django_db(transaction=True)
class TestThroughARealServer:
    @pytest.mark.parametrize("view", ["coroutine", "plain"])
    def test_the_error_is_answered_and_recovered(self, service: ScriptedService, server: str, view: str) -> None:
        WORKS_FROM["attempt"] = 2
        service.on_error(apply())
        response = fetch(f"{server}/{view}/")
        assert (response.status_code, response.json()["recovery"]["success"]) == (400, True)
        drain.settle()
        assert ErrorLog.objects.get(error_id=response.json()["error"]["error_id"]).resolved

    @pytest.mark.parametrize("view", ["coroutine", "plain"])
    def test_others_are_served_while_one_waits(
        self, service: ScriptedService, server: str, beside: Callable[..., Any], view: str
    ) -> None:
        gate = threading.Event()
        service.on_error(recovered().held(gate))
        waits = beside(fetch, f"{server}/{view}/")
        service.wait_for("error")
        for _ in range(5):
            assert fetch(f"{server}/fine/").text == "fine"
            assert fetch(f"{server}/fine_plain/").text == "fine True"
        assert not waits.done()
        gate.set()
        assert waits.result(30).json()["recovery"]["success"]

    def test_past_the_cap_errors_are_answered_at_once(
        self, service: ScriptedService, server: str, beside: Callable[..., Any], settings
    ) -> None:
        settings.UPRIGHT_MAX_WAITERS = 2
        gate = threading.Event()
        service.on_error(recovered().held(gate), recovered().held(gate))
        waits = [beside(fetch, f"{server}/coroutine/") for _ in range(2)]
        service.wait_for("error", 2)
        for _ in range(3):
            told = fetch(f"{server}/coroutine/").json()["recovery"]
            assert (told["status"], told["attempted"]) == ("pending", False)
        gate.set()
        assert all(one.result(30).json()["recovery"]["success"] for one in waits)
        # Those that did not wait are delivered all the same, and the place is free again.
        assert len(service.wait_for("error", 5)) == 5
        service.on_error(recovered())
        assert fetch(f"{server}/coroutine/").json()["recovery"]["success"]

    def test_a_waiter_holds_no_connection(
        self, service: ScriptedService, server: str, beside: Callable[..., Any]
    ) -> None:
        gate = threading.Event()
        service.on_error(recovered().held(gate))
        connection.close()
        waits = beside(fetch, f"{server}/plain/")
        service.wait_for("error")
        pool = connection.pool
        assert pool is not None
        numbers = pool.get_stats()
        assert numbers["pool_available"] == numbers["pool_size"]
        gate.set()
        waits.result(30)

    def test_a_client_that_goes_away_leaves_nothing_behind(self, service: ScriptedService, server: str) -> None:
        gate = threading.Event()
        service.on_error(recovered().held(gate))
        host, port = server.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /coroutine/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
            (sent,) = service.wait_for("error")
        # The drainer brings it again, under the same id, since nobody heard the answer.
        again = service.wait_for("error", 2)[1]
        assert (again.delivery_id, "waiter" in again.body) == (sent.delivery_id, False)
        assert drain.settle()
        assert ErrorLog.objects.get().error_id.hex == sent.error_id.replace("-", "")
        assert waiting.waiters() == 0
        gate.set()

    def test_a_service_that_stays_silent_costs_no_more_than_the_time(
        self, service: ScriptedService, server: str, settings
    ) -> None:
        settings.ERROR_RECOVERY_TIMEOUT = 300
        service.always(silence())
        assert fetch(f"{server}/coroutine/").json()["recovery"]["status"] == "pending"
        # And the next one does not wait for it at all.
        assert fetch(f"{server}/coroutine/").json()["recovery"]["status"] == "pending"
        assert [one for one in service.errors if "waiter" in one.body] == service.errors[:1]

    def test_the_cap_counts_those_that_wait_for_a_pending_one(
        self, service: ScriptedService, server: str, settings
    ) -> None:
        settings.UPRIGHT_MAX_WAITERS = 0
        service.on_error(pending())
        assert fetch(f"{server}/plain/").json()["recovery"]["message"] == "Recovery pending"
        assert "waiter" not in service.wait_for("error")[0].body
