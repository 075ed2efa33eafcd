"""Celery: where tasks are sent, and how many wait in each queue.

One line connects it: `CELERY_TASK_ROUTES = ("error_logging.celery.route",)`, before the project's own routes. Celery
itself is optional, and only imported where the project has imported it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from error_logging import process

logger = logging.getLogger("error_logging")

ROUTE = f"{__name__}.route"
REMEMBERED = 2_000
"""Tasks that this process has sent, so that it knows which one a caller waited for in vain."""
READ_EVERY_S = 2.0
CONNECT_S = 2


@dataclass(frozen=True)
class Boost:
    tasks: str
    """Glob of task names."""
    lanes: tuple[str, ...]
    """Queues that they go to in turn. A worker serves its queues in turn, so each lane is a turn more."""
    _turn: Iterator[int] = field(default_factory=itertools.count)

    def lane(self) -> str:
        return self.lanes[next(self._turn) % len(self.lanes)]


boosts: dict[str, Boost] = {}
"""By the queue whose backlog is passed; empty while no directive is in force."""
_lanes: dict[str, str] = {}
"""Every lane there has been, to the queue whose backlog it passes."""
_sent: dict[str, tuple[str, str]] = {}
_lock = threading.Lock()
_readings: dict[str, dict[str, int]] = {}
_watch: tuple[int, threading.Thread] | None = None


def route(
    name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any = None, **_: Any
) -> dict[str, Any] | None:
    """A router of Celery's, to stand first in `task_routes`. Says nothing while no directive is in force."""
    if not boosts:
        return None
    try:
        return _boosted(name, args, kwargs, options, task)
    except Exception:
        logger.exception("Upright could not route a task; it goes where it would without it")
        return None


def application() -> Any:
    """The project's Celery application if it routes through `route`, else None. Imports nothing."""
    celery: Any = sys.modules.get("celery")
    if celery is None:
        return None
    try:
        app: Any = celery.current_app._get_current_object()
        routes: Any = app.conf.task_routes or ()
        listed: Any = routes if isinstance(routes, (list, tuple)) else (routes,)
        if ROUTE not in listed and route not in listed:
            return None
        _listen()
        return app
    except Exception:
        logger.debug("Upright can't read the settings of Celery", exc_info=True)
        return None


def queues(app: Any) -> list[str]:
    """Names of the queues that the application's tasks go to, without lanes of ours."""
    return [name for name in tuple(app.amqp.queues) if name not in _lanes]


def boost(queue: str, how: Boost) -> None:
    """From now on, until it is taken out of `boosts`."""
    _lanes.update(dict.fromkeys(how.lanes, queue))
    boosts[queue] = how


@contextlib.contextmanager
def broker(app: Any) -> Iterator[Any]:
    """A connection of our own that gives up early. Raises OperationalError."""
    with app.connection_for_write(connect_timeout=CONNECT_S) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_S)
        yield connection


def waiting(connection: Any, queue: str) -> int:
    """Messages of a queue that no worker has fetched yet. A queue that isn't there has none."""
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors:
            return 0


def task_of(exc: BaseException) -> dict[str, str] | None:
    """The task whose result an exception says did not come, if this process has sent it."""
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__") == "celery.result":
            sent = _sent.get(str(getattr(frame.f_locals.get("self"), "id", "")))
            if sent is not None:
                return {"name": sent[0], "queue": sent[1]}
        traceback = traceback.tb_next
    return None


def readings() -> dict[str, dict[str, int]]:
    """Queues as they were read last. No I/O."""
    return dict(_readings)


def watch() -> None:
    """Read the queues' lengths now and then, from now on; where there is no Celery, nothing."""
    global _watch
    if (_watch is not None and _watch[0] == os.getpid()) or application() is None:
        return
    thread = threading.Thread(target=_read_on, name="upright-queues", daemon=True)
    _watch = (os.getpid(), thread)
    thread.start()


def _boosted(name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any) -> dict[str, Any] | None:
    if options.get("queue") or options.get("exchange") or options.get("routing_key"):
        return None  # the caller has chosen, and its choice would win
    candidates = {queue: boost for queue, boost in tuple(boosts.items()) if fnmatchcase(name, boost.tasks)}
    if not candidates:
        return None
    app: Any = task.app if task is not None else application()
    usual = _usual(app, name, args, kwargs, options, task)
    boost = candidates.get(_name(usual.get("queue")) or app.conf.task_default_queue)
    if boost is None or usual.get("exchange"):
        return None
    return {**{key: value for key, value in usual.items() if key != "routing_key"}, "queue": boost.lane()}


def _usual(app: Any, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any) -> dict[str, Any]:
    """What the project's own routes say."""
    from celery.utils.functional import maybe_evaluate

    for one in app.amqp.router.routes:
        router: Any = maybe_evaluate(one)
        if router is route:
            continue
        found = app.amqp.router.query_router(router, name, args, kwargs, dict(options), task)
        if found is not None:
            return {"queue": found} if isinstance(found, str) else dict(found)
    return {}


def _name(queue: Any) -> str:
    return str(getattr(queue, "name", queue) or "")


def _listen() -> None:
    from celery.signals import before_task_publish

    before_task_publish.connect(_on_publish, dispatch_uid=__name__)


def _on_publish(
    sender: Any = None, headers: Any = None, declare: Any = None, routing_key: Any = None, **_: Any
) -> None:
    identity = headers.get("id") if isinstance(headers, Mapping) else None
    if not identity:
        return
    queue = _name(declare[0]) if declare else str(routing_key or "")
    queue = _lanes.get(queue, queue)
    with _lock:
        while len(_sent) >= REMEMBERED:
            del _sent[next(iter(_sent))]
        _sent[str(identity)] = (str(sender), queue)


def _read_on() -> None:
    pause_s = READ_EVERY_S
    while True:
        try:
            app = application()
            with broker(app) as connection:
                while True:
                    for queue in queues(app):
                        _readings[queue] = {"waiting": waiting(connection, queue)}
                    pause_s = READ_EVERY_S
                    time.sleep(pause_s)
        except Exception as error:
            _readings.clear()
            logger.debug("Upright can't read Celery's queues: %s", error)
            pause_s = min(60.0, pause_s * 2)
            time.sleep(pause_s)


def _renew() -> None:
    global _lock
    _lock = threading.Lock()


process.after_fork(_renew)
