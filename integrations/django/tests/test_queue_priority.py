"""queue_priority on a real Redis with a real Celery worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, JsonResponse
from django.test import Client
from django.urls import path

from error_logging import actuators, celery, desired_state, measurements
from error_logging.actuators import queue as queue_actuator
from error_logging.testing import ScriptedService, apply, directive, recovered
from upright.adapters.engines import EmbeddedRedis

HERE = Path(__file__).parent
BOOST = {"queue": "celery.boosted", "tasks": "site.price", "boost_factor": 2}


def price(request: HttpRequest) -> JsonResponse:
    import site_celery

    return JsonResponse({"price": site_celery.price.delay().get(timeout=1.5)})


urlpatterns = [path("price/", price)]


def until(look: Callable[[], Any], deadline_s: float = 20) -> Any:
    end = time.monotonic() + deadline_s
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


class Shop:
    """The application, its broker and its workers."""

    def __init__(self, app: Any, environment: dict[str, str], log: Path) -> None:
        self.app, self._environment, self._log = app, environment, log
        self.workers: list[subprocess.Popen[bytes]] = []

    def work(self) -> None:
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "site_celery",
            "worker",
            "-c",
            "1",
            "-l",
            "INFO",
            "-Q",
            "celery",
        ]
        command += ["-n", f"w{len(self.workers)}@site", "--without-gossip", "--without-mingle"]
        with self._log.open("ab") as log:
            self.workers.append(
                subprocess.Popen(command, cwd=HERE, env=self._environment, stdout=log, stderr=log, process_group=0)
            )
        until(lambda: len(self.consumers("celery")) == len(self.workers), 40)

    def backlog(self, tasks: int) -> None:
        import site_celery

        for _ in range(tasks):
            site_celery.chore.apply_async(ignore_result=True)

    def waiting(self, queue: str) -> int:
        with celery.broker(self.app) as connection:
            return celery.waiting(connection, queue)

    def consuming(self) -> dict[str, set[str]]:
        answered = self.app.control.inspect(timeout=1, limit=len(self.workers)).active_queues() or {}
        return {worker: {one["name"] for one in queues} for worker, queues in answered.items()}

    def consumers(self, queue: str) -> list[str]:
        return [worker for worker, queues in self.consuming().items() if queue in queues]

    def stop(self) -> None:
        for worker in self.workers:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


@pytest.fixture(scope="module")
def broker(redis_server: EmbeddedRedis) -> Iterator[str]:
    url = redis_server.url(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SITE_BROKER_URL", url)
        sys.modules.pop("site_celery", None)
        yield url


@pytest.fixture
def shop(broker: str, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    import redis
    import site_celery

    monkeypatch.setattr(queue_actuator, "QUIET_S", 0.5)
    monkeypatch.setattr(queue_actuator, "LOOK_EVERY_S", 0.1)

    settings.ROOT_URLCONF = __name__
    with redis.Redis.from_url(broker) as server:
        server.flushdb()
    made = Shop(site_celery.app, {**os.environ, "SITE_BROKER_URL": broker}, tmp_path / "worker.log")
    site_celery.app.set_default()
    assert celery.application() is site_celery.app
    try:
        made.work()
        yield made
    finally:
        desired_state.reset()
        for thread in threading.enumerate():
            if thread.name.startswith("upright-lanes"):
                thread.join(30)
        made.stop()


def boosting() -> Any:
    return apply(directive("queue_priority", "celery:celery", **BOOST))


def test_a_caller_that_a_backlog_keeps_waiting_gets_its_result(shop: Shop, service: ScriptedService, db: None) -> None:
    shop.backlog(600)
    service.on_error(boosting())
    answer = Client().get("/price/").json()
    assert answer["error"]["type"] == "TimeoutError"
    assert answer["recovery"]["success"], answer
    (told,) = service.results[0].result["acknowledgements"]
    assert told["before"]["waiting"] > 100
    assert (told["before"]["boosted_consumers"], told["after"]["boosted_consumers"]) == (0, 1)
    assert shop.waiting("celery") > 50, "the backlog must still be there, or its absence did it"
    # The next caller is not held up either.
    assert Client().get("/price/").json() == {"price": 42}


def test_without_it_the_caller_still_waits_in_vain(shop: Shop, service: ScriptedService, db: None) -> None:
    shop.backlog(600)
    service.on_error(recovered())
    assert Client().get("/price/").status_code == 503
    service.on_error(recovered())
    assert Client().get("/price/").status_code == 503
    assert shop.waiting("celery") > 50


def test_the_event_names_the_task_and_its_backlog(shop: Shop, service: ScriptedService, db: None) -> None:
    shop.backlog(600)
    celery.watch()
    until(lambda: celery.readings().get("celery", {}).get("waiting", 0) > 100)
    service.on_error(recovered())
    Client().get("/price/")
    told = service.errors[0].body["measurements"]
    assert told["task"] == {"name": "site.price", "queue": "celery"}
    assert told["queues"]["celery"]["waiting"] > 100


def test_what_is_left_in_the_boosted_queue_is_done_before_its_consumers_stop(shop: Shop) -> None:
    import site_celery

    shop.backlog(60)
    one = {"id": "d", "strategy": "queue_priority", "target": "celery:celery", "version": 1, "values": BOOST}
    assert actuators.acknowledgement(one)["status"] == "applied"
    sent = [site_celery.price.delay() for _ in range(100)]
    told = actuators.acknowledgement(one, revert=True)
    assert told["status"] == "reverted"
    assert told["before"]["boosted_waiting"] > 0
    assert [one.get(timeout=20) for one in sent] == [42] * 100
    until(lambda: list(shop.consuming().values()) == [{"celery"}])
    until(lambda: len(shop.consumers("celery")) == 1)
    # New ones go to their own queue again.
    assert site_celery.app.amqp.router.route({}, "site.price")["queue"].name == "celery"
    assert site_celery.price.delay().get(timeout=20) == 42


def test_a_worker_that_starts_later_consumes_the_boosted_queue_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_actuator, "TEND_EVERY_S", 0.1)
    one = {"id": "d", "strategy": "queue_priority", "target": "celery:celery", "version": 1, "values": BOOST}
    assert actuators.acknowledgement(one)["status"] == "applied"
    shop.work()
    until(lambda: len(shop.consumers("celery.boosted.2")) == 2)
    actuators.acknowledgement(one, revert=True)


def test_no_task_is_sent_where_nobody_takes_it(shop: Shop) -> None:
    import site_celery

    one = {"id": "d", "strategy": "queue_priority", "target": "celery:mail", "version": 1}
    told = actuators.acknowledgement({**one, "values": {**BOOST, "tasks": "site.mail"}})
    assert (told["status"], celery.boosts) == ("failed", {})
    assert "no worker that answers consumes the queue 'mail'" in told["reason"]
    assert site_celery.app.amqp.router.route({}, "site.mail")["queue"].name == "mail"


def test_only_matching_tasks_of_that_queue_are_boosted(broker: str) -> None:
    import site_celery

    site_celery.app.set_default()
    route = site_celery.app.amqp.router.route
    celery.boost("celery", celery.Boost("site.*", ("celery.boosted",)))
    try:
        assert route({}, "site.price")["queue"].name == "celery.boosted"
        assert route({}, "site.mail")["queue"].name == "mail", "its own queue is not the backlogged one"
        assert route({}, "other.task")["queue"].name == "celery"
        assert route({"queue": "mail"}, "site.price")["queue"].name == "mail", "the caller's choice stands"
    finally:
        celery.boosts.clear()
    assert celery.application() is site_celery.app
    assert set(queue_actuator.targets()) >= {"celery:celery"}
    assert "celery:celery.boosted" not in queue_actuator.targets()


def test_a_broker_that_is_gone_is_said_so_and_changes_nothing(broker: str) -> None:
    import site_celery

    site_celery.app.set_default()
    gone = type(site_celery.app)("gone", broker="redis://127.0.0.1:1/0")
    gone.conf.task_routes = ("error_logging.celery.route",)
    gone.set_default()
    try:
        told: list[dict[str, Any]] = []
        one = {"id": "d", "strategy": "queue_priority", "target": "celery:celery", "version": 1, "values": BOOST}
        asking = threading.Thread(target=lambda: told.append(actuators.acknowledgement(one)))
        asking.start()
        asking.join(15)
        assert (told[0]["status"], celery.boosts) == ("failed", {})
        assert measurements.of_process().get("queues", {}) is not None
    finally:
        site_celery.app.set_default()


def test_without_the_route_it_is_unsupported() -> None:
    from celery import Celery

    Celery("plain", broker="memory://", set_as_current=True).set_default()
    one = {"id": "d", "strategy": "queue_priority", "target": "celery:celery", "version": 1, "values": BOOST}
    told = actuators.acknowledgement(one)
    assert (told["status"], actuators.targets("queue_priority")) == ("unsupported", [])
    assert "error_logging.celery.route" in told["reason"]
