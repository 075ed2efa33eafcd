"""ErrorRecoveryContextManager: a block's exception is suppressed only where its recovery is known to have worked."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import requests
from asgiref.sync import async_to_sync
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db import DataError, OperationalError, connection, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from error_logging import waiting
from error_logging.ai_recovery_middleware import ErrorRecoveryContextManager
from error_logging.models import ErrorLog
from error_logging.testing import (
    Received,
    Reply,
    ScriptedService,
    action,
    apply,
    final,
    pending,
    probe,
    recovered,
    refusal,
    replay,
    report,
)

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]


class Upstream:
    """What a block needs: it works from the n-th look on."""

    def __init__(self, works_from: int) -> None:
        self.looks = 0
        self.works_from = works_from

    def look(self) -> bool:
        self.looks += 1
        return self.looks >= self.works_from


def run_plain(manager: ErrorRecoveryContextManager, block: Callable[[], Any]) -> None:
    with manager:
        block()


def run_async(manager: ErrorRecoveryContextManager, block: Callable[[], Any]) -> None:
    async def run() -> None:
        async with manager:
            await asyncio.sleep(0)
            block()

    async_to_sync(run)()


def fail() -> None:
    raise ConnectionError("the partner is down")


both = pytest.mark.parametrize("run", [run_plain, run_async])


@both
class TestBoth:
    def test_a_healthy_block_is_left_alone(self, service: ScriptedService, run: Any) -> None:
        done: list[int] = []
        run(ErrorRecoveryContextManager(service="django"), lambda: done.append(1))
        assert (done, service.received, ErrorLog.objects.count()) == ([1], [], 0)

    def test_recovered_with_the_probe_as_proof_it_is_suppressed(self, service: ScriptedService, run: Any) -> None:
        upstream = Upstream(works_from=2)
        service.on_error(apply())
        manager = ErrorRecoveryContextManager(service="django", probe=upstream.look)
        run(manager, fail)
        assert upstream.looks == 2  # Before the action it failed, after it it works.
        assert service.errors[0].body["waiter"]["can"] == ["apply", "probe"]
        assert service.errors[0].body["origin"] == "block"
        proof = service.results[0].evidence or {}
        assert (proof["kind"], proof["outcome"]) == ("caller_probe", "passed")
        row = ErrorLog.objects.get(error_id=manager.error_id)
        assert row.resolved
        assert manager.recovery == row.recovery

    def test_not_recovered_the_original_goes_on_with_its_traceback(self, service: ScriptedService, run: Any) -> None:
        original = ConnectionError("the partner is down")

        def deep_down() -> None:
            raise original

        service.on_error(apply())
        manager = ErrorRecoveryContextManager(probe=lambda: False)
        with pytest.raises(ConnectionError) as raised:
            run(manager, deep_down)
        assert raised.value is original
        assert "deep_down" in [frame.name for frame in traceback.extract_tb(original.__traceback__)]
        assert (original.__cause__, original.__context__) == (None, None)
        assert (manager.recovery or {})["status"] == "not_recovered"
        assert not ErrorLog.objects.get().resolved

    def test_a_probe_that_worked_all_along_proves_nothing(self, service: ScriptedService, run: Any) -> None:
        service.on_error(apply())
        with pytest.raises(ConnectionError):
            run(ErrorRecoveryContextManager(probe=lambda: True), fail)
        assert (service.results[0].evidence or {})["outcome"] == "inconclusive"

    def test_a_probe_that_raises_has_failed(self, service: ScriptedService, run: Any) -> None:
        def ping() -> None:
            raise TimeoutError

        service.on_error(apply())
        with pytest.raises(ConnectionError, match="the partner"):
            run(ErrorRecoveryContextManager(probe=ping), fail)
        proof = service.results[0].evidence or {}
        assert (proof["outcome"], proof["detail"]) == ("failed", "the probe raised TimeoutError")

    def test_one_who_joined_has_its_own_probe_as_evidence(self, service: ScriptedService, run: Any) -> None:
        service.on_error(probe())
        run(ErrorRecoveryContextManager(probe=lambda: True), fail)
        assert (service.results[0].evidence or {})["outcome"] == "passed"

    @pytest.mark.parametrize(
        "answer",
        [
            final(report("recovered", action("pool_increase"), success=False)),
            final(report("unknown")),
            final(report("not_recovered")),
            pending(),
            refusal(422),
            refusal(503),
        ],
    )
    def test_without_evidence_of_its_own_it_is_not_suppressed(
        self, service: ScriptedService, run: Any, answer: Reply
    ) -> None:
        service.on_error(answer)
        manager = ErrorRecoveryContextManager()
        with pytest.raises(ConnectionError):
            run(manager, fail)
        assert (manager.recovery or {})["success"] is False
        assert ErrorLog.objects.count() == 1

    def test_a_block_is_never_done_again(self, service: ScriptedService, run: Any) -> None:
        done: list[int] = []

        def block() -> None:
            done.append(1)
            fail()

        service.on_error(replay())
        with pytest.raises(ConnectionError):
            run(ErrorRecoveryContextManager(), block)
        assert done == [1]
        assert service.results[0].result["status"] == "unsupported"

    @pytest.mark.parametrize("kind", [Http404, PermissionDenied, asyncio.CancelledError])
    def test_what_is_no_error_goes_on(self, service: ScriptedService, run: Any, kind: type[BaseException]) -> None:
        def block() -> None:
            raise kind

        with pytest.raises(kind):
            run(ErrorRecoveryContextManager(), block)
        assert (service.received, ErrorLog.objects.count()) == ([], 0)

    def test_service_and_context_are_told_scrubbed(self, service: ScriptedService, run: Any) -> None:
        context = {"queue": "orders", "api_key": "sk_live_abcdefghijklmnop"}
        with pytest.raises(ConnectionError):
            run(ErrorRecoveryContextManager(service="billing", context=context), fail)
        sent = service.errors[0].body
        assert (sent["service"], sent["context"]["queue"]) == ("billing", "orders")
        assert "sk_live" not in str(sent)
        assert ErrorLog.objects.get().context["queue"] == "orders"

    def test_with_no_service_it_logs_and_raises(self, run: Any) -> None:
        with pytest.raises(ConnectionError):
            run(ErrorRecoveryContextManager(service="django"), fail)
        assert ErrorLog.objects.get().context["recovery_attempted"] is False

    def test_a_fault_of_ours_hides_nothing(
        self, service: ScriptedService, run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr("error_logging.exchange.run", broken)
        with caplog.at_level(logging.ERROR), pytest.raises(ConnectionError, match="the partner"):
            run(ErrorRecoveryContextManager(), fail)
        assert "Upright failed" in caplog.text
        assert len(service.wait_for("error")) == 1
        assert ErrorLog.objects.count() == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_process_goes_on(service: ScriptedService, kind: type[BaseException]) -> None:
    with pytest.raises(kind), ErrorRecoveryContextManager():
        raise kind
    assert (service.received, ErrorLog.objects.count()) == ([], 0)


class TestTransactions:
    @pytest.mark.parametrize("fails", [fail, lambda: connection.cursor().execute("SELECT 1 / 0")])
    def test_inside_a_block_the_exception_must_reach_it(self, service: ScriptedService, fails: Any) -> None:
        def halfway() -> None:
            with transaction.atomic():
                ErrorLog.objects.create(service="half", error_type="Half")
                with ErrorRecoveryContextManager():
                    fails()

        service.on_error(recovered())
        with pytest.raises((ConnectionError, DataError)):
            halfway()
        assert not ErrorLog.objects.filter(service="half").exists()
        assert "waiter" not in service.wait_for("error")[0].body

    def test_one_of_the_blocks_own_is_over(self, service: ScriptedService) -> None:
        upstream = Upstream(works_from=2)
        service.on_error(apply())
        with ErrorRecoveryContextManager(probe=upstream.look), transaction.atomic():
            ErrorLog.objects.create(service="half", error_type="Half")
            fail()
        assert not ErrorLog.objects.filter(service="half").exists()
        assert ErrorLog.objects.get().resolved


class TestDefaultProbes:
    def test_the_database_for_its_errors(self, service: ScriptedService) -> None:
        service.on_error(probe())
        with ErrorRecoveryContextManager():
            raise OperationalError("the connection is closed")
        assert (service.results[0].evidence or {})["outcome"] == "passed"

    def test_the_cache_for_its_errors(self, service: ScriptedService, redis_cache: str) -> None:
        service.on_error(probe())
        with ErrorRecoveryContextManager():
            raise redis.ConnectionError("reset by peer")
        assert (service.results[0].evidence or {})["outcome"] == "passed"
        assert not [key for key in redis.Redis.from_url(redis_cache).scan_iter() if b"upright-probe" in key]

    def test_a_cache_that_is_down(self, service: ScriptedService, settings) -> None:
        settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1"}}
        service.on_error(probe())
        with pytest.raises(redis.ConnectionError), ErrorRecoveryContextManager():
            cache.get("x")
        assert (service.results[0].evidence or {})["outcome"] == "failed"

    def test_the_peer_of_a_connection_error(self, service: ScriptedService) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]

            def listening(message: Received) -> Reply:
                server.listen()
                return probe()

            service.on_error(listening)
            with ErrorRecoveryContextManager():
                requests.get(f"http://127.0.0.1:{port}/", timeout=5)
        assert (service.results[0].evidence or {})["outcome"] == "passed"

    def test_none_for_what_nobody_knows(self, service: ScriptedService) -> None:
        with pytest.raises(ZeroDivisionError), ErrorRecoveryContextManager():
            _ = 1 / 0
        assert service.errors[0].body["waiter"]["can"] == ["apply"]


class TestWaiting:
    def test_past_the_cap_it_raises_at_once(self, service: ScriptedService, settings) -> None:
        settings.UPRIGHT_MAX_WAITERS = 0
        with pytest.raises(ConnectionError), ErrorRecoveryContextManager() as manager:
            fail()
        assert (manager.recovery or {})["message"] == "Recovery pending"
        assert "waiter" not in service.wait_for("error")[0].body

    def test_the_place_is_given_back(self, service: ScriptedService) -> None:
        for _ in range(3):
            with pytest.raises(ConnectionError), ErrorRecoveryContextManager():
                fail()
        assert waiting.waiters() == 0
        assert all("waiter" in one.body for one in service.errors)

    def test_the_event_loop_goes_on_meanwhile(self, service: ScriptedService) -> None:
        gate = threading.Event()
        service.on_error(pending().held(gate))

        async def wait() -> None:
            with pytest.raises(ConnectionError):
                async with ErrorRecoveryContextManager():
                    fail()

        async def other() -> None:
            await asyncio.to_thread(service.wait_for, "error")
            gate.set()  # Only the loop can end the waiting.

        async def both_at_once() -> None:
            await asyncio.gather(wait(), other())

        async_to_sync(both_at_once)()
        assert gate.is_set()


def view(request: HttpRequest) -> HttpResponse:
    with ErrorRecoveryContextManager(service="django"):
        fail()
    return HttpResponse("went on")


urlpatterns = [path("view/", view)]


def test_in_a_view_it_goes_on_where_it_was_suppressed(service: ScriptedService, client: Client) -> None:
    service.on_error(recovered())
    assert client.get("/view/").content == b"went on"


def test_in_a_view_the_middleware_answers_what_was_not(service: ScriptedService, client: Client) -> None:
    response = client.get("/view/")
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "ConnectionError"


@pytest.fixture(autouse=True)
def nobody_waits() -> Iterator[None]:
    yield
    assert waiting.waiters() == 0
