"""The patient's pages: each can fail in a way of its own, and none knows of recovery."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from typing import Any

import httpx
import requests
import work
from django.conf import settings
from django.core.cache import caches
from django.core.exceptions import ValidationError
from django.db import OperationalError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from errors import APIError, AuthenticationError, OverloadedError, PriceOutdated, ServiceUnavailableError

from error_logging import http_clients
from error_logging.ai_recovery_middleware import ai_error_handler
from error_logging.breakers import guard, guarded_requests_adapter
from error_logging.fallbacks import fallback_for, keep_last_good

PEER, WHO = settings.PEER_URL, settings.WHO
PEER_HOST, PEER_PORT = "127.0.0.1", int(PEER.rpartition(":")[2])

session = requests.Session()
session.trust_env = False
http_clients.register("carrier", session, hosts=[f"{PEER_HOST}:{PEER_PORT}"])
client = httpx.Client(timeout=httpx.Timeout(2, read=0.4), trust_env=False)
http_clients.register("weather", client, hosts=[f"{PEER_HOST}:{PEER_PORT}"])
guarded = requests.Session()
guarded.trust_env = False
guarded.mount("http://", guarded_requests_adapter())
held: list[bytearray] = []
memory = {"sick": False}


def peer(name: str, *, timeout: float = 2.0, by: requests.Session = session) -> str:
    # A connection of its own each time: one that is kept and was closed meanwhile would be another fault.
    answer = by.get(f"{PEER}/{name}", params={"who": WHO}, timeout=timeout, headers={"Connection": "close"})
    answer.raise_for_status()
    return answer.text


def sql(statement: str, *values: object, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchone() if cursor.description else None


def done(**found: object) -> JsonResponse:
    return JsonResponse({"done": True, **found})


def healthz(request: HttpRequest) -> HttpResponse:
    return HttpResponse("sick" if memory["sick"] else "well", status=503 if memory["sick"] else 200)


def state(request: HttpRequest) -> JsonResponse:
    """What a person would look up in this process."""
    import os

    return JsonResponse(
        {"pid": os.getpid(), "statement_timeout": sql("SHOW statement_timeout")[0],
         "pool_max": connection.pool.max_size}
    )  # fmt: skip


# Peers


def flaky(request: HttpRequest, name: str) -> JsonResponse:
    return done(answer=peer(name))


@ai_error_handler(idempotency_key="Idempotency-Key")
def order(request: HttpRequest) -> JsonResponse:
    return done(answer=peer("reset-order"))


@ai_error_handler(idempotent=True)
def stock(request: HttpRequest) -> JsonResponse:
    return done(answer=peer("reset-stock"))


def plain_order(request: HttpRequest) -> JsonResponse:
    return done(answer=peer("reset-plain"))


def account(request: HttpRequest, name: str) -> JsonResponse:
    try:
        return done(answer=peer(name))
    except requests.HTTPError as error:
        raise AuthenticationError("the peer did not accept the token") from error


def storage(request: HttpRequest, name: str) -> JsonResponse:
    try:
        return done(answer=peer(name))
    except requests.HTTPError as error:
        raise ServiceUnavailableError("the storage is not ready") from error


def quota(request: HttpRequest, name: str) -> JsonResponse:
    try:
        return done(answer=peer(name))
    except requests.HTTPError as error:
        raise APIError(str(error)) from error


def carrier(request: HttpRequest, name: str) -> JsonResponse:
    return done(answer=peer(name, timeout=0.4))


def weather(request: HttpRequest) -> JsonResponse:
    answer = client.get(f"{PEER}/slow", params={"who": WHO})
    return done(answer=answer.raise_for_status().text)


def pay(request: HttpRequest) -> JsonResponse:
    with guard(PEER_HOST, PEER_PORT):
        return done(answer=peer("overloaded-bank"))


def ship(request: HttpRequest) -> JsonResponse:
    try:
        return done(answer=peer("overloaded-503", by=guarded))
    except requests.HTTPError as error:
        raise ServiceUnavailableError("the shipper is overloaded") from error


def book(request: HttpRequest) -> JsonResponse:
    """Nothing guards this one: its route is what a circuit is for."""
    return done(answer=peer("overloaded-route"))


def tls(request: HttpRequest, port: int) -> JsonResponse:
    return done(answer=session.get(f"https://127.0.0.1:{port}/ok", timeout=2).text)


def name_lookup(request: HttpRequest) -> JsonResponse:
    import socket

    socket.getaddrinfo("carrier.invalid", 443)
    return done()


def unreachable(request: HttpRequest) -> JsonResponse:
    return done(answer=session.get("http://127.0.0.1:1/", timeout=1).text)


# Pages with another answer


@keep_last_good
def prices(request: HttpRequest) -> HttpResponse:
    return HttpResponse(peer("source-prices"))


def search(request: HttpRequest) -> HttpResponse:
    return HttpResponse(peer("source-search"))


@fallback_for("search/")
def search_titles(request: HttpRequest) -> HttpResponse:
    return HttpResponse("titles only")


def offers(request: HttpRequest) -> HttpResponse:
    sql("SELECT price FROM offer_of_the_day")
    return HttpResponse("the offer")


def profile(request: HttpRequest) -> HttpResponse:
    raise ValidationError("this profile was stored with a birthday in the future")


@fallback_for("profile/")
def profile_summary(request: HttpRequest) -> HttpResponse:
    return HttpResponse("summary")


@keep_last_good
def menu(request: HttpRequest) -> HttpResponse:
    row = sql("SELECT body FROM menu WHERE who = %s", WHO)
    if not row or not row[0].startswith("menu:"):
        raise ValidationError("the menu was published with a mistake")
    return HttpResponse(row[0])


def signup(request: HttpRequest) -> HttpResponse:
    raise ValidationError({"email": "no such address"})


# The database


def report(request: HttpRequest) -> JsonResponse:
    sql("SELECT pg_sleep(0.9)")
    return done()


def long_report(request: HttpRequest) -> JsonResponse:
    sql("SELECT pg_sleep(8)")
    return done()


def invoice(request: HttpRequest) -> JsonResponse:
    """A nightly job holds the row for 0.8 s at a time."""
    peer("lock")
    sql("UPDATE menu SET seen = seen + 1 WHERE who = %s", f"{WHO}-locked")
    return done()


def export(request: HttpRequest) -> HttpResponse:
    """Holds a connection; what happens where there is none is its own business."""
    try:
        with transaction.atomic():
            sql("SET LOCAL statement_timeout = 0")
            sql("SELECT pg_sleep(%s)", float(request.GET.get("s", "3")))
    except OperationalError:
        return HttpResponse("busy", status=409)
    return HttpResponse("exported")


def count(request: HttpRequest) -> JsonResponse:
    return done(rows=sql("SELECT count(*) FROM menu")[0])


def basket(request: HttpRequest) -> JsonResponse:
    sql("SELECT pg_sleep(0.3)")
    return done()


def dashboard(request: HttpRequest) -> JsonResponse:
    """Four panels, a connection for each."""

    def panel() -> None:
        try:
            with transaction.atomic():
                sql("SET LOCAL statement_timeout = 0")
                sql("SELECT pg_sleep(0.9)")
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(4) as panels:
        for one in [panels.submit(panel) for _ in range(4)]:
            one.result()
    return done()


def ledger(request: HttpRequest) -> JsonResponse:
    return done(rows=sql("SELECT 1", alias="ledger")[0])


def division(request: HttpRequest) -> JsonResponse:
    return done(rows=sql("SELECT 1 / 0")[0])


def killed(request: HttpRequest) -> JsonResponse:
    """An administrator ends the statement's backend."""
    with transaction.atomic():
        pid = sql("SELECT pg_backend_pid()")[0]
        session.get(f"{PEER}/kill", params={"who": WHO, "pid": pid}, timeout=3)
        return done(rows=sql("SELECT 1")[0])


def deadlock(request: HttpRequest) -> JsonResponse:
    """Takes two rows in the order in which somebody else does not."""
    with transaction.atomic():
        sql("SET LOCAL statement_timeout = 0")
        sql("SET LOCAL deadlock_timeout = '50ms'")
        sql("UPDATE menu SET seen = seen + 1 WHERE who = 'deadlock-1'")
        session.get(f"{PEER}/deadlock", params={"who": WHO}, timeout=3)
        sql("UPDATE menu SET seen = seen + 1 WHERE who = 'deadlock-2'")
    return done()


# Caches


def cached(request: HttpRequest, alias: str) -> JsonResponse:
    return done(value=caches[alias].get_or_set("page:home", {"title": "home"}))


def recorrupted(request: HttpRequest) -> JsonResponse:
    """Another program writes the same rubbish before each read."""
    peer("corrupt")
    return done(value=caches["default"].get("feed:1"))


def rates(request: HttpRequest) -> JsonResponse:
    found = caches["default"].get_or_set("rate:eur", {"version": 2, "rate": 1.0})
    if found.get("version") != 2:
        raise PriceOutdated("the cached rate has the format of the last release")
    return done(rate=found["rate"])


def corrupt_memory(request: HttpRequest) -> HttpResponse:
    """Breaks what this process has in its own cache; for the stage only."""
    cache: Any = caches["memory"]
    cache.set("page:home", {"title": "home"})
    cache._cache[cache.make_key("page:home")] = b"rubbish"
    return _pid()


# Queues


def price(request: HttpRequest) -> JsonResponse:
    return done(price=work.price.delay().get(timeout=1.0))


def slip(request: HttpRequest) -> JsonResponse:
    return done(slip=work.slip.delay().get(timeout=1.0))


def backlog(request: HttpRequest, tasks: int, milliseconds: int) -> HttpResponse:
    with work.app.connection_for_write() as broker, work.app.amqp.Producer(broker) as producer:
        for _ in range(tasks):
            work.chore.apply_async((milliseconds / 1000,), producer=producer)
    return _pid()


# Load

_seats = threading.Semaphore(3)


def busy(request: HttpRequest) -> HttpResponse:
    if not _seats.acquire(blocking=False):
        raise OverloadedError
    try:
        time.sleep(0.1)
        return HttpResponse("done")
    finally:
        _seats.release()


def licence(request: HttpRequest) -> JsonResponse:
    try:
        return done(answer=peer("licence"))
    except requests.HTTPError as error:
        raise OverloadedError("all licences are in use") from error


def login(request: HttpRequest) -> JsonResponse:
    try:
        return done(answer=peer("directory"))
    except requests.HTTPError as error:
        raise AuthenticationError("the directory refuses logins") from error


# Processes


def render(request: HttpRequest) -> JsonResponse:
    """Asks the site itself for a picture: another worker must answer that."""
    answer = requests.get(f"{settings.OWN_URL}/healthz", timeout=1.0)
    answer.raise_for_status()
    return done()


def thumbnail(request: HttpRequest) -> JsonResponse:
    if held:
        raise MemoryError
    return done()


def grow(request: HttpRequest, mebibytes: int) -> HttpResponse:
    held.append(bytearray(b"x" * (mebibytes << 20)))
    return _pid()


def sicken(request: HttpRequest) -> HttpResponse:
    memory["sick"] = True
    return _pid()


def ward(request: HttpRequest) -> JsonResponse:
    if memory["sick"]:
        raise ServiceUnavailableError("the connection to the ward is in a bad state")
    return done()


def slow(request: HttpRequest) -> HttpResponse:
    time.sleep(float(request.GET.get("s", "1")))
    return HttpResponse("at last")


def bug(request: HttpRequest) -> HttpResponse:
    total: Any = None
    return HttpResponse(total + 1)


def missing_key(request: HttpRequest) -> HttpResponse:
    return HttpResponse({"price": 1}["prize"])


def _pid() -> HttpResponse:
    import os

    return HttpResponse(str(os.getpid()))


urlpatterns = [
    path("healthz", healthz), path("state/", state), path("flaky/<str:name>/", flaky), path("order/", order),
    path("stock/", stock), path("plain-order/", plain_order), path("account/<str:name>/", account),
    path("storage/<str:name>/", storage), path("quota/<str:name>/", quota), path("carrier/<str:name>/", carrier),
    path("weather/", weather), path("pay/", pay), path("ship/", ship), path("book/", book),
    path("tls/<int:port>/", tls), path("lookup/", name_lookup), path("unreachable/", unreachable),
    path("prices/", prices), path("search/", search), path("offers/", offers), path("profile/", profile),
    path("menu/", menu), path("signup/", signup), path("report/", report), path("long-report/", long_report),
    path("invoice/", invoice), path("export/", export), path("count/", count), path("basket/", basket),
    path("dashboard/", dashboard), path("ledger/", ledger), path("division/", division), path("killed/", killed),
    path("deadlock/", deadlock), path("cached/<str:alias>/", cached), path("feed/", recorrupted),
    path("rates/", rates), path("corrupt-memory/", corrupt_memory), path("price/", price), path("slip/", slip),
    path("backlog/<int:tasks>/<int:milliseconds>/", backlog), path("busy/", busy), path("licence/", licence),
    path("login/", login), path("render/", render), path("thumbnail/", thumbnail),
    path("grow/<int:mebibytes>/", grow), path("sicken/", sicken), path("ward/", ward), path("slow/", slow),
    path("bug/", bug), path("missing-key/", missing_key),
]  # fmt: skip
