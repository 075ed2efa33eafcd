"""How each fault of the catalogue is made. What follows a `yield` ends it."""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg

from .peers import WrongCertificate
from .scene import Scene, traffic
from .stage import Application, Stage, eventually

Making = Callable[[Stage], Iterator[Scene]]
MAKING: dict[str, Making] = {}


def fault(make: Making) -> Making:
    MAKING[make.__name__.replace("_", "-")] = make
    return make


# A peer that fails for a moment: each caller's first calls


def _flapping(stage: Stage, name: str, path: str, times: int = 2, **how: Any) -> Iterator[Scene]:
    stage.peers.arm(name, times)
    yield Scene(stage, path, **how)


@fault
def peer_resets_twice(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "reset-quote", "/flaky/reset-quote/")


@fault
def peer_503_until_a_date(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "date-quote", "/flaky/date-quote/")


@fault
def peer_429_retry_after(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "429-quota", "/quota/429-quota/")


@fault
def post_with_key_is_reset(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "reset-order", "/order/", method="POST", headers={"Idempotency-Key": "order-1"})


@fault
def idempotent_put_is_reset(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "reset-stock", "/stock/", method="PUT")


@fault
def expired_token_is_refreshed(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "401-token", "/account/401-token/")


@fault
def storage_not_ready(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "503-storage", "/storage/503-storage/")


@fault
def peer_500_twice(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "500-quote", "/flaky/500-quote/")


@fault
def comes_back_a_second_later(stage: Stage) -> Iterator[Scene]:
    """Works once in between."""
    stage.peers.arm("reset-again", 2)
    scene = Scene(stage, "/flaky/reset-again/")
    yield scene
    stage.peers.arm("reset-again", 100)
    answer = scene.ask(stage.patient)
    assert answer.failed, "the fault came back, and nothing may hide it"
    assert answer.recovery.get("success") is not True, "a failure that is back was called repaired"
    stage.peers.arm("reset-again", 0)


# Too little time


@fault
def report_outgrows_its_timeout(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/report/", curable=False)


@fault
def lock_held_within_the_limit(stage: Stage) -> Iterator[Scene]:
    def lock(query: dict[str, str]) -> None:
        taken = threading.Event()

        def hold() -> None:
            with psycopg.connect(stage.database_url) as connection:
                connection.execute("SELECT 1 FROM menu WHERE who = %s FOR UPDATE", [f"{query['who']}-locked"])
                taken.set()
                time.sleep(0.8)

        threading.Thread(target=hold, daemon=True).start()
        taken.wait(5)

    stage.peers.hooks["lock"] = lock
    yield Scene(stage, "/invoice/")


@fault
def slow_peer_requests(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/carrier/slow/", curable=False)


@fault
def slow_peer_httpx(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/weather/", curable=False)


@fault
def slow_redirect_target(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/carrier/redirect/", curable=False)


# Caches


def _fill(stage: Stage, path: str) -> None:
    for who in (stage.patient, stage.control):
        for _ in range(6):
            stage.ask(who, path)


def _corrupt_redis(stage: Stage, value: bytes) -> Iterator[Scene]:
    _fill(stage, "/cached/default/")
    with stage.redis_client() as client:
        for who in ("patient", "control"):
            client.set(f"{who}:1:page:home", value)
    yield Scene(stage, "/cached/default/")
    with stage.redis_client() as client:
        client.delete("patient:1:page:home", "control:1:page:home")


@fault
def corrupt_redis_entry(stage: Stage) -> Iterator[Scene]:
    yield from _corrupt_redis(stage, pickle.dumps({"title": "home"})[:-3])


@fault
def entry_of_a_newer_python(stage: Stage) -> Iterator[Scene]:
    yield from _corrupt_redis(stage, b"\x80\x63" + pickle.dumps({"title": "home"})[2:])


@fault
def corrupt_cache_table_row(stage: Stage) -> Iterator[Scene]:
    _fill(stage, "/cached/table/")
    stage.sql("UPDATE cached_pages SET value = 'cnViYmlzaA=='")
    yield Scene(stage, "/cached/table/")
    stage.sql("DELETE FROM cached_pages")


@fault
def corrupt_memory_of_both_workers(stage: Stage) -> Iterator[Scene]:
    for who in (stage.patient, stage.control):
        stage.each_worker(who, "/corrupt-memory/")
    yield Scene(stage, "/cached/memory/", looks=8, lasting=True)


@fault
def corrupt_cache_file(stage: Stage) -> Iterator[Scene]:
    _fill(stage, "/cached/files/")
    for who in ("patient", "control"):
        for file in (stage.place / who / "cache").glob("*.djcache"):
            # As a disk that ran full leaves it: the header whole, the value cut off.
            file.write_bytes(file.read_bytes()[:-3])
    yield Scene(stage, "/cached/files/")
    for file in (stage.place / "control" / "cache").glob("*.djcache"):
        file.unlink()


@fault
def stale_entry_of_the_last_release(stage: Stage) -> Iterator[Scene]:
    with stage.redis_client() as client:
        for who in ("patient", "control"):
            client.set(f"{who}:1:rate:eur", pickle.dumps({"version": 1, "rate": 2.0}))
    yield Scene(stage, "/rates/")
    with stage.redis_client() as client:
        client.delete("control:1:rate:eur")


@fault
def cache_is_corrupted_again(stage: Stage) -> Iterator[Scene]:
    def corrupt(query: dict[str, str]) -> None:
        with stage.redis_client() as client:
            client.set(f"{query['who']}:1:feed:1", pickle.dumps({"title": "home"})[:-3])

    stage.peers.hooks["corrupt"] = corrupt
    yield Scene(stage, "/feed/")
    with stage.redis_client() as client:
        client.delete("patient:1:feed:1", "control:1:feed:1")


# The connection pool


@contextlib.contextmanager
def _exports(stage: Stage, seconds: float = 25) -> Iterator[None]:
    """Two connections of every worker are held."""
    over = threading.Event()

    def hold(who: Application) -> None:
        while not over.is_set():
            stage.ask(who, f"/export/?s={seconds}", timeout=60)

    def held(who: str) -> int:
        query = "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s"
        return stage.sql(query, who, "%pg_sleep(%")[0]["n"]

    # More callers than connections, since which worker takes a request is the kernel's choice.
    threads = [
        threading.Thread(target=hold, args=(who,), daemon=True)
        for who in (stage.patient, stage.control)
        for _ in range(6)
    ]
    for one in threads:
        one.start()
    eventually(lambda: held("patient") >= 4 and held("control") >= 4, 15)
    try:
        yield
    finally:
        over.set()
        for _ in range(3):
            stage.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(%'"
                      " AND application_name IN ('patient', 'control')")  # fmt: skip
            time.sleep(0.1)
        for one in threads:
            one.join(0.1)
        eventually(lambda: not any(one.is_alive() for one in threads) or _cancel(stage), 30)


def _cancel(stage: Stage) -> bool:
    stage.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(%'"
              " AND application_name IN ('patient', 'control')")  # fmt: skip
    return False


@fault
def exports_hold_the_pool(stage: Stage) -> Iterator[Scene]:
    with _exports(stage):
        yield Scene(stage, "/count/", looks=1)


@fault
def dashboard_needs_four_connections(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/dashboard/", curable=False)


@fault
def burst_on_a_small_pool(stage: Stage) -> Iterator[Scene]:
    scene = Scene(stage, "/basket/", asks=False, looks=8, patience_s=20)
    with traffic(scene, 18, 0.02):
        yield scene


# What is to be left alone


def _overloaded(stage: Stage, name: str, path: str) -> Iterator[Scene]:
    """It fails as long as calls go on, and both instances have users who go on."""
    scene = Scene(stage, path, asks=False, looks=3, patience_s=25)
    stage.peers.overload(name)
    with traffic(scene, 2, 0.2):
        yield scene


@fault
def overloaded_bank_resets(stage: Stage) -> Iterator[Scene]:
    yield from _overloaded(stage, "overloaded-bank", "/pay/")


@fault
def overloaded_shipper_503(stage: Stage) -> Iterator[Scene]:
    yield from _overloaded(stage, "overloaded-503", "/ship/")


@fault
def overloaded_peer_of_a_route(stage: Stage) -> Iterator[Scene]:
    yield from _overloaded(stage, "overloaded-route", "/book/")


# Another answer


@fault
def source_of_prices_is_away(stage: Stage) -> Iterator[Scene]:
    # The control keeps a last good response too; with recovery off nobody serves it.
    _fill(stage, "/prices/")
    stage.peers.down.add("source-prices")
    yield Scene(stage, "/prices/")


@fault
def search_backend_is_down(stage: Stage) -> Iterator[Scene]:
    stage.peers.down.add("source-search")
    yield Scene(stage, "/search/")


@fault
def table_of_offers_is_missing(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/offers/", curable=False)


@fault
def profile_is_invalid(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/profile/", curable=False)


@fault
def menu_was_published_with_a_mistake(stage: Stage) -> Iterator[Scene]:
    _fill(stage, "/menu/")
    stage.sql("UPDATE menu SET body = 'mneu' WHERE who IN ('patient', 'control')")
    yield Scene(stage, "/menu/")
    stage.sql("UPDATE menu SET body = 'menu: soup' WHERE who IN ('patient', 'control')")


# Queues


def _backlog(stage: Stage, path: str, tasks: int, milliseconds: int) -> Iterator[Scene]:
    for who in (stage.patient, stage.control):
        stage.ask(who, f"/backlog/{tasks}/{milliseconds}/")
    _queues_were_read(stage)
    try:
        yield Scene(stage, path)
    finally:
        with stage.broker_client() as client:
            client.delete("patient-work", "control-work")


def _queues_were_read(stage: Stage) -> None:
    def read() -> bool:
        return any(
            (one["measurements"].get("queues") or {}).get("patient-work", {}).get("waiting", 0) > 10
            for one in stage.instances("patient")
        )

    eventually(read, 15)


@fault
def backlog_before_an_awaited_task(stage: Stage) -> Iterator[Scene]:
    yield from _backlog(stage, "/price/", 900, 30)


@fault
def bulk_job_in_the_same_queue(stage: Stage) -> Iterator[Scene]:
    yield from _backlog(stage, "/slip/", 70, 400)


@fault
def backlog_that_two_workers_share(stage: Stage) -> Iterator[Scene]:
    with stage.another_worker(stage.patient), stage.another_worker(stage.control):
        yield from _backlog(stage, "/price/", 1500, 30)


# Too much


@fault
def view_of_three_seats(stage: Stage) -> Iterator[Scene]:
    scene = Scene(stage, "/busy/", asks=False, looks=10, patience_s=25, grace_s=2)
    with traffic(scene, 14, 0.05):
        yield scene


@fault
def all_licences_in_use(stage: Stage) -> Iterator[Scene]:
    scene = Scene(stage, "/licence/", asks=False, looks=10, patience_s=25, grace_s=2)
    with traffic(scene, 8, 0.05):
        yield scene


@fault
def flood_of_logins_by_one_client(stage: Stage) -> Iterator[Scene]:
    scene = Scene(stage, "/login/", asks=False, looks=6, patience_s=25, grace_s=2)
    over = threading.Event()

    def flood(who: Application) -> None:
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, timeout=25, trust_env=False) as client:
            while not over.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    client.get(who.url + "/login/")
                over.wait(0.02)

    floods = [
        threading.Thread(target=flood, args=(who,), daemon=True)
        for who in (scene.patient, scene.other)
        for _ in range(12)
    ]
    for one in floods:
        one.start()
    try:
        with traffic(scene, 1, 1.0):
            yield scene
    finally:
        over.set()
        for one in floods:
            one.join(30)


# Processes


@fault
def site_that_asks_itself(stage: Stage) -> Iterator[Scene]:
    with stage.beside("solo", workers=1, kind="sync") as (app, control):
        yield Scene(stage, "/render/", app=app, control=control, patience_s=30)


@fault
def unfinished_requests_pin_the_workers(stage: Stage) -> Iterator[Scene]:
    import socket

    with stage.beside("pinned", workers=2, kind="sync") as (app, control):
        held: list[socket.socket] = []
        for who in (app, control):
            # One of two: what the page asks the site itself for finds no free worker.
            held.append(socket.create_connection(("127.0.0.1", who.port)))
            held[-1].sendall(b"POST /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 10\r\n")
        yield Scene(stage, "/render/", app=app, control=control, patience_s=30)
        for one in held:
            one.close()


@fault
def one_worker_has_grown(stage: Stage) -> Iterator[Scene]:
    with stage.beside("heap") as (app, control):
        for who in (app, control):
            stage.ask(who, "/grow/90/")
        yield Scene(stage, "/thumbnail/", app=app, control=control, looks=14, patience_s=40)


@fault
def all_workers_have_grown_alike(stage: Stage) -> Iterator[Scene]:
    with stage.beside("alike") as (app, control):
        for who in (app, control):
            eventually(lambda who=who: len(stage.each_worker(who, "/grow/90/")) == 2)
        yield Scene(stage, "/thumbnail/", app=app, control=control, looks=6, patience_s=40)


@fault
def one_worker_has_grown_a_lot(stage: Stage) -> Iterator[Scene]:
    with stage.beside("heap") as (app, control):
        for who in (app, control):
            stage.ask(who, "/grow/250/")
        yield Scene(stage, "/thumbnail/", app=app, control=control, looks=14, patience_s=40)


def _healthy(stage: Stage) -> Callable[[Application], bool]:
    return lambda who: stage.ask(who, "/healthz", timeout=2).status == 200


@fault
def all_workers_hang(stage: Stage) -> Iterator[Scene]:
    with stage.beside("hung") as (app, control):
        for who in (app, control):
            who.hang()
        yield Scene(
            stage, "/healthz", app=app, control=control, asks=False, look=_healthy(stage), looks=4, patience_s=60
        )


@fault
def one_of_two_replicas_hangs(stage: Stage) -> Iterator[Scene]:
    with stage.beside("duo", workers=1, name="duo-2"), stage.beside("duo", workers=1) as (app, control):
        for who in (app, control):
            who.hang()
        yield Scene(
            stage, "/healthz", app=app, control=control, asks=False, look=_healthy(stage), looks=4, patience_s=60
        )


@fault
def bad_state_in_memory(stage: Stage) -> Iterator[Scene]:
    with stage.beside("ward") as (app, control):
        for who in (app, control):
            stage.each_worker(who, "/sicken/")
        yield Scene(stage, "/ward/", app=app, control=control, looks=6, patience_s=60)


@fault
def supervised_process_is_deadlocked(stage: Stage) -> Iterator[Scene]:
    def look(who: Application) -> bool:
        return stage.ask(who, "/", timeout=2).status == 200

    with stage.desk() as (app, control):
        for who in (app, control):
            stage.ask(who, "/deadlock", timeout=0.5)
        yield Scene(stage, "/", app=app, control=control, asks=False, look=look, looks=3, patience_s=60)


# What nothing here can repair


@fault
def deploy_that_does_not_load(stage: Stage) -> Iterator[Scene]:
    """The workers hang, and the code that new ones would load can't be imported."""
    with stage.beside("deploy") as (app, control):
        for who in (app, control):
            (stage.place / who.who / "broken").touch()
            who.hang()
        yield Scene(
            stage, "/healthz", app=app, control=control, asks=False, look=_healthy(stage), looks=2, patience_s=30
        )


@fault
def spool_disk_is_full(stage: Stage) -> Iterator[Scene]:
    """The peer would be well the second time, and where errors are kept until they are told nothing can be written."""
    with stage.beside("spool", full=True) as (app, control):
        stage.peers.arm("reset-spool", 2, app.who, control.who)
        yield Scene(stage, "/flaky/reset-spool/", app=app, control=control)


@fault
def plain_bug(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/bug/", curable=False)


@fault
def missing_key_in_the_code(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/missing-key/", curable=False)


@fault
def division_by_zero_in_sql(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/division/", curable=False)


@fault
def wrong_database_password(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/ledger/", curable=False)


@fault
def token_stays_expired(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "401-gone", "/account/401-gone/", 1000)


@fault
def wrong_certificate(stage: Stage) -> Iterator[Scene]:
    server = WrongCertificate(stage.place)
    try:
        yield Scene(stage, f"/tls/{server.port}/", curable=False)
    finally:
        server.close()


@fault
def name_does_not_resolve(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/lookup/", curable=False)


@fault
def connection_refused_for_good(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/unreachable/", curable=False)


@fault
def deadlock_in_the_code(stage: Stage) -> Iterator[Scene]:
    def other(query: dict[str, str]) -> None:
        taken = threading.Event()

        def update() -> None:
            with psycopg.connect(stage.database_url) as connection:
                connection.execute("SET deadlock_timeout = '10s'")
                connection.execute("UPDATE menu SET seen = 0 WHERE who = 'deadlock-2'")
                taken.set()
                with contextlib.suppress(psycopg.Error):
                    connection.execute("UPDATE menu SET seen = 0 WHERE who = 'deadlock-1'")

        threading.Thread(target=update, daemon=True).start()
        taken.wait(5)

    stage.peers.hooks["deadlock"] = other
    yield Scene(stage, "/deadlock/", curable=False)


@fault
def backend_is_killed(stage: Stage) -> Iterator[Scene]:
    stage.peers.hooks["kill"] = lambda query: stage.sql("SELECT pg_terminate_backend(%s)", int(query["pid"])) and None
    yield Scene(stage, "/killed/", curable=False)


@fault
def post_without_key_is_reset(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "reset-plain", "/plain-order/", 1000, method="POST")


@fault
def invalid_signup(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/signup/", method="POST", curable=False)


@fault
def report_past_every_limit(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/long-report/", curable=False)


@fault
def storage_stays_away(stage: Stage) -> Iterator[Scene]:
    yield from _flapping(stage, "503-gone", "/storage/503-gone/", 1000)


@fault
def peer_slower_than_every_limit(stage: Stage) -> Iterator[Scene]:
    yield Scene(stage, "/carrier/slower/", curable=False)


@fault
def too_many_connections(stage: Stage) -> Iterator[Scene]:
    """The server has none left, so that a larger pool could not help."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(psycopg.OperationalError):
            for _ in range(200):
                held.enter_context(psycopg.connect(stage.database_url, application_name="crowd"))
        yield Scene(stage, "/dashboard/", curable=False)


@fault
def postgresql_is_stopped(stage: Stage) -> Iterator[Scene]:
    stage.postgres.stop()
    try:
        yield Scene(stage, "/count/", patience_s=30)
    finally:
        stage.postgres.start()


@fault
def redis_is_stopped(stage: Stage) -> Iterator[Scene]:
    stage.redis.stop()
    try:
        yield Scene(stage, "/cached/default/")
    finally:
        stage.redis.start()


@fault
def repairs_itself_meanwhile(stage: Stage) -> Iterator[Scene]:
    """Works again before anything was done about it, since nothing here applies."""
    stage.peers.arm("reset-plain", 1)
    yield Scene(stage, "/plain-order/", method="POST", lasting=False)
