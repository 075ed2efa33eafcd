"""timeout_increase of registered HTTP clients, against a real server that is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import requests
import urllib3
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from error_logging import actuators, desired_state, http_clients
from error_logging.testing import ScriptedService, apply, directive, recovered

SLOW_S, PATIENCE_S = 0.6, 0.2


class Carrier(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/quote")
            self.end_headers()
            return
        time.sleep(SLOW_S)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"42")

    def log_message(self, *_: Any) -> None: ...


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def carrier() -> Iterator[str]:
    with Quiet(("127.0.0.1", 0), Carrier) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def by_requests(url: str, host: str) -> Any:
    session = requests.Session()
    http_clients.register("carrier", session, hosts=[host])
    return lambda: session.get(url, timeout=PATIENCE_S).text


def by_requests_pair(url: str, host: str) -> Any:
    session = requests.Session()
    http_clients.register("carrier", session, hosts=[host])
    return lambda: session.get(url, timeout=(1, PATIENCE_S)).text


def by_httpx(url: str, host: str) -> Any:
    client = httpx.Client(timeout=PATIENCE_S, trust_env=False, follow_redirects=True)
    http_clients.register("carrier", client, hosts=[host])
    return lambda: client.get(url).text


def by_httpx_async(url: str, host: str) -> Any:
    async def get() -> str:
        async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False, follow_redirects=True) as client:
            http_clients.register("carrier", client, hosts=[host])
            return (await client.get(url)).text

    return async_to_sync(get)


def by_urllib3(url: str, host: str) -> Any:
    manager = urllib3.PoolManager(timeout=PATIENCE_S, retries=urllib3.Retry(read=0, redirect=3))
    http_clients.register("carrier", manager, hosts=[host])
    return lambda: manager.request("GET", url).data.decode()


def by_urllib3_total(url: str, host: str) -> Any:
    manager = urllib3.PoolManager(retries=urllib3.Retry(read=0, redirect=3))
    http_clients.register("carrier", manager, hosts=[host])
    return lambda: manager.request("GET", url, timeout=urllib3.Timeout(total=PATIENCE_S)).data.decode()


CLIENTS = [by_requests, by_requests_pair, by_httpx, by_httpx_async, by_urllib3, by_urllib3_total]
world: dict[str, Any] = {}


def quote(request: HttpRequest) -> HttpResponse:
    return HttpResponse(world["get"]())


urlpatterns = [path("quote/", quote)]


@pytest.fixture(autouse=True)
def forgotten(settings: Any) -> Iterator[None]:
    settings.ROOT_URLCONF = __name__
    yield
    desired_state.reset()
    http_clients.registered.clear()
    http_clients.raised.clear()


def raising(timeout_ms: int = 5000) -> dict[str, Any]:
    return directive("timeout_increase", "http:carrier", timeout_ms=timeout_ms)


@pytest.mark.parametrize("made", CLIENTS)
def test_of_two_clients_of_a_peer_the_one_that_failed_is_named(
    carrier: str, service: ScriptedService, db: None, made: Any
) -> None:
    host = carrier.removeprefix("http://")
    http_clients.register("batch", requests.Session(), hosts=[host])
    world["get"] = made(f"{carrier}/quote", host)
    service.on_error(recovered())
    Client().get("/quote/")
    told = service.errors[0].body["measurements"]
    assert (sorted(told["http_clients"]), told["upstream"]["client"]) == (["batch", "carrier"], "carrier")


@pytest.mark.parametrize("made", CLIENTS)
def test_a_view_that_waits_for_a_slow_peer_works_again(
    carrier: str, service: ScriptedService, db: None, made: Any
) -> None:
    host = carrier.removeprefix("http://")
    world["get"] = made(f"{carrier}/quote", host)
    service.on_error(apply(raising()))
    answer = Client().get("/quote/").json()
    assert answer["recovery"]["success"], service.results
    told = service.errors[0].body["measurements"]
    name, _, port = host.partition(":")
    assert told["upstream"] == {"host": name, "port": int(port), "client": "carrier"}
    assert told["http_clients"] == {"carrier": {"hosts": [host], "timeout_ms": 200}}
    (done,) = service.results[0].result["acknowledgements"]
    assert (done["before"], done["after"]) == ({"timeout_ms": 200}, {"timeout_ms": 5000})
    assert Client().get("/quote/").content == b"42"
    # Taken back, it fails as before.
    (reverted,) = desired_state.apply_desired(9, [])
    assert (reverted["before"], reverted["after"]) == ({"timeout_ms": 5000}, {"timeout_ms": 200})
    service.on_error(recovered())
    assert Client().get("/quote/").status_code != 200


@pytest.mark.parametrize("made", CLIENTS)
def test_a_redirect_is_given_the_same_time(carrier: str, made: Any) -> None:
    get = made(f"{carrier}/moved", "127.0.0.1")
    with pytest.raises((requests.ReadTimeout, httpx.ReadTimeout, urllib3.exceptions.HTTPError)):
        get()
    assert actuators.acknowledgement(raising())["status"] == "applied"
    assert get() == "42"
    assert http_clients.registered["carrier"].timeout_ms == 200


def test_requests_to_other_hosts_keep_their_time(carrier: str) -> None:
    get = by_requests(f"{carrier}/quote", "elsewhere.example")
    http_clients.registered["carrier"].asked_ms = 200
    assert actuators.acknowledgement(raising())["status"] == "applied"
    with pytest.raises(requests.ReadTimeout):
        get()


def test_what_can_not_be_raised_is_said_so(carrier: str) -> None:
    assert actuators.acknowledgement(raising())["reason"] == "no HTTP client 'carrier' is registered in this process"
    by_requests(carrier, "127.0.0.1")
    told = actuators.acknowledgement(raising())
    assert (told["status"], told["reason"]) == (
        "unsupported",
        "no request of the HTTP client 'carrier' has a read timeout",
    )
    assert actuators.targets("timeout_increase") == ["default", "http:carrier"]
    assert actuators.acknowledgement(raising(90_000))["status"] == "refused"


def test_a_client_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"requests\.Session, httpx\.Client"):
        http_clients.register("carrier", object(), hosts=["carrier.example"])
    with pytest.raises(ValueError, match="hosts must be a list"):
        http_clients.register("carrier", requests.Session(), hosts="carrier.example")
