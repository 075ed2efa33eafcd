"""Route watches: what is counted while a repair is verified, and that nothing is counted otherwise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.test import AsyncClient, Client
from django.urls import path

from error_logging import route_watch
from error_logging.testing import ScriptedService

pytestmark = pytest.mark.django_db(transaction=True)

VALUE_ERROR = ["builtins.ValueError"]


class TooSlow(ValueError):
    """A kind of its own."""


def report(request: HttpRequest, year: int) -> HttpResponse:
    match request.GET.get("how"):
        case "wrong":
            raise ValueError("it is broken")
        case "slow":
            raise TooSlow("it takes too long")
        case "denied":
            raise PermissionDenied
        case "elsewhere":
            return HttpResponseRedirect("/login/")
        case "away":
            return HttpResponse(status=503)
        case _:
            return HttpResponse("fine")


async def areport(request: HttpRequest) -> HttpResponse:
    if request.GET.get("how") == "wrong":
        raise ValueError("it is broken")
    return HttpResponse("fine")


urlpatterns = [path("report/<int:year>/", report), path("async/", areport), path("other/", report, {"year": 1})]
WATCH = {"watch": "one", "method": "GET", "route": "report/<int:year>/", "keep_s": 60}


@pytest.fixture(autouse=True)
def site(settings: Any) -> Any:
    settings.ROOT_URLCONF = __name__
    yield
    route_watch.forget()


def counted(**changes: Any) -> dict[str, int]:
    return route_watch.count({**WATCH, **changes}, VALUE_ERROR)


def test_requests_of_the_route_are_counted_by_how_they_end(service: ScriptedService) -> None:
    client = Client(raise_request_exception=False)
    assert counted() == {"succeeded": 0, "failed": 0, "failed_otherwise": 0}
    for how in ("", "", "wrong", "slow", "denied", "elsewhere", "away"):
        client.get(f"/report/2026/?how={how}")
    client.post("/report/2026/")
    client.get("/other/")
    client.get("/nowhere/")
    assert counted() == {"succeeded": 2, "failed": 1, "failed_otherwise": 1}
    assert counted(watch="another") == {"succeeded": 0, "failed": 0, "failed_otherwise": 0}


def test_so_are_those_in_an_event_loop(service: ScriptedService) -> None:
    async def ask() -> None:
        client = AsyncClient(raise_request_exception=False)
        for how in ("", "wrong", ""):
            await client.get(f"/async/?how={how}")

    counted(route="async/")
    asyncio.run(ask())
    assert counted(route="async/") == {"succeeded": 2, "failed": 1, "failed_otherwise": 0}


def test_a_request_that_began_before_the_watch_is_not_counted(service: ScriptedService) -> None:
    client = Client(raise_request_exception=False)
    original = urlpatterns[0].callback

    def slow(request: HttpRequest, year: int) -> HttpResponse:
        counted()
        return original(request, year)

    urlpatterns[0].callback = slow
    try:
        client.get("/report/2026/")
        client.get("/report/2026/?how=wrong")
    finally:
        urlpatterns[0].callback = original
    assert counted() == {"succeeded": 0, "failed": 1, "failed_otherwise": 0}


def test_without_a_watch_nothing_is_counted_and_a_watch_ends(service: ScriptedService) -> None:
    client = Client(raise_request_exception=False)
    client.get("/report/2026/")
    assert not route_watch.watching()
    counted(keep_s=0)
    client.get("/report/2026/")
    assert counted() == {"succeeded": 0, "failed": 0, "failed_otherwise": 0}


def test_there_are_only_so_many(service: ScriptedService) -> None:
    for number in range(route_watch.MOST):
        counted(watch=str(number))
    with pytest.raises(ValueError, match="no more routes"):
        counted(watch="one more")
