"""retry: what may be repeated, when, and how often."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpRequest, JsonResponse
from django.test import Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from error_logging import exchange, measurements, retry_budget
from error_logging.ai_recovery_middleware import ai_error_handler
from error_logging.retry_budget import FLOOR, RetryBudget
from error_logging.testing import ScriptedService, replay, retry

orders: list[Any] = []
failures = {"left": 0}


def _order(request: HttpRequest) -> JsonResponse:
    uploaded = request.FILES["slip"].read().decode() if request.FILES else ""
    orders.append((request.method, request.POST.get("item"), uploaded, request.headers.get("Idempotency-Key")))
    if failures["left"]:
        failures["left"] -= 1
        raise ConnectionError("the bank hung up")
    return JsonResponse({"orders": len(orders)}, status=201)


@ai_error_handler(idempotency_key="Idempotency-Key")
def order(request: HttpRequest) -> JsonResponse:
    return _order(request)


@ai_error_handler(idempotent=True)
def stock(request: HttpRequest) -> JsonResponse:
    return _order(request)


@method_decorator(ai_error_handler(idempotent=True), name="dispatch")
class Shelf(View):
    def put(self, request: HttpRequest) -> JsonResponse:
        return _order(request)


@ai_error_handler(idempotency_key="Idempotency-Key")
def stream(request: HttpRequest) -> JsonResponse:
    request.read()
    return _order(request)


urlpatterns = [
    path("order/", order), path("stock/", stock), path("plain/", _order), path("shelf/", Shelf.as_view()),
    path("stream/", stream),
]  # fmt: skip


@pytest.fixture(autouse=True)
def site(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    retry_budget.renew()
    orders.clear()
    failures["left"] = 1


KEY = {"Idempotency-Key": "order-1"}


def test_a_post_with_the_key_that_its_view_declares_is_repeated_and_its_response_served(
    service: ScriptedService, db: None
) -> None:
    service.on_error(retry())
    slip = SimpleUploadedFile("slip.txt", b"two of them")
    response = Client().post("/order/", {"item": "tea", "slip": slip}, headers=KEY)
    assert service.errors[0].body["request"]["replayable"] is True
    assert (response.status_code, response.json()) == (201, {"orders": 2})
    assert orders == [("POST", "tea", "two of them", "order-1")] * 2


@pytest.mark.parametrize(
    ("method", "address", "headers"),
    [
        ("post", "/order/", {}),
        ("post", "/order/", {"Idempotency-Key": " "}),
        ("post", "/stock/", KEY),
        ("patch", "/stock/", KEY),
        ("post", "/plain/", KEY),
        ("put", "/plain/", {}),
        ("delete", "/plain/", {}),
        ("put", "/order/", {}),
        ("post", "/stream/", KEY),
    ],
)
def test_nothing_else_is_ever_done_twice(
    service: ScriptedService, db: None, method: str, address: str, headers: dict[str, str]
) -> None:
    service.on_error(retry(), retry(), replay())
    response = getattr(Client(), method)(address, headers=headers)
    assert response.status_code == 503
    assert service.errors[0].body["request"]["replayable"] is False
    assert len(orders) == 1


@pytest.mark.parametrize(("method", "address"), [("put", "/stock/"), ("delete", "/stock/"), ("put", "/shelf/")])
def test_an_idempotent_view_is_repeated(service: ScriptedService, db: None, method: str, address: str) -> None:
    service.on_error(retry())
    assert getattr(Client(), method)(address).json() == {"orders": 2}


def test_a_process_does_not_multiply_its_load(service: ScriptedService, db: None) -> None:
    failures["left"] = 10_000
    statuses: list[str] = []
    for _ in range(8):
        service.on_error(retry(max_retries=3))
        Client().put("/stock/")
        statuses.append(service.results[-1].result["status"])
    assert len(orders) == 8 + FLOOR
    assert statuses == ["done"] * 4 + ["refused"] * 4
    assert service.results[-1].result["reason"] == "the retry budget of this process is used up"


def test_a_tenth_of_the_traffic_may_be_repeated() -> None:
    made, now = RetryBudget(), time.monotonic()
    made.requests = 1000
    assert sum(made.take(now + 1) for _ in range(500)) == 100
    assert not made.take(now + 59)
    # A minute later nobody has come any more.
    assert sum(made.take(now + 122) for _ in range(500)) <= 100
    assert sum(made.take(now + 300) for _ in range(500)) <= 100


def test_traffic_of_long_ago_counts_at_its_average_rate() -> None:
    made, now = RetryBudget(), time.monotonic()
    made.requests = 6000
    assert sum(made.take(now + 600) for _ in range(500)) == pytest.approx(60, abs=1)


# Retry-After


class Bank(BaseHTTPRequestHandler):
    answers: list[tuple[int, dict[str, str]]] = []
    came: list[float] = []

    def do_GET(self) -> None:
        Bank.came.append(time.monotonic())
        status, headers = Bank.answers.pop(0) if Bank.answers else (200, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def bank() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Bank) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Bank.answers, Bank.came = [], []
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def refused(bank: str, value: str) -> requests.HTTPError:
    Bank.answers = [(503, {"Retry-After": value})]
    with pytest.raises(requests.HTTPError) as caught:
        requests.get(bank, timeout=5).raise_for_status()
    return caught.value


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), (" 7 ", 7), ("99999", 3600), ("-1", None), ("soon", None), ("²", None), ("", None), ("1.5", None)],
)
def test_the_header_is_read_as_seconds(bank: str, value: str, seconds: float | None) -> None:
    if value == "²":
        assert measurements._retry_after(FakeError({"retry-after": value})) is None  # type: ignore[arg-type]
        return
    assert measurements.of(refused(bank, value)).get("retry_after_s") == seconds


class FakeError(Exception):
    def __init__(self, headers: dict[str, str]) -> None:
        self.response = type("Response", (), {"headers": headers})()


def test_the_header_is_read_as_a_date_on_the_peers_own_clock(bank: str) -> None:
    now = datetime.now(UTC)
    fake = FakeError(
        {
            "retry-after": format_datetime(now + timedelta(days=3, seconds=20), usegmt=True),
            "date": format_datetime(now + timedelta(days=3), usegmt=True),
        }
    )
    assert measurements._retry_after(fake) == 20
    past = format_datetime(now - timedelta(hours=1), usegmt=True)
    assert measurements.of(refused(bank, past))["retry_after_s"] == 0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 <= measurements.of(refused(bank, soon))["retry_after_s"] <= 31


def test_a_repetition_that_is_told_to_wait_waits() -> None:
    def failing() -> dict[str, Any]:
        came.append(time.monotonic())
        return {"outcome": "failed", "retry_after_s": 0.3} if len(came) == 1 else {"outcome": "passed"}

    came: list[float] = []
    policy = {"max_retries": 2, "retry_delay_ms": 0, "retry_after_ms": 200}
    began = time.monotonic()
    evidence = exchange.retry_now(policy, began + 5, failing)
    assert (evidence["outcome"], evidence["attempts"]) == ("passed", 2)
    assert came[0] - began >= 0.2
    assert came[1] - came[0] >= 0.3
    assert "retry_after_s" not in evidence


def test_a_wait_that_is_longer_than_the_time_left_is_not_begun() -> None:
    began = time.monotonic()
    evidence = exchange.retry_now({"retry_after_ms": 60_000}, began + 1, lambda: {"outcome": "passed"})
    assert evidence["attempts"] == 0
