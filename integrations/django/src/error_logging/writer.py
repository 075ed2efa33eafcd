"""The thread that writes rows: one for each process, with a connection of its own.

What a request writes on its own connection is lost with its transaction, or fails in an aborted one, and may find the
pool exhausted or the database silent. So it hands the record over, and waits for the row only as long as it likes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from django.core import mail
from django.db import connections
from django.db.utils import DataError, IntegrityError
from django.db.utils import Error as DatabaseUnwell

from error_logging import counters, rows
from error_logging.breaker import Breaker
from error_logging.record import Record

logger = logging.getLogger("error_logging")

BATCH = 100
MAX_UNSPOOLED = 200
"""Records in memory only, at most; with neither disk nor database there is nowhere else."""
IDLE_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LOG_EVERY_S = 60.0


class Writer:
    """Writes submitted records in batches, in their order, until each is written or can never be."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[Record] = deque()
        self._jobs: deque[_Job] = deque()
        self._breaker = Breaker()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._busy = False
        self._failures = 0
        self._logged_at = float("-inf")
        self._connection: Any = None
        self._database = ""

    @property
    def healthy(self) -> bool:
        """Whether the last batch was written, and in time."""
        return self._breaker.closed

    def start(self) -> None:
        with self._condition:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="upright-writer", daemon=True)
                self._thread.start()

    def submit(self, record: Record, *, wait_s: float = 0.0) -> bool:
        """Have the record's row written. Waits for it while the database is well: True if it is there."""
        done = threading.Event() if wait_s > 0 and self.healthy else None
        with self._condition:
            if record.spool is None and len(self._waiting) >= MAX_UNSPOOLED:
                counters.add("rows_dropped")
                logger.error("ErrorLog row of %s dropped: neither spool nor database can take it", record.error_id)
                record.settle(row=True)
                return False
            record.written = done
            self._waiting.append(record)
            if len(self._waiting) > 2 * BATCH:
                record.unload()
            self._condition.notify_all()
        if done is None:
            return False
        if done.wait(wait_s):
            return not record.wants_row
        # Nobody else waits, until the thread has written something.
        self._breaker.failed()
        counters.add("row_timeouts")
        return False

    def call(self, work: Callable[[], int], *, timeout_s: float) -> int | None:
        """Run `work` in this thread, on its connection; its result, or None where it failed or took too long."""
        job = _Job(work)
        with self._condition:
            if self._thread is None:
                return None
            self._jobs.append(job)
            self._condition.notify_all()
        if not job.done.wait(timeout_s):
            job.abandoned = True
            return None
        return job.result

    def settle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to write."""
        with self._condition:
            return self._condition.wait_for(lambda: not (self._waiting or self._jobs or self._busy), timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Write what can be written in the time, then end the thread."""
        if self._failures == 0:
            self.settle(timeout_s)
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._condition:
                found = self._condition.wait_for(lambda: self._waiting or self._jobs or self._stopping, IDLE_S)
                if self._stopping:
                    break
                job = self._jobs.popleft() if self._jobs else None
                batch = list(islice(self._waiting, BATCH)) if job is None else []
                self._busy = bool(found)
            try:
                if job is not None:
                    self._do(job)
                elif batch:
                    self._write(batch)
                else:
                    self._close()
            except Exception as error:
                self._failed(error)
            finally:
                with self._condition:
                    self._busy = False
                    self._condition.notify_all()
            self._rest()
        self._close()

    def _do(self, job: _Job) -> None:
        try:
            if not job.abandoned:
                self._connect()
                job.result = self._again_if_stale(job.work)
        except Exception as error:
            logger.warning("ErrorLog could not be updated: %s", type(error).__name__)
            self._close()
        finally:
            self._close_under_test()
            job.done.set()

    def _write(self, batch: list[Record]) -> None:
        self._connect()
        ready = [record for record in batch if _readable(record)]
        try:
            if ready:
                self._again_if_stale(lambda: rows.write(ready))
        except Exception as error:
            if not _of_the_record(error):
                raise
            # One of them can't be stored; the others can.
            for record in ready:
                self._write_alone(record)
        self._close_under_test()
        self._failures = 0
        self._breaker.succeeded()
        with self._condition:
            for _ in batch:
                self._waiting.popleft()
        for record in batch:
            record.settle(row=True)
            if record.written is not None:
                record.written.set()
                record.written = None
            if record.wants_delivery and not record.owned:
                record.unload()
        counters.add("rows_written", len(ready))

    def _write_alone(self, record: Record) -> None:
        try:
            rows.write([record])
        except Exception as error:
            if not _of_the_record(error):
                raise
            counters.add("rows_refused")
            logger.exception("ErrorLog row of %s can't be stored", record.error_id)
            if record.spool is not None:
                record.spool.refuse(record.error_id, "its row can't be stored")

    def _again_if_stale(self, work: Callable[[], Any]) -> Any:
        """A connection that was idle may have died with the server; a fresh one deserves a try of its own."""
        used = self._connection.connection is not None
        try:
            return work()
        except Exception as error:
            if not used or _of_the_record(error):
                raise
            self._connection.close()
            return work()

    def _connect(self) -> None:
        database = rows.identity()
        if self._connection is None or self._database != database:
            self._close()
            self._connection = rows.use_own_connection()
            self._database = database

    def _close(self) -> None:
        if self._connection is not None:
            try:
                self._connection.close()
            except Exception as error:
                logger.debug("Closing the connection failed: %s", error)
            self._connection = None
            connections.close_all()

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._breaker.failed()
        counters.add("row_failures")
        self._close()
        with self._condition:
            for record in self._waiting:
                if record.written is not None:
                    # Whoever waits need not wait on.
                    record.written.set()
                    record.written = None
            for record in islice(self._waiting, BATCH, None):
                record.unload()
        if time.monotonic() - self._logged_at > _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning("ErrorLog can't be written now (%s); errors wait in the spool", type(error).__name__)

    def _close_under_test(self) -> None:
        """A test database can't be dropped while a connection is open: none is, once whoever waits goes on."""
        if _under_test():
            self._close()

    def _rest(self) -> None:
        if self._failures == 0:
            return
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures, 10))
        with self._condition:
            self._condition.wait_for(lambda: self._stopping or self._jobs, longest * random.uniform(0.5, 1.0))  # noqa: S311


class _Job:
    def __init__(self, work: Callable[[], int]) -> None:
        self.work = work
        self.result: int | None = None
        self.done = threading.Event()
        self.abandoned = False


def _of_the_record(error: Exception) -> bool:
    """Whether it is the record's own fault, and would be every time; anything else may be over soon. What is spooled
    may come from another version, or from an editor, so that any exception may be raised over it."""
    return isinstance(error, DataError | IntegrityError) or not isinstance(error, DatabaseUnwell | OSError)


def _readable(record: Record) -> bool:
    try:
        _ = record.event
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        counters.add("spool_unreadable")
        logger.exception("%s can't be read from the spool", record.error_id)
        record.settle(delivery=True)
        return False
    return True


def _under_test() -> bool:
    """Django's test environment has an outbox."""
    return hasattr(mail, "outbox")
