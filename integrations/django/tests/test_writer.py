"""The writer: one thread with a connection of its own, that writes what can be written and passes by what can't."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.test import override_settings
from faults import rows as seen

from error_logging import counters, drain, events, rows, writer
from error_logging.models import ErrorLog
from error_logging.record import Record
from error_logging.spool import Spool
from error_logging.writer import Writer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def running() -> Iterator[Writer]:
    made = Writer()
    made.start()
    yield made
    made.stop(5)


@pytest.fixture
def kept_open(monkeypatch: pytest.MonkeyPatch, running: Writer) -> Writer:
    """As in production, where the connection stays open between batches."""
    monkeypatch.setattr(writer, "_under_test", lambda: False)
    return running


def record(message: str = "broken", *, spool: Spool | None = None, **changed: Any) -> Record:
    try:
        raise ValueError(message)
    except ValueError as error:
        event = {**events.build(error), **changed}
    made = Record(event["error_id"], event, began=time.monotonic(), spool=spool)
    if spool is not None:
        spool.put(made.error_id, made.payload())
    return made


def backend(of: Writer) -> int:
    """The server process behind its connection."""
    from django.db import connection

    def ask() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    pid = of.call(ask, timeout_s=10)
    assert pid is not None
    return pid


def end(postgres: Any, pid: int) -> None:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as outside:
        outside.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def number_of_backends(postgres: Any) -> int:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as outside:
        (row,) = outside.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'test_site'").fetchall()
        return int(row[0])


def test_whoever_waits_finds_the_row(running: Writer, postgres: Any) -> None:
    one = record()
    assert running.submit(one, wait_s=10)
    assert seen(postgres) == [one.error_id]


def test_the_same_record_twice_is_one_row(running: Writer) -> None:
    one = record()
    running.submit(one, wait_s=10)
    one.wants_row = True
    running.submit(one, wait_s=10)
    assert ErrorLog.objects.count() == 1


def test_the_one_with_the_answer_wins_in_either_order(running: Writer) -> None:
    first = record()
    answered = Record(first.error_id, first.event, began=0, spool=None)
    report = {"attempted": True, "success": True, "status": "recovered", "message": "", "actions": []}
    answered.answer = {"severity": "critical", "recovery": report}
    again = Record(first.error_id, first.event, began=0, spool=None)
    for one in (first, answered, again):
        running.submit(one, wait_s=10)
    row = ErrorLog.objects.get()
    assert (row.severity, row.resolved) == ("critical", True)


@pytest.mark.parametrize("changed", [
    {"request": ["no object"]}, {"error": "no object"}, {"error": {"type": "x"}}, {"occurred_at": "yesterday"},
    {"occurred_at": 5}, {"environment": "x" * 51}, {"context": "no object"}, {"service": {"a": 1}, "environment": None},
    {"request": {"route": 5, "method": "GET"}},
])  # fmt: skip
def test_what_cannot_be_stored_holds_back_nothing_else(
    running: Writer, spool_dir: Path, changed: dict[str, Any]
) -> None:
    """A file of an older version, or one that somebody edited, must not stop all rows for ever."""
    spool = Spool(spool_dir, "x", max_files=100)
    bad = record(spool=spool)
    bad._event = {**bad.event, **changed}
    before, after = record(), record()
    for one in (before, bad, after):
        running.submit(one)
    assert running.settle(20)
    assert {str(row.error_id) for row in ErrorLog.objects.all()} == {before.error_id, after.error_id}
    assert (spool_dir / "refused" / f"{bad.error_id}.json").exists()
    assert not bad.wants_row
    spool.close()


def test_a_record_whose_file_is_gone_holds_back_nothing_else(running: Writer, spool_dir: Path) -> None:
    spool = Spool(spool_dir, "x", max_files=100)
    lost, kept = record(spool=spool), record()
    lost.unload()
    spool.remove(lost.error_id)
    running.submit(lost)
    running.submit(kept)
    assert running.settle(20)
    assert str(ErrorLog.objects.get().error_id) == kept.error_id
    spool.close()


def test_a_connection_that_died_while_idle_is_replaced_at_once(kept_open: Writer, postgres: Any) -> None:
    kept_open.submit(record(), wait_s=10)
    before = number_of_backends(postgres)
    end(postgres, backend(kept_open))
    failures = counters.snapshot().get("row_failures", 0)
    assert kept_open.submit(record(), wait_s=10)
    assert counters.snapshot().get("row_failures", 0) == failures
    for _ in range(3):
        assert kept_open.submit(record(), wait_s=10)
    assert number_of_backends(postgres) == before


def test_an_update_after_the_connection_died(kept_open: Writer, postgres: Any) -> None:
    one = record()
    kept_open.submit(one, wait_s=10)
    end(postgres, backend(kept_open))
    report = {"attempted": True, "success": False, "status": "not_recovered", "message": "", "actions": []}
    assert kept_open.call(lambda: rows.update(one.error_id, report=report), timeout_s=10) == 1


def test_work_that_fails_is_none_and_harms_nobody(running: Writer) -> None:
    def fails() -> int:
        raise RuntimeError("no")

    assert running.call(fails, timeout_s=10) is None
    assert running.submit(record(), wait_s=10)


def test_without_a_thread_there_is_no_answer() -> None:
    assert Writer().call(lambda: 1, timeout_s=10) is None


def test_work_that_takes_too_long_is_not_done_later(running: Writer) -> None:
    import threading

    gate, done = threading.Event(), threading.Event()
    running.call(lambda: (gate.wait(10) and 1) or 1, timeout_s=0)
    assert running.call(lambda: done.set() or 1, timeout_s=0) is None  # type: ignore[func-returns-value]
    gate.set()
    assert running.settle(10)
    assert not done.is_set()


def test_its_limits_do_not_stay_on_the_connection(kept_open: Writer, postgres: Any) -> None:
    kept_open.submit(record(), wait_s=10)

    def setting() -> int:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout') || current_setting('statement_timeout')")
            assert cursor.fetchone()[0] == "00"
        return 1

    assert kept_open.call(setting, timeout_s=10) == 1


def test_at_its_end_it_writes_what_it_has(postgres: Any) -> None:
    ending = Writer()
    records = [record() for _ in range(150)]
    ending.start()
    for one in records:
        ending.submit(one)
    ending.stop(20)
    assert sorted(seen(postgres)) == sorted(one.error_id for one in records)


def test_thousands_that_wait_are_left_to_the_disk(spool_dir: Path) -> None:
    spool = Spool(spool_dir, "x", max_files=1000)
    idle = Writer()  # not started: a database that is away
    records = [record(spool=spool) for _ in range(300)]
    for one in records:
        idle.submit(one)
    assert sum(one._event is not None for one in records) <= 2 * writer.BATCH
    assert records[-1].event["error_id"] == records[-1].error_id
    spool.close()


def test_naive_times_where_the_project_has_them(running: Writer) -> None:
    with override_settings(USE_TZ=False):
        assert running.submit(record(), wait_s=10)


def test_rows_go_to_the_database_that_the_router_names(running: Writer) -> None:
    assert rows.alias() == "default"
    assert drain.spool_now() is not None


def test_a_file_that_cannot_be_opened_now_is_read_later(
    running: Writer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a storm the file descriptors may run out: the event is not lost for it."""
    spool = Spool(spool_dir, "x", max_files=100)
    one = record(spool=spool)
    one.unload()
    read, failures = spool.read, [OSError(errno.EMFILE, "Too many open files")]

    def short_of_descriptors(name: str) -> bytes:
        if failures:
            raise failures.pop()
        return read(name)

    monkeypatch.setattr(spool, "read", short_of_descriptors)
    running.submit(one)
    assert running.settle(20)
    assert str(ErrorLog.objects.get().error_id) == one.error_id
    spool.close()
