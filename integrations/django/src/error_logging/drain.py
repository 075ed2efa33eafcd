"""The threads of this process, and the one that delivers what no request delivers.

The drainer sends what is in the spool, also what dead processes left there: one message at a time, with the same id on
every attempt, at a pace that leaves the processor to the application.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import logging
import random
import threading
import time
from typing import Any

from django.core.signals import request_started
from django.utils import timezone as _timezone  # noqa: F401 # pyright: ignore[reportUnusedImport] - loaded now

from error_logging import client, counters, process, rows
from error_logging.conf import current
from error_logging.record import Record, adopted
from error_logging.spool import Spool, SpoolUnusable
from error_logging.writer import MAX_UNSPOOLED, Writer

logger = logging.getLogger("error_logging")

ADOPT_EVERY_S = 10.0
SEND_TIMEOUT_S = 5.0
SHARE_OF_CPU = 0.2
"""Of one processor, at most, while it works off a backlog."""
MAX_LOADED = 200
"""Events of waiting records that are kept in memory; the others are on the disk."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_EXIT_S = 1.0
_REOPEN_S = 5.0


class Drainer:
    """Delivers records that nobody owns, the oldest first."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._condition = threading.Condition()
        self._due: list[tuple[float, int, Record]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._busy = False
        self._failures = 0
        self._not_before = 0.0
        self._adopted_at = float("-inf")

    def start(self) -> None:
        with self._condition:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="upright-drainer", daemon=True)
                self._thread.start()

    def submit(self, record: Record, *, delay_s: float = 0.0) -> None:
        """Have the record delivered, not before `delay_s` seconds have passed."""
        with self._condition:
            if record.spool is None and sum(one.spool is None for _, _, one in self._due) >= MAX_UNSPOOLED:
                counters.add("deliveries_dropped")
                logger.error("%s is not delivered: neither spool nor service can take it", record.error_id)
                record.settle(delivery=True)
                return
            if len(self._due) > MAX_LOADED:
                record.unload()
            heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._order), record))
            self._condition.notify_all()

    def settle(self, timeout_s: float) -> bool:
        """Wait until everything is delivered."""
        with self._condition:
            return self._condition.wait_for(lambda: not (self._due or self._busy), timeout_s)

    def forget(self) -> None:
        """Deliver nothing of what waits, and wait for nobody; for tests, whose service is gone afterwards."""
        with self._condition:
            waiting, self._due = self._due, []
            self._failures, self._not_before = 0, 0.0
            self._condition.notify_all()
        for _, _, record in waiting:
            record.settle(delivery=True)

    def stop(self, timeout_s: float) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._adopt()
            with self._condition:
                self._condition.wait_for(self._ready, self._pause_s())
                if self._stopping:
                    return
                record = heapq.heappop(self._due)[2] if self._ready() else None
                self._busy = record is not None
            used = time.thread_time()
            try:
                if record is not None:
                    self._deliver(record)
                elif client.probe_due() and time.monotonic() >= self._not_before:
                    self._probe()
            except Exception:
                counters.add("drainer_failures")
                logger.exception("The drainer failed; it goes on")
                if record is not None:
                    self._put_back(record)
            finally:
                with self._condition:
                    self._busy = False
                    self._condition.notify_all()
            self._yield_cpu(time.thread_time() - used)

    def _ready(self) -> bool:
        now = time.monotonic()
        return self._stopping or bool(self._due and self._due[0][0] <= now and self._not_before <= now)

    def _pause_s(self) -> float:
        """Until there may be something to do."""
        now = time.monotonic()
        pause = self._adopted_at + ADOPT_EVERY_S - now
        if self._due:
            pause = min(pause, max(self._due[0][0], self._not_before) - now)
        elif client.probe_due():
            pause = min(pause, max(_FIRST_PAUSE_S, self._not_before - now))
        return max(0.0, pause)

    def _deliver(self, record: Record) -> None:
        if not record.wants_delivery or record.owned:
            return
        if not current().delivers or client.gone():
            counters.add("deliveries_given_up")
            record.settle(delivery=True)
            return
        try:
            body = {key: entry for key, entry in record.event.items() if key != "waiter"}
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            counters.add("spool_unreadable")
            logger.error("%s can't be read from the spool: %s", record.error_id, error)  # noqa: TRY400
            record.settle(row=True, delivery=True)
            return
        body["age_ms"] = record.age_ms()
        record.attempts += 1
        try:
            answer = client.post("/v1/errors", body, delivery_id=record.error_id, timeout_s=SEND_TIMEOUT_S)
        except client.Unreachable as error:
            self._unreachable(record, error)
            return
        except client.NotAdmitted as refused:
            self._not_admitted(record, refused)
            return
        except client.Refused as refused:
            counters.add("deliveries_refused")
            logger.error("The service refused %s: %s", record.error_id, refused)  # noqa: TRY400
            if record.spool is not None:
                record.spool.refuse(record.error_id, str(refused))
            record.settle(delivery=True)
            return
        self._failures = 0
        counters.add("delivered")
        self._delivered(record, answer)

    def _delivered(self, record: Record, answer: dict[str, Any]) -> None:
        report = answer.get("recovery")
        if isinstance(report, dict):
            if record.wants_row:
                record.answer = answer
            if not record.wants_row:
                severity = answer.get("severity")
                self._writer.call(
                    lambda: rows.update(record.error_id, report=report, severity=severity), timeout_s=SEND_TIMEOUT_S
                )
        record.settle(delivery=True)

    def _unreachable(self, record: Record, error: client.Unreachable) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning("The service can't be reached (%s); events wait in the spool", error)
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10))
        pause = error.retry_after_s if error.retry_after_s is not None else longest * random.uniform(0.5, 1.0)  # noqa: S311
        self._not_before = time.monotonic() + pause
        # An event that the service itself trips over must not keep the others back. Where the service says when, it is
        # taken at its word.
        self.submit(record, delay_s=pause if error.retry_after_s is not None else pause * min(record.attempts, 10))

    def _not_admitted(self, record: Record, refused: client.NotAdmitted) -> None:
        """Wait for someone to mend the settings; what is in the spool is not lost for a secret that was mistyped."""
        self._failures += 1
        counters.add("deliveries_not_admitted")
        if self._failures == 1:
            logger.error("The service does not admit this application (%s); events wait in the spool", refused)
        self._not_before = time.monotonic() + _LONGEST_PAUSE_S
        self.submit(record, delay_s=_LONGEST_PAUSE_S)

    def _probe(self) -> None:
        if client.probe():
            self._failures = 0
            return
        self._failures += 1
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10))
        self._not_before = time.monotonic() + longest * random.uniform(0.5, 1.0)  # noqa: S311

    def _put_back(self, record: Record) -> None:
        self.submit(record, delay_s=_LONGEST_PAUSE_S)

    def _adopt(self) -> None:
        if time.monotonic() - self._adopted_at < ADOPT_EVERY_S:
            return
        self._adopted_at = time.monotonic()
        try:
            spool = spool_now()
            names = spool.adopt() if spool is not None else []
        except Exception:
            counters.add("drainer_failures")
            logger.exception("What dead processes left could not be taken over")
            return
        for name in names:
            try:
                self._take_over(spool, name)
            except Exception:
                counters.add("drainer_failures")
                logger.exception("%s could not be taken over", name)

    def _take_over(self, spool: Spool | None, name: str) -> None:
        record = adopted(spool, name) if spool is not None else None
        if record is None:
            return
        counters.add("adopted")
        record.wants_delivery = current().delivers
        if record.wants_row:
            self._writer.submit(record)
        if record.wants_delivery:
            self.submit(record)
        record.settle()

    def _yield_cpu(self, used_s: float) -> None:
        pause = used_s * (1 / SHARE_OF_CPU - 1)
        if pause > 0.0005 and not self._stopping:
            time.sleep(min(pause, 0.5))


writer = Writer()
drainer = Drainer(writer)
_spool: Spool | None = None
_spool_key: tuple[Any, ...] | None = None
_spool_failed_at = float("-inf")
_spool_lock = threading.Lock()
_started = False
_inherited: list[Any] = []


def start() -> None:
    """Start this process's threads, unless they run."""
    global _started
    if _started:
        return
    _started = True
    writer.start()
    drainer.start()
    atexit.register(_at_exit, process.instance())


def start_with_first_request() -> None:
    """A server process has the threads from its first request on, so that what a dead one left is delivered."""
    request_started.connect(_first_request, dispatch_uid="error_logging.drain")


def spool_now() -> Spool | None:
    """The spool as the settings say now; None where it can't be used."""
    global _spool, _spool_key, _spool_failed_at
    conf = current()
    key = (conf.spool_dir, rows.identity(), conf.spool_max_files, conf.spool_fsync)
    if key == _spool_key and _spool is not None:
        return _spool
    with _spool_lock:
        if key == _spool_key and (_spool is not None or time.monotonic() - _spool_failed_at < _REOPEN_S):
            return _spool
        if _spool is not None:
            # Records under way still use it, so it keeps its lock.
            _inherited.append(_spool)
        _spool_key, _spool = key, None
        try:
            _spool = Spool(conf.spool_dir, key[1], max_files=conf.spool_max_files, fsync=conf.spool_fsync)
        except SpoolUnusable as error:
            _spool_failed_at = time.monotonic()
            counters.add("spool_unusable")
            logger.error("Errors can't be spooled: %s", error)  # noqa: TRY400
        return _spool


def settle(timeout_s: float = 5.0) -> bool:
    """Wait until all rows are written and all events delivered; for tests and the end of scripts."""
    deadline = time.monotonic() + timeout_s
    written = writer.settle(timeout_s)
    return drainer.settle(max(0.0, deadline - time.monotonic())) and written


def _first_request(**_: object) -> None:
    request_started.disconnect(dispatch_uid="error_logging.drain")
    try:
        start()
    except Exception:
        logger.exception("The threads could not be started")


def _at_exit(owner: str) -> None:
    if process.instance() != owner:
        return
    writer.stop(_EXIT_S)
    drainer.stop(_EXIT_S / 2)
    for spool in [_spool, *(entry for entry in _inherited if isinstance(entry, Spool))]:
        if spool is not None:
            spool.close()


def _renew() -> None:
    """In a forked child: the threads stayed with the parent, and so did its spool and its connection."""
    global writer, drainer, _spool, _spool_key, _spool_lock, _started
    # Kept alive, lest the garbage collector close what the parent still uses.
    _inherited.extend((writer, drainer))
    for spool in [_spool, *(entry for entry in _inherited if isinstance(entry, Spool))]:
        if spool is not None:
            spool.forget()
    writer = Writer()
    drainer = Drainer(writer)
    _spool, _spool_key, _spool_lock, _started = None, None, threading.Lock(), False
    start_with_first_request()


process.after_fork(_renew)
