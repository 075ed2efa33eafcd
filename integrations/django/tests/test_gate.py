"""What directives do with requests: open circuits, throttles, fallbacks. Real HTTP where there is a peer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import requests
from django.contrib.auth.models import User
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path, re_path

from error_logging import (
    alternatives,
    breakers,
    circuits,
    client_address,
    desired_state,
    gate,
    last_good,
    measurements,
    process,
    route_outcomes,
    route_watch,
    throttles,
)
from error_logging.actuators import targets
from error_logging.breakers import CircuitOpen, guard
from error_logging.fallbacks import fallback_for, keep_last_good
from error_logging.models import ErrorLog
from error_logging.testing import Received, Reply, ScriptedService, apply, directive, replay
from upright.adapters.engines import EmbeddedRedis

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]


class World:
    """What the views depend on."""

    broken = False
    calls = 0
    peer = ("127.0.0.1", 1)


def answer(request: HttpRequest) -> HttpResponse:
    World.calls += 1
    if World.broken:
        raise ConnectionError("the peer is down")
    return HttpResponse("fine")


async def aanswer(request: HttpRequest) -> HttpResponse:
    return answer(request)


@keep_last_good
def price(request: HttpRequest) -> HttpResponse:
    World.calls += 1
    if World.broken:
        raise ConnectionError("the peer is down")
    return HttpResponse(f"price of {request.GET.get('item', 'all')}")


@keep_last_good
def personal(request: HttpRequest, how: str) -> HttpResponse:
    if World.broken:
        raise ConnectionError("the peer is down")
    response = HttpResponse("for you only")
    if how == "cookie":
        response.set_cookie("seen", "1")
    elif how == "private":
        response.headers["Cache-Control"] = "private, max-age=60"
    elif how == "vary":
        response.headers["Vary"] = "Accept, Cookie"
    elif how == "session":
        request.session.get("cart")
    elif how == "csrf":
        get_token(request)
    return response


def outbound(request: HttpRequest) -> HttpResponse:
    host, port = World.peer
    with guard(host, port):
        return HttpResponse(requests.get(f"http://{host}:{port}/", timeout=5).content)


def simpler(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"prices": "as of yesterday"})


fallback_for("simple/")(simpler)

urlpatterns = [
    path("", answer),
    path("answer/<int:number>/", lambda request, number: answer(request)),
    path("async/", aanswer),
    path("other/", lambda request: HttpResponse("other")),
    path("price/", price),
    path("personal/<str:how>/", personal),
    path("outbound/", outbound),
    path("simple/", answer),
    re_path(r"^moved/$", answer),
]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    World.broken, World.calls = False, 0
    last_good.forget()
    route_outcomes.forget()
    alternatives.reset()
    yield
    desired_state.reset()


def put(strategy: str, target: str, **values: Any) -> dict[str, Any]:
    one = {**directive(strategy, target=target, **values), "ttl_s": 60}
    return desired_state.apply_one(one)


def open_circuit(target: str, *, timeout_seconds: float = 60.0, **values: Any) -> None:
    given = {"failure_threshold": 5, "half_open_requests": 1, "prober": process.instance(), **values}
    assert put("circuit_break", target, timeout_seconds=timeout_seconds, **given)["status"] == "applied"


def eventually(look: Callable[[], Any], timeout_s: float = 10) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
    return found


def state_of(target: str) -> dict[str, Any]:
    return dict(circuits.measured()[target])


def may_be_tried(target: str) -> bool:
    circuit = circuits.get(target)
    return circuit is not None and circuit.opens_in_s() == 0


# Circuits of routes


def test_an_open_circuit_answers_in_the_views_place(client: Client) -> None:
    open_circuit("route:answer/<int:number>/")
    response = client.get("/answer/7/")
    assert response.status_code == 503
    assert 55 <= int(response.headers["Retry-After"]) <= 60
    assert response.json()["error"]["type"] == "CircuitOpen"
    assert response.json()["recovery"]["success"] is False
    assert World.calls == 0
    assert client.get("/other/").content == b"other"
    assert ErrorLog.objects.count() == 0


def test_a_withdrawn_directive_closes_it(client: Client) -> None:
    open_circuit("route:")
    assert client.get("/").status_code == 503
    desired_state.apply_desired(99, [])
    assert client.get("/").content == b"fine"


def test_a_probe_that_works_closes_it_and_one_that_fails_opens_it_again(client: Client) -> None:
    open_circuit("route:", timeout_seconds=0.1)
    eventually(lambda: may_be_tried("route:"))
    World.broken = True
    assert client.get("/").json()["error"]["type"] == "ConnectionError"
    assert state_of("route:")["probe"] == "failed"
    assert client.get("/").json()["error"]["type"] == "CircuitOpen"
    World.broken = False
    eventually(lambda: may_be_tried("route:"))
    assert client.get("/").content == b"fine"
    assert (state_of("route:")["state"], state_of("route:")["probe"]) == ("closed", "passed")
    assert measurements.of_process()["circuits"]["route:"]["probe"] == "passed"


def test_closed_it_opens_after_so_many_failures_in_a_row(client: Client) -> None:
    open_circuit("route:", timeout_seconds=0.1, failure_threshold=3)
    eventually(lambda: may_be_tried("route:"))
    assert client.get("/").status_code == 200
    World.broken = True
    for _ in range(2):
        client.get("/")
    World.broken = False
    assert client.get("/").status_code == 200
    World.broken = True
    kinds = [client.get("/").json()["error"]["type"] for _ in range(4)]
    assert kinds == ["ConnectionError"] * 3 + ["CircuitOpen"]


def test_only_so_many_requests_try_a_half_open_circuit() -> None:
    circuit = circuits.Circuit(
        "route:x", failure_threshold=5, timeout_s=0.05, half_open_requests=2, prober=process.instance()
    )
    eventually(lambda: circuit.opens_in_s() == 0)
    first, second = circuit.admit(), circuit.admit()
    with pytest.raises(CircuitOpen):
        circuit.admit()
    first.release()
    third = circuit.admit()
    second.passed()
    assert circuit.state == "half_open"
    third.passed()
    assert circuit.state == "closed"


def test_processes_other_than_the_prober_follow_later() -> None:
    values: dict[str, Any] = {"failure_threshold": 5, "timeout_s": 10.0, "half_open_requests": 1}
    own = circuits.Circuit("route:x", prober=process.instance(), **values)
    other = circuits.Circuit("route:x", prober="host:1:boot", **values)
    assert own.opens_in_s() <= 10 < 14 < other.opens_in_s()


def test_what_began_before_it_opened_says_nothing_of_it() -> None:
    circuit = circuits.Circuit(
        "route:x", failure_threshold=1, timeout_s=0.05, half_open_requests=1, prober=process.instance()
    )
    eventually(lambda: circuit.opens_in_s() == 0)
    slow = circuit.admit()
    slow.failed()
    assert circuit.state == "open"
    eventually(lambda: circuit.opens_in_s() == 0)
    probe = circuit.admit()
    slow.passed()
    assert circuit.state == "half_open"
    probe.passed()
    assert circuit.state == "closed"


async def test_under_asgi_too(async_client: AsyncClient) -> None:
    open_circuit("route:async/", timeout_seconds=0.1)
    assert (await async_client.get("/async/")).status_code == 503
    eventually(lambda: may_be_tried("route:async/"))
    assert (await async_client.get("/async/")).content == b"fine"
    assert state_of("route:async/")["state"] == "closed"


def test_a_replay_of_the_waiting_caller_is_the_probe(client: Client) -> None:
    """The replay goes the way of the next request: refused while the circuit is open, let through once it is not."""
    World.broken = True

    def mended(_: Received) -> Reply:
        World.broken = False
        eventually(lambda: may_be_tried("route:"))
        return replay()

    with ScriptedService() as service, service.connected():
        opening = directive(
            "circuit_break", target="route:", failure_threshold=1, timeout_seconds=0.2, half_open_requests=1,
            prober=process.instance(),
        )  # fmt: skip
        service.on_error(apply(opening))
        service.on_result(mended)
        report = client.get("/").json()["recovery"]
        told = [one.evidence for one in service.results]
        assert state_of("route:")["state"] == "closed"
    assert [one and one["outcome"] for one in told] == ["inconclusive", "passed"]
    assert report["success"] is True


# Circuits of peers


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as server:
        World.peer = ("127.0.0.1", server.port)
        yield server


class Peer:
    """An HTTP server."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, dict[str, str]]] = []
        self.status = 200
        self.body = b"from the peer"
        self.headers: dict[str, str] = {}
        self.silent = False
        self._released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.received.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
                if outer.silent:
                    outer._released.wait(30)
                    self.close_connection = True
                    return
                self.send_response(outer.status)
                for name, text in {"Content-Length": str(len(outer.body)), **outer.headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(outer.body)

            do_HEAD = do_GET  # noqa: N815 (as http.server names it)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self) -> Peer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()


def upstream() -> str:
    return "upstream:{}:{}".format(*World.peer)


def test_an_open_circuit_keeps_calls_from_a_peer_and_is_no_new_incident(client: Client, peer: Peer) -> None:
    assert client.get("/outbound/").content == b"from the peer"
    assert upstream() in targets("circuit_break")
    open_circuit(upstream(), timeout_seconds=30)
    response = client.get("/outbound/")
    assert (response.status_code, response.json()["error"]["type"]) == (503, "CircuitOpen")
    assert len(peer.received) == 1
    assert ErrorLog.objects.count() == 0
    assert client.get("/").status_code == 200


def test_it_closes_once_the_peer_answers(client: Client, peer: Peer) -> None:
    open_circuit(upstream(), timeout_seconds=0.1)
    eventually(lambda: may_be_tried(upstream()))
    assert client.get("/outbound/").content == b"from the peer"
    assert state_of(upstream())["state"] == "closed"


def test_a_failure_in_a_guard_names_its_peer(client: Client) -> None:
    World.peer = ("127.0.0.1", 1)
    with ScriptedService() as service, service.connected():
        client.get("/outbound/")
        [error] = service.errors
    assert error.body["measurements"]["upstream"] == {"host": "127.0.0.1", "port": 1, "guarded": True}


def test_an_open_circuit_of_a_peer_says_nothing_of_its_route(client: Client, peer: Peer) -> None:
    open_circuit(upstream())
    open_circuit("route:outbound/", timeout_seconds=0.1)
    eventually(lambda: may_be_tried("route:outbound/"))
    assert client.get("/outbound/").status_code == 503
    assert (state_of("route:outbound/")["state"], state_of("route:outbound/")["probe"]) == ("half_open", None)


def test_guards_of_functions_and_of_http_clients(peer: Peer) -> None:
    host, port = World.peer

    @guard(host, port)
    def plain() -> str:
        return "made"

    assert plain() == "made"
    open_circuit(upstream())
    with requests.Session() as session:
        session.mount("http://", breakers.guarded_requests_adapter())
        with pytest.raises(CircuitOpen):
            session.get(f"http://{host}:{port}/")
    with httpx.Client(transport=breakers.guarded_httpx_transport()) as http, pytest.raises(CircuitOpen):
        http.get(f"http://{host}:{port}/")
    with pytest.raises(ConnectionError, match="is open"):
        plain()
    assert peer.received == []
    desired_state.reset()
    with requests.Session() as session:
        session.mount("http://", breakers.guarded_requests_adapter())
        assert session.get(f"http://{host}:{port}/").content == b"from the peer"


async def test_guards_of_coroutines(peer: Peer) -> None:
    host, port = World.peer

    @guard(host, port)
    async def made() -> str:
        return "made"

    assert await made() == "made"
    open_circuit(upstream())
    with pytest.raises(CircuitOpen):
        await made()
    with pytest.raises(CircuitOpen):
        async with guard(host, port):
            pass


def test_an_answer_below_500_says_that_the_peer_works(peer: Peer) -> None:
    host, port = World.peer
    peer.status = 404
    open_circuit(upstream(), timeout_seconds=0.1)
    eventually(lambda: may_be_tried(upstream()))
    with pytest.raises(requests.HTTPError), guard(host, port):
        requests.get(f"http://{host}:{port}/", timeout=5).raise_for_status()
    assert state_of(upstream())["state"] == "closed"


def test_the_code_that_deals_with_an_open_circuit_has_errors_of_its_own() -> None:
    def wrapped() -> None:
        raise RuntimeError("no payment") from CircuitOpen("upstream:a:1")

    def careless() -> None:
        try:
            raise CircuitOpen("upstream:a:1")
        except CircuitOpen:
            raise KeyError("a bug")  # noqa: B904

    with pytest.raises(RuntimeError) as first:
        wrapped()
    with pytest.raises(KeyError) as second:
        careless()
    assert circuits.open_in(first.value) is not None
    assert circuits.open_in(second.value) is None


# Throttles


def throttle(target: str = "service", *, requests_per_minute: int = 600, burst_size: int = 3, **values: Any) -> None:
    told = put("request_throttle", target, requests_per_minute=requests_per_minute, burst_size=burst_size, **values)
    assert told["status"] == "applied", told


def statuses(client: Client, count: int, where: str = "/", **extra: Any) -> list[int]:
    return [client.get(where, **extra).status_code for _ in range(count)]


def test_what_is_too_much_is_refused_with_the_time_to_come_back(client: Client) -> None:
    throttle(requests_per_minute=10, burst_size=100)
    assert statuses(client, 10) == [200] * 10
    response = client.get("/")
    assert response.status_code == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert response.headers["RateLimit-Limit"] == "10"
    assert response.headers["RateLimit-Remaining"] == "0"
    assert response.headers["RateLimit-Reset"] == response.headers["Retry-After"]
    assert World.calls == 10
    assert ErrorLog.objects.count() == 0


def test_a_burst_is_what_a_second_lets_through(client: Client) -> None:
    throttle(burst_size=3)
    assert statuses(client, 5) == [200, 200, 200, 429, 429]
    eventually(lambda: client.get("/").status_code == 200)


def test_each_client_has_its_own(client: Client) -> None:
    throttle("client", burst_size=2)
    assert statuses(client, 3, REMOTE_ADDR="192.0.2.1") == [200, 200, 429]
    assert statuses(client, 3, REMOTE_ADDR="192.0.2.2") == [200, 200, 429]


def test_a_route_is_throttled_alone(client: Client) -> None:
    throttle("route:", burst_size=1)
    assert statuses(client, 2) == [200, 429]
    assert statuses(client, 3, "/other/") == [200, 200, 200]


def test_the_rate_is_shared_among_processes(client: Client) -> None:
    throttle(burst_size=4, processes=2)
    assert statuses(client, 3) == [200, 200, 429]


def test_health_checks_and_staff_are_exempt(client: Client) -> None:
    throttle(burst_size=1)
    assert statuses(client, 2) == [200, 429]
    with override_settings(UPRIGHT_HEALTH_PATHS=["/other/"]):
        assert statuses(client, 3, "/other/") == [200, 200, 200]
    staff = Client()
    staff.force_login(User.objects.create_user("staff", is_staff=True))
    assert statuses(staff, 3) == [200, 200, 200]
    visitor = Client()
    visitor.force_login(User.objects.create_user("visitor"))
    assert 429 in statuses(visitor, 3)


async def test_throttles_under_asgi(async_client: AsyncClient) -> None:
    throttle(burst_size=1)
    assert [(await async_client.get("/async/")).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "told"),
    [
        (0, "192.0.2.1", "198.51.100.9", "192.0.2.1"),
        (1, "10.0.0.1", "198.51.100.9", "198.51.100.9"),
        (1, "10.0.0.1", "203.0.113.66, 198.51.100.9", "198.51.100.9"),
        (2, "10.0.0.1", "203.0.113.66, 198.51.100.9, 10.0.0.2", "198.51.100.9"),
        (2, "10.0.0.1", "198.51.100.9", "10.0.0.1"),
        (1, "10.0.0.1", "nonsense", "10.0.0.1"),
        (1, "10.0.0.1", "198.51.100.9:4711", "198.51.100.9"),
        (0, "2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        (1, "10.0.0.1", "[2001:db8:1:2:3::1]:80", "2001:db8:1:2::/64"),
        (0, "::ffff:192.0.2.7", "", "192.0.2.7"),
        (0, "", "198.51.100.9", "unknown"),
    ],
)
def test_a_clients_address_is_what_trusted_proxies_say(proxies: int, peer: str, forwarded: str, told: str) -> None:
    request = RequestFactory().get("/", REMOTE_ADDR=peer, HTTP_X_FORWARDED_FOR=forwarded)
    with override_settings(UPRIGHT_TRUSTED_PROXIES=proxies):
        assert client_address.of(request) == told


def test_a_flood_of_addresses_does_not_fill_the_memory(client: Client) -> None:
    throttle("client", burst_size=1)
    for number in range(throttles.MOST_CLIENTS + 500):
        throttles.count(RequestFactory().get("/", REMOTE_ADDR=f"10.1.{number // 250}.{number % 250}"), None)
    known = {throttles._bucket(f"10.9.{n // 250}.{n % 250}") for n in range(5000)}
    assert len(known) <= throttles.SHARED_BUCKETS


def test_redis_counts_for_all_processes_and_its_absence_is_survived(
    client: Client, redis_server: EmbeddedRedis
) -> None:
    with override_settings(UPRIGHT_RATE_LIMIT_STORAGE=redis_server.url()):
        throttle(requests_per_minute=10, burst_size=100, processes=5)
        assert statuses(client, 11) == [200] * 10 + [429]
        throttles._counting = throttles._Counting()
        assert statuses(client, 1) == [429], "another process does not know what this one counted"
    throttles._counting = throttles._Counting()
    with override_settings(UPRIGHT_RATE_LIMIT_STORAGE="redis://127.0.0.1:1/0"):
        throttle(requests_per_minute=10, burst_size=100, processes=5)
        assert statuses(client, 3) == [200, 200, 429]


# Fallbacks


def degrade(route: str) -> None:
    told = put("fallback", f"route:{route}", mode="degraded", service="")
    assert told["status"] == "applied", told


def test_the_last_good_response_of_each_address_is_served(client: Client) -> None:
    assert client.get("/price/?item=tea").content == b"price of tea"
    World.broken = True
    degrade("price/")
    response = client.get("/price/?item=tea")
    assert (response.status_code, response.content) == (200, b"price of tea")
    assert response.headers["X-Upright-Fallback"] == "degraded; last-good"
    assert response.headers["Age"] == "0"
    assert response.headers["Warning"].startswith("110")
    assert response.headers["Cache-Control"] == "no-store"
    head = client.head("/price/?item=tea")
    assert (head.status_code, head.content) == (200, b"")
    assert client.get("/price/?item=coffee").json()["error"]["type"] == "ConnectionError"
    assert client.post("/price/?item=tea").json()["error"]["type"] == "ConnectionError"


@pytest.mark.parametrize("how", ["cookie", "private", "vary", "session", "csrf"])
def test_what_is_one_users_is_never_kept(client: Client, how: str) -> None:
    assert client.get(f"/personal/{how}/").status_code == 200
    World.broken = True
    degrade("personal/<str:how>/")
    assert "X-Upright-Fallback" not in client.get(f"/personal/{how}/").headers


def test_nothing_is_kept_of_those_who_are_logged_in(client: Client) -> None:
    client.force_login(User.objects.create_user("someone"))
    assert client.get("/price/").status_code == 200
    assert Client().get("/price/", headers={"authorization": "Bearer x"}).status_code == 200
    World.broken = True
    degrade("price/")
    assert "X-Upright-Fallback" not in Client().get("/price/").headers


def test_what_anybody_may_see_is_served_to_those_who_are_logged_in(client: Client) -> None:
    client.get("/price/")
    World.broken = True
    degrade("price/")
    client.force_login(User.objects.create_user("someone"))
    assert client.get("/price/").content == b"price of all"


def test_routes_opt_in_by_setting_too_and_a_named_cache_is_shared(
    client: Client, settings: Any, redis_server: EmbeddedRedis
) -> None:
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": redis_server.url()}
    }
    settings.UPRIGHT_LAST_GOOD, settings.UPRIGHT_LAST_GOOD_CACHE = [""], "default"
    assert client.get("/").content == b"fine"
    World.broken = True
    degrade("")
    last_good.forget()
    assert client.get("/").headers["X-Upright-Fallback"] == "degraded; last-good"


def test_a_fallback_view_answers_where_nothing_was_kept(client: Client) -> None:
    World.broken = True
    degrade("simple/")
    response = client.get("/simple/")
    assert response.json() == {"prices": "as of yesterday"}
    assert response.headers["X-Upright-Fallback"] == "degraded; view"
    assert World.calls == 0


def test_a_fallback_that_answers_is_no_success_of_the_route(client: Client) -> None:
    watch = {"watch": "quiet", "method": "GET", "route": "simple/", "keep_s": 60}
    route_watch.count(watch, ["builtins.ValueError"])
    try:
        client.get("/simple/")
        assert route_watch.count(watch, [])["succeeded"] == 1
        degrade("simple/")
        assert client.get("/simple/").headers["X-Upright-Fallback"] == "degraded; view"
        assert route_watch.count(watch, [])["succeeded"] == 1
    finally:
        route_watch.forget()


@override_settings(UPRIGHT_FALLBACK_VIEWS={r"^moved/$": f"{__name__}.simpler"})
def test_a_fallback_view_is_named_by_setting(client: Client) -> None:
    degrade(r"^moved/$")
    assert client.get("/moved/").json() == {"prices": "as of yesterday"}


def test_a_process_that_has_served_nothing_takes_a_fallback_for_a_view_it_has_not_loaded() -> None:
    """Its agent must not import the project's views while the first request does."""
    from django.urls import clear_url_caches, get_resolver

    clear_url_caches()
    assert "route:price/" not in targets("fallback")
    assert put("fallback", "route:price/", mode="degraded", service="")["status"] == "applied"
    assert "url_patterns" not in get_resolver().__dict__


def test_a_route_without_anything_to_answer_is_not_degraded(client: Client) -> None:
    client.get("/other/")
    assert put("fallback", "route:other/", mode="degraded", service="")["status"] == "unsupported"
    assert "route:other/" not in targets("fallback")
    assert {"route:price/", "route:simple/"} <= set(targets("fallback"))


def test_a_replay_goes_through_the_fallback_and_says_so(client: Client) -> None:
    World.broken = True
    with ScriptedService() as service, service.connected():
        service.on_error(apply(directive("fallback", target="route:simple/", mode="degraded", service="")))
        recovery = client.get("/simple/").json()["recovery"]
        assert recovery["success"] is True
        assert service.results[0].evidence is not None
        assert service.results[0].evidence["detail"] == "answered 200 by the fallback: degraded; view"
        assert client.get("/simple/").headers["X-Upright-Fallback"] == "degraded; view"


async def test_fallbacks_under_asgi(async_client: AsyncClient) -> None:
    with override_settings(UPRIGHT_LAST_GOOD=["async/"]):
        assert (await async_client.get("/async/")).content == b"fine"
        World.broken = True
        degrade("async/")
        assert (await async_client.get("/async/")).headers["X-Upright-Fallback"] == "degraded; last-good"


@pytest.fixture
def alternative(peer: Peer, settings: Any) -> Peer:
    settings.UPRIGHT_FALLBACK_SERVICES = {"laravel": f"http://127.0.0.1:{peer.port}/old"}
    told = put("fallback", "route:answer/<int:number>/", mode="full", service="laravel")
    assert told["status"] == "applied", told
    return peer


def test_another_service_answers_the_route(client: Client, alternative: Peer) -> None:
    alternative.headers = {"X-Served-By": "laravel", "Set-Cookie": "a=1", "Connection": "X-Internal", "X-Internal": "1"}
    client.cookies["sessionid"] = "secret"
    response = client.get(
        "/answer/7/?a=%2F", headers={"authorization": "Bearer x", "accept-language": "fr", "x-other": "1"}
    )
    assert (response.status_code, response.content) == (200, b"from the peer")
    assert response.headers["X-Upright-Fallback"] == "full; service=laravel"
    assert response.headers["X-Served-By"] == "laravel"
    assert not {"Set-Cookie", "Connection", "X-Internal"} & set(response.headers)
    assert "a" not in response.cookies
    [(method, where, sent)] = alternative.received
    assert (method, where) == ("GET", "/old/answer/7/?a=%2F")
    assert sent["accept-language"] == "fr"
    assert sent["x-upright-hop"] == "1"
    assert not {"authorization", "cookie", "x-other"} & set(sent)
    assert World.calls == 0
    client.post("/answer/7/")
    assert World.calls == 1


def test_headers_that_are_named_go_along(client: Client, alternative: Peer) -> None:
    with override_settings(UPRIGHT_FALLBACK_FORWARD=["Authorization"]):
        client.get("/answer/7/", headers={"authorization": "Bearer x"})
    assert alternative.received[0][2]["authorization"] == "Bearer x"


def test_redirects_are_the_clients_to_follow(client: Client, alternative: Peer) -> None:
    alternative.status, alternative.headers = 302, {"Location": f"http://127.0.0.1:{alternative.port}/old/new/"}
    response = client.get("/answer/7/")
    assert (response.status_code, response.headers["Location"]) == (302, "/new/")
    assert len(alternative.received) == 1


def test_two_services_that_fall_back_on_each_other_make_no_loop(client: Client, alternative: Peer) -> None:
    assert client.get("/answer/7/", headers={"x-upright-hop": "1"}).content == b"fine"
    assert alternative.received == []


@pytest.mark.parametrize("wrong", ["status", "silence", "size"])
def test_an_alternative_that_fails_too_leaves_the_view_to_answer(
    client: Client, alternative: Peer, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "status":
        alternative.status = 500
    elif wrong == "silence":
        alternative.silent = True
    else:
        monkeypatch.setattr(alternatives, "MOST_BYTES", 5)
    with override_settings(UPRIGHT_FALLBACK_TIMEOUT_MS=200):
        assert client.get("/answer/7/").content == b"fine"
        assert client.get("/answer/7/").content == b"fine"
    assert len(alternative.received) == 1, "nobody waits for it again so soon"


def test_an_alternative_is_one_of_those_in_the_settings() -> None:
    told = put("fallback", "route:price/", mode="full", service="evil")
    assert (told["status"], told["reason"]) == ("unsupported", "UPRIGHT_FALLBACK_SERVICES has no 'evil'")


def test_an_open_circuit_gives_way_to_a_fallback(client: Client) -> None:
    client.get("/price/")
    World.calls = 0
    degrade("price/")
    open_circuit("route:price/")
    assert client.get("/price/").headers["X-Upright-Fallback"] == "degraded; last-good"
    assert client.post("/price/").status_code == 503
    assert World.calls == 0


# The gate


def test_what_fails_in_ours_never_reaches_the_user(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("ours")

    throttle()
    monkeypatch.setattr(throttles, "count", fails)
    assert client.get("/").content == b"fine"


def test_with_nothing_in_force_no_request_is_looked_at(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise AssertionError("looked at")

    monkeypatch.setattr(gate, "enter", fails)
    assert client.get("/").content == b"fine"


def test_bounds_of_djangos_settings_hold() -> None:
    told = put("request_throttle", "service", requests_per_minute=1, burst_size=1)
    assert told["status"] == "refused"
    told = put(
        "circuit_break", "route:", failure_threshold=5, timeout_seconds=99_999, half_open_requests=1, prober=""
    )  # fmt: skip
    assert told["status"] == "refused"


def test_an_event_tells_how_its_route_does(client: Client) -> None:
    World.broken = True
    with ScriptedService() as service, service.connected(UPRIGHT_MAX_WAITERS=1):
        client.get("/")
        World.broken = False
        for _ in range(3):
            client.get("/")
        World.broken = True
        client.get("/")
        told = [one.body["measurements"]["route"] for one in service.errors]
    assert told == [{"failed": 1, "succeeded": 0}, {"failed": 2, "succeeded": 3}]


def test_sessions_of_a_request_factory_are_not_needed() -> None:
    request = RequestFactory().get("/")
    SessionMiddleware(lambda _: HttpResponse()).process_request(request)
    assert gate.enter(request).response is None


def test_the_answer_of_an_open_circuit_is_json(client: Client) -> None:
    open_circuit("route:")
    response = client.get("/", headers={"accept": "text/html"})
    assert response.status_code == 503
    assert json.loads(response.content)["error"]["type"] == "CircuitOpen"
