"""queue_priority: tasks that somebody waits for go past the backlog of their Celery queue.

They are sent to queues of their own (lanes), which the workers of the backlogged queue consume too. Afterwards the
lanes are worked off before anybody stops to consume them, so that no task is left behind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from error_logging import celery
from error_logging.actuators.base import Change, NotSupported

logger = logging.getLogger("error_logging")

PREFIX = "celery:"
ASK_S = (0.5, 1.5)
"""How long workers may take to answer; the second time for those that were busy."""
BEGIN_S = 3.0
LOOK_EVERY_S = 1.0
TEND_EVERY_S = 10.0
QUIET_S = 10.0
"""How long the lanes must have been empty before workers stop to consume them: other processes may still send."""
MAX_LANES = 10


def targets() -> list[str]:
    app = celery.application()
    return [] if app is None else [f"{PREFIX}{queue}" for queue in celery.queues(app)]


class QueuePriority:
    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        app, queue = _application(), _queue(target)
        boost = celery.Boost(_text(values, "tasks"), _lanes(_text(values, "queue"), values.get("boost_factor", 2)))
        for lane in boost.lanes:
            try:
                app.amqp.queues[lane]
            except KeyError:
                raise NotSupported(f"there is no queue {lane!r}, and task_create_missing_queues is off") from None
        with celery.broker(app) as connection:
            consumed = _consumed(app, connection)
            before = _measured(connection, consumed, queue, boost.lanes)
            if not any(queue in consuming for consuming in consumed.values()):
                raise RuntimeError(f"no worker that answers consumes the queue {queue!r}")
            _consume(app, connection, consumed, queue, boost.lanes)
            began, until = False, time.monotonic() + BEGIN_S
            while not began and time.monotonic() < until:
                # Workers answer before they have done it.
                consumed = _consumed(app, connection, expected=len(consumed)) or consumed
                began = all(any(lane in consuming for consuming in consumed.values()) for lane in boost.lanes)
            after = _measured(connection, consumed, queue, boost.lanes)
        if not began:
            raise RuntimeError(f"no worker has begun to consume {', '.join(boost.lanes)} within {BEGIN_S:g} s")
        celery.boost(queue, boost)
        _start(f"upright-tend-{queue}", _tend, app, queue, boost)
        return Change(before, {**after, "queue": boost.lanes[0], "tasks": boost.tasks})

    def revert(self, target: str) -> Change:
        app, queue = _application(), _queue(target)
        boost = celery.boosts.pop(queue, None)
        if boost is None:
            return Change(note="nothing was boosted")
        _start(f"upright-lanes-{queue}", _drain, app, queue, boost)
        with celery.broker(app) as connection:
            left = sum(celery.waiting(connection, lane) for lane in boost.lanes)
        note = f"{left} tasks in the boosted queue are worked off before its consumers stop" if left else ""
        return Change({"boosted_waiting": left}, {"queue": queue}, note)


def _application() -> Any:
    app = celery.application()
    if app is None:
        raise NotSupported(f"this process has no Celery application with {celery.ROUTE} in task_routes")
    return app


def _queue(target: str) -> str:
    if not target.startswith(PREFIX) or target == PREFIX:
        raise NotSupported(f"{target!r} is not {PREFIX}<queue>")
    return target.removeprefix(PREFIX)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value or len(value) > 200:
        raise ValueError(f"{name} must be text of 1 to 200 characters, not {value!r}")
    return value


def _lanes(queue: str, factor: Any) -> tuple[str, ...]:
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor <= MAX_LANES:
        raise ValueError(f"boost_factor must be a number from 1 to {MAX_LANES}, not {factor!r}")
    return (queue, *(f"{queue}.{number}" for number in range(2, round(factor) + 1)))


def _consumed(app: Any, connection: Any, expected: int | None = None) -> dict[str, set[str]]:
    """Worker to the queues that it consumes, of the workers that answer."""
    for patience_s in ASK_S:
        answered = app.control.inspect(timeout=patience_s, connection=connection, limit=expected).active_queues()
        if answered and len(answered) >= (expected or 1):
            return {worker: {str(one["name"]) for one in consuming} for worker, consuming in answered.items()}
    return {}


def _consume(app: Any, connection: Any, consumed: Mapping[str, set[str]], queue: str, lanes: tuple[str, ...]) -> None:
    """Have every worker of the queue consume its lanes too."""
    for lane in lanes:
        lacking = [worker for worker, names in consumed.items() if queue in names and lane not in names]
        if lacking:
            app.control.add_consumer(
                lane, destination=lacking, reply=True, timeout=ASK_S[-1], limit=len(lacking), connection=connection
            )


def _measured(
    connection: Any, consumed: Mapping[str, set[str]], queue: str, lanes: tuple[str, ...]
) -> dict[str, Any]:  # fmt: skip
    return {
        "waiting": celery.waiting(connection, queue),
        "boosted_waiting": sum(celery.waiting(connection, lane) for lane in lanes),
        "consumers": sum(queue in names for names in consumed.values()),
        "boosted_consumers": sum(lanes[0] in names for names in consumed.values()),
    }


def _start(name: str, work: Any, *args: Any) -> None:
    threading.Thread(target=work, args=args, name=name, daemon=True).start()


def _tend(app: Any, queue: str, boost: celery.Boost) -> None:
    """Workers that start while the boost is in force must consume its lanes too."""
    while True:
        time.sleep(TEND_EVERY_S)
        if celery.boosts.get(queue) is not boost:
            return
        try:
            with celery.broker(app) as connection:
                _consume(app, connection, _consumed(app, connection), queue, boost.lanes)
        except Exception as error:
            logger.warning("Upright could not ask the workers of %s: %s", queue, error)


def _drain(app: Any, queue: str, boost: celery.Boost) -> None:
    empty_since: float | None = None
    while True:
        if queue in celery.boosts:
            return  # it is in force again
        try:
            with celery.broker(app) as connection:
                consumed = _consumed(app, connection)
                if sum(celery.waiting(connection, lane) for lane in boost.lanes):
                    empty_since = None
                    _consume(app, connection, consumed, queue, boost.lanes)
                elif empty_since is None:
                    empty_since = time.monotonic()
                elif time.monotonic() - empty_since >= QUIET_S and queue not in celery.boosts:
                    for lane in boost.lanes:
                        app.control.cancel_consumer(lane, connection=connection)
                    return
        except Exception as error:
            logger.warning("Upright could not look after the boosted queue of %s: %s", queue, error)
        time.sleep(LOOK_EVERY_S)
