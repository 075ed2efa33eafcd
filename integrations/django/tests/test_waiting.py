"""Waiting: a quarter of the threads at most, no connection meanwhile, and never past the deadline."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from django.db import OperationalError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from error_logging import client as service_client
from error_logging import conf, drain, waiting
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, apply, directive, garbage, pending, recovered, refusal, silence

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]


def fails(request: HttpRequest) -> HttpResponse:
    ErrorLog.objects.count()  # It holds a connection when it fails.
    raise ValueError("it is broken")


def exhausted(request: HttpRequest) -> HttpResponse:
    raise OperationalError("the pool is empty")


def fine(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"fine {ErrorLog.objects.count() >= 0}")


urlpatterns = [path("fails/", fails), path("exhausted/", exhausted), path("fine/", fine)]


@pytest.fixture(autouse=True)
def nobody_waits() -> Iterator[None]:
    yield
    assert waiting.waiters() == 0


@pytest.mark.parametrize(
    ("command", "waiters"),
    [
        ("gunicorn site --threads 8", 2),
        ("gunicorn site --threads=16 --workers 2", 4),
        ("gunicorn site --threads 2", 1),
        ("gunicorn site", 1),
        ("manage.py runserver", 1),
        ("/venv/bin/uvicorn site.asgi:application", 8),
        ("gunicorn site.asgi -k uvicorn.workers.UvicornWorker", 8),
    ],
)
def test_a_quarter_of_the_threads_waits_and_one_at_least(
    monkeypatch: pytest.MonkeyPatch, command: str, waiters: int
) -> None:
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    assert conf.read()[0].max_waiters == waiters


def test_places_end_and_come_back(service: ScriptedService, settings) -> None:
    settings.UPRIGHT_MAX_WAITERS = 2
    with waiting.place() as first, waiting.place() as second, waiting.place() as third:
        assert (first, second, third) == (True, True, False)
        assert waiting.waiters() == 2
    with waiting.place() as again:
        assert again


def test_a_place_comes_back_whatever_happens(service: ScriptedService) -> None:
    with pytest.raises(SystemExit), waiting.place():
        raise SystemExit
    assert waiting.waiters() == 0


@pytest.mark.parametrize(
    "settings_of_the_case",
    [
        {"UPRIGHT_MAX_WAITERS": 0},
        {"ERROR_RECOVERY_TIMEOUT": 0},
        {"UPRIGHT_URL": None},
        {"UPRIGHT_SECRET": None},
        {"UPRIGHT_ENABLED": False},
    ],
)
def test_where_nobody_may_wait_there_is_no_place(
    service: ScriptedService, settings_of_the_case: dict[str, Any]
) -> None:
    with override_settings(**settings_of_the_case), waiting.place() as place:
        assert not place


def test_a_forked_child_has_places_of_its_own() -> None:
    code = (
        "import os, django\n"
        "from django.conf import settings\n"
        "settings.configure(UPRIGHT_URL='http://127.0.0.1:9', UPRIGHT_SECRET='whsec_' + 'A' * 40)\n"
        "django.setup()\n"
        "from error_logging import waiting\n"
        "with waiting.place() as place:\n"
        "    assert place\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        with waiting.place() as own:\n"
        "            os._exit(0 if own else 1)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


class TestTheDeadline:
    def test_the_service_is_told_how_long_the_caller_has(self, service: ScriptedService, settings) -> None:
        settings.ERROR_RECOVERY_TIMEOUT = 2000
        Client().get("/fails/")
        (sent,) = service.errors
        assert 0 < sent.wait_ms < sent.body["waiter"]["budget_ms"] < 2000

    def test_silence_ends_with_it(self, service: ScriptedService, settings) -> None:
        settings.ERROR_RECOVERY_TIMEOUT = 200
        service.always(silence())
        told = Client().get("/fails/").json()["recovery"]
        assert (told["status"], told["success"]) == ("pending", False)
        assert ErrorLog.objects.count() == 1

    def test_an_answer_that_trickles_ends_with_it(self, service: ScriptedService, settings) -> None:
        settings.ERROR_RECOVERY_TIMEOUT = 200
        gate = threading.Event()
        service.on_error(recovered().held(gate))
        assert Client().get("/fails/").json()["recovery"]["status"] == "pending"
        gate.set()


class TestAServiceThatFailed:
    @pytest.mark.parametrize(
        "misbehave",
        [
            lambda service: service.stop(),
            lambda service: service.always(refusal(500)),
            lambda service: service.always(refusal(503, retry_after=1)),
            lambda service: service.always(refusal(429)),
            lambda service: service.always(garbage()),
        ],
    )
    def test_no_one_waits_for_it_until_something_heard_from_it(
        self, service: ScriptedService, misbehave: Callable[[ScriptedService], None]
    ) -> None:
        misbehave(service)
        assert Client().get("/fails/").json()["recovery"]["success"] is False
        with waiting.place() as place:
            assert not place
        service.always(None)
        service.start()
        assert service_client.probe()
        # The drainer brings the first error now, at its own time.
        service.on_error(*[lambda sent: recovered() if "waiter" in sent.body else pending()] * 2)
        assert Client().get("/fails/").json()["recovery"]["success"]

    def test_one_that_wants_no_more_is_left_alone(self, service: ScriptedService) -> None:
        service.on_error(refusal(410))
        Client().get("/fails/")
        Client().get("/fails/")
        assert drain.settle()
        assert len(service.errors) == 1
        assert ErrorLog.objects.count() == 2

    def test_one_that_refuses_this_error_is_asked_about_the_next(self, service: ScriptedService) -> None:
        service.on_error(refusal(422, "no such thing"), recovered())
        told = Client().get("/fails/").json()["recovery"]
        assert (told["attempted"], told["success"]) == (False, False)
        assert "no such thing" in told["message"]
        assert Client().get("/fails/").json()["recovery"]["success"]


class TestConnections:
    @pytest.mark.django_db(transaction=True)
    def test_they_are_given_back(self, service: ScriptedService) -> None:
        ErrorLog.objects.count()
        pool = connection.pool
        assert pool is not None
        assert connection.connection is not None
        waiting.give_back_connections()
        numbers = pool.get_stats()
        assert numbers["pool_available"] == numbers["pool_size"]

    @pytest.mark.django_db(transaction=True)
    def test_but_for_those_in_a_transaction(self) -> None:
        with transaction.atomic():
            ErrorLog.objects.create(error_type="Kept")
            waiting.give_back_connections()
            assert ErrorLog.objects.filter(error_type="Kept").exists()
        assert ErrorLog.objects.filter(error_type="Kept").exists()

    def test_those_never_opened_stay_so(self) -> None:
        threading.Thread(target=waiting.give_back_connections).start()
        assert all(one is not None for one in connections.all(initialized_only=True))


@pytest.mark.django_db(transaction=True)
class TestUnderAThreadedServer:
    """Django's own live server: real threads, real connections."""

    @pytest.fixture
    def beside(self) -> Iterator[Callable[..., Any]]:
        with ThreadPoolExecutor(16) as threads:
            yield threads.submit
        drain.writer.settle(5)

    def test_the_healthy_are_served_while_failing_ones_wait(
        self, service: ScriptedService, live_server: Any, settings, beside: Callable[..., Any]
    ) -> None:
        settings.UPRIGHT_MAX_WAITERS = 2
        settings.ERROR_RECOVERY_TIMEOUT = 20_000
        gate = threading.Event()
        service.on_error(recovered().held(gate), recovered().held(gate))
        waits = [beside(httpx.get, f"{live_server.url}/fails/", timeout=30) for _ in range(2)]
        service.wait_for("error", 2)
        # The pool has four connections; waiters hold none of them.
        others = [beside(httpx.get, f"{live_server.url}/fine/", timeout=30) for _ in range(4)]
        assert [one.result(30).text for one in others] == ["fine True"] * 4
        more = [beside(httpx.get, f"{live_server.url}/fails/", timeout=30) for _ in range(4)]
        assert {one.result(30).json()["recovery"]["status"] for one in more} == {"pending"}
        assert not any(one.done() for one in waits)
        gate.set()
        assert all(one.result(30).json()["recovery"]["success"] for one in waits)

    def test_every_error_of_a_storm_is_logged_and_delivered(
        self, service: ScriptedService, live_server: Any, beside: Callable[..., Any]
    ) -> None:
        answers = [beside(httpx.get, f"{live_server.url}/exhausted/", timeout=30) for _ in range(40)]
        ids = {one.result(60).json()["error"]["error_id"] for one in answers}
        assert len(ids) == 40
        assert drain.settle(30)
        assert {str(one) for one in ErrorLog.objects.values_list("error_id", flat=True)} == ids
        assert {one.error_id for one in service.errors} == ids

    def test_a_directive_that_a_waiter_brings_is_applied_before_its_replay(
        self, service: ScriptedService, live_server: Any
    ) -> None:
        service.on_error(apply(directive("pool_increase", max_size=6)))
        httpx.get(f"{live_server.url}/fails/", timeout=30)
        (told,) = service.results[0].result["acknowledgements"]
        assert (told["status"], told["after"]["max_size"]) == ("applied", 6)
        assert time.monotonic() > service.results[0].at > service.errors[0].at
