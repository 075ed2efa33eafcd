"""Recording: the row is there when the caller has its answer, whatever transaction it is in and whatever fails."""

from __future__ import annotations

import io
import os
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import django.db
import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.test import Client, TestCase
from faults import DatabaseProxy, rows

from error_logging import counters, drain, events, recording
from error_logging.models import ErrorLog
from error_logging.record import Record

real = pytest.mark.django_db(transaction=True)


def captured(message: str = "broken") -> Record:
    try:
        raise ValueError(message)
    except ValueError as error:
        return recording.capture(events.build(error), began=time.monotonic())


def recorded(message: str = "broken", **more: Any) -> Record:
    record = captured(message)
    recording.finish(record, **{"answer": None, "delivered": False, **more})
    return record


def answer(status: str = "recovered", *, strategy: str = "retry", severity: str = "high") -> dict[str, Any]:
    verdict = "recovered" if status == "recovered" else "not_recovered"
    action = {"strategy": strategy, "success": status == "recovered", "verdict": verdict}
    report = {"attempted": True, "success": status == "recovered", "status": status, "message": status, "actions": []}
    return {"severity": severity, "recovery": {**report, "actions": [action]}}


def spooled(place: Path) -> list[str]:
    return sorted(path.stem for path in place.rglob("*.json"))


@pytest.fixture
def proxy(postgres: Any) -> Iterator[DatabaseProxy]:
    """In front of the database, for this process."""
    drain.settle()
    with DatabaseProxy(postgres.socket_dir) as between:
        settings_dict = connections["default"].settings_dict
        connection.close()
        connection.close_pool()
        settings_dict["HOST"] = str(between.directory)
        yield between
        between.become("forward")
        drain.settle(20)
        connection.close()
        connection.close_pool()
        settings_dict["HOST"] = str(postgres.socket_dir)


@real
def test_the_row_is_there_when_the_caller_goes_on(postgres: Any, spool_dir: Path) -> None:
    record = recorded("it broke", answer=answer())
    assert rows(postgres) == [record.error_id]
    row = ErrorLog.objects.get()
    assert (row.error_type, row.message, row.severity, row.resolved) == ("ValueError", "it broke", "high", True)
    assert row.context["recovery_success"] is True
    assert row.context["recovery_strategy"] == "retry"
    assert spooled(spool_dir) == []


@real
def test_the_row_survives_the_rollback_of_the_request(postgres: Any) -> None:
    with transaction.atomic():
        User.objects.create(username="ada")
        record = recorded()
        transaction.set_rollback(True)
    assert rows(postgres) == [record.error_id]
    assert not User.objects.exists()


@real
def test_it_is_written_in_an_aborted_transaction_too(postgres: Any) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        with pytest.raises(django.db.ProgrammingError):
            cursor.execute("SELECT nothing FROM nowhere")
        record = recorded()
        transaction.set_rollback(True)
    assert rows(postgres) == [record.error_id]


@real
def test_it_is_written_while_the_pool_is_exhausted(postgres: Any) -> None:
    pool = connection.pool
    pool.open()
    held = [pool.getconn() for _ in range(pool.max_size)]
    try:
        record = recorded()
        assert rows(postgres) == [record.error_id]
    finally:
        for one in held:
            pool.putconn(one)


@real
def test_a_table_that_is_locked_holds_nobody(postgres: Any, spool_dir: Path) -> None:
    import psycopg

    with psycopg.connect(postgres.url("test_site")) as migration:
        migration.execute("LOCK TABLE error_logging_errorlog IN ACCESS EXCLUSIVE MODE")
        record = recorded()
        assert spooled(spool_dir) == [record.error_id]
    assert drain.settle(20)
    assert rows(postgres) == [record.error_id]


@pytest.mark.django_db
def test_in_a_test_case_the_row_is_in_the_tests_own_transaction(postgres: Any, spool_dir: Path) -> None:
    record = recorded(answer=answer())
    assert ErrorLog.objects.get(error_id=record.error_id).resolved
    assert rows(postgres) == []
    assert spooled(spool_dir) == []


class Inner(TestCase):
    """Run by the test below, as an application's own."""

    def test_rows(self) -> None:
        ErrorLog.objects.create(service="shop", error_type="ValueError")
        assert Client().get("/broken/").status_code == 400
        with transaction.atomic():
            record = captured()
            recording.finish_later(record)
            transaction.set_rollback(True)
        recording.write_deferred()
        assert ErrorLog.objects.count() == 3


Inner.__test__ = False  # type: ignore[attr-defined]


@real
def test_a_test_cases_rows_end_with_it(postgres: Any, spool_dir: Path) -> None:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Inner)
    result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures
    assert drain.settle()
    assert rows(postgres) == []
    assert spooled(spool_dir) == []


@pytest.mark.django_db
def test_a_test_whose_block_is_broken_goes_on_without_the_row(caplog: pytest.LogCaptureFixture) -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        record = captured()
        recording.finish(record, answer=None, delivered=False)
    assert not ErrorLog.objects.exists()
    recording.write_deferred()
    assert str(ErrorLog.objects.get().error_id) == record.error_id


@real
@pytest.mark.parametrize("mode", ["refuse", "silent"])
def test_a_database_that_does_not_answer_holds_nobody_and_gets_the_row_later(
    proxy: DatabaseProxy, postgres: Any, spool_dir: Path, mode: Any
) -> None:
    proxy.become(mode)
    records = [recorded(str(number)) for number in range(5)]
    # Whoever had waited for the database would still be waiting: it hasn't come back.
    assert sorted(spooled(spool_dir)) == sorted(record.error_id for record in records)
    assert rows(postgres) == []
    proxy.become("forward")
    assert drain.settle(30)
    assert sorted(rows(postgres)) == sorted(record.error_id for record in records)
    assert spooled(spool_dir) == []


@real
def test_once_the_database_is_well_again_the_row_is_there_at_once(proxy: DatabaseProxy, postgres: Any) -> None:
    proxy.become("refuse")
    recorded()
    proxy.become("forward")
    assert drain.settle(30)
    assert drain.writer.healthy
    record = recorded()
    assert record.error_id in rows(postgres)


@real
def test_a_request_is_answered_with_the_database_gone(proxy: DatabaseProxy, postgres: Any) -> None:
    proxy.become("refuse")
    response = Client().get("/broken/")
    assert response.status_code == 400
    proxy.become("forward")
    assert drain.settle(30)
    assert rows(postgres) == [response.json()["error"]["error_id"]]


@real
def test_neither_disk_nor_database(proxy: DatabaseProxy, settings: Any, tmp_path: Path, postgres: Any) -> None:
    (tmp_path / "file").touch()
    settings.UPRIGHT_SPOOL_DIR = str(tmp_path / "file")
    proxy.become("refuse")
    before = counters.snapshot().get("rows_dropped", 0)
    for _ in range(210):
        recorded()
    assert counters.snapshot()["rows_dropped"] == before + 10
    proxy.become("forward")
    assert drain.settle(30)
    assert len(rows(postgres)) == 200


@real
def test_a_full_spool_still_has_the_row_written(settings: Any, postgres: Any, spool_dir: Path) -> None:
    settings.UPRIGHT_SPOOL_MAX_FILES = 1
    drain.spool_now().put("filler", b"{}")  # type: ignore[union-attr]
    before = counters.snapshot().get("spool_full", 0)
    record = recorded()
    assert counters.snapshot()["spool_full"] == before + 1
    assert rows(postgres) == [record.error_id]


@real
def test_a_storm_from_many_threads_is_all_there_once(postgres: Any, spool_dir: Path) -> None:
    ids: list[str] = []

    def fail() -> None:
        ids.extend(recorded(f"{number}").error_id for number in range(20))

    threads = [threading.Thread(target=fail) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drain.settle(30)
    assert sorted(rows(postgres)) == sorted(ids)
    assert spooled(spool_dir) == []


@real
def test_a_forked_child_records_with_threads_of_its_own(postgres: Any, tmp_path: Path) -> None:
    mine = recorded()
    told = tmp_path / "told"
    child = os.fork()
    if child == 0:
        try:
            record = recorded("in the child")
            drain.settle()
            told.write_text(record.error_id)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    after = recorded("in the parent, afterwards")
    assert sorted(rows(postgres)) == sorted([mine.error_id, told.read_text(), after.error_id])


@real
def test_an_answer_for_a_past_error_is_put_into_its_row() -> None:
    row = ErrorLog.objects.create(service="shop", error_type="TimeoutError", context={"pending_requests": 15})
    assert recording.apply_answer(str(row.error_id), answer(severity="critical"))
    row.refresh_from_db()
    assert row.context["pending_requests"] == 15
    assert (row.context["recovery_success"], row.severity, row.resolved) == (True, "critical", True)
    assert not recording.apply_answer(str(uuid4()), answer())
    assert not recording.apply_answer(str(row.error_id), {"recovery": None})


@real
def test_an_answer_for_a_row_that_only_this_transaction_sees() -> None:
    with transaction.atomic():
        row = ErrorLog.objects.create(service="shop", error_type="TimeoutError")
        assert recording.apply_answer(str(row.error_id), answer())
        row.refresh_from_db()
        assert row.resolved


def outcome(error_id: object, status: str = "recovered", **more: Any) -> dict[str, Any]:
    return {
        "recovery_id": str(uuid4()), "error_id": str(error_id), "strategy": "pool_increase",
        "report": answer(status)["recovery"], **more,
    }  # fmt: skip


@real
def test_an_outcome_is_applied_once_and_again_without_harm() -> None:
    row = ErrorLog.objects.create(service="shop", error_type="TimeoutError")
    told = outcome(row.error_id)
    assert recording.apply_outcome(told)
    assert recording.apply_outcome(told)
    row.refresh_from_db()
    assert row.context["recovery_strategy"] == "pool_increase"
    assert row.resolved
    assert ErrorLog.objects.count() == 1
    relapse = outcome(row.error_id, "not_recovered")
    assert recording.apply_outcome(relapse)
    row.refresh_from_db()
    assert not row.resolved


@real
def test_a_pending_report_takes_no_final_ones_place() -> None:
    row = ErrorLog.objects.create(service="shop", error_type="TimeoutError")
    recording.apply_outcome(outcome(row.error_id))
    assert recording.apply_outcome(outcome(row.error_id, "pending"))
    row.refresh_from_db()
    assert row.resolved


@real
def test_an_outcome_waits_for_its_row_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    told = outcome(uuid4())
    assert not recording.apply_outcome(told)
    monkeypatch.setattr(recording, "MISSING_ROW_S", 0)
    assert recording.apply_outcome(told)
    assert not ErrorLog.objects.exists()


@real
def test_an_outcome_comes_again_while_the_database_is_away(proxy: DatabaseProxy) -> None:
    row = ErrorLog.objects.create(service="shop", error_type="TimeoutError")
    connection.close()
    proxy.become("refuse")
    told = outcome(row.error_id)
    assert not recording.apply_outcome(told)
    proxy.become("forward")
    assert recording.apply_outcome(told)


@pytest.mark.parametrize("told", [
    {}, {"error_id": "x", "report": {}}, {"error_id": str(uuid4())}, {"error_id": str(uuid4()), "report": []},
    {"error_id": None, "report": {}},
])  # fmt: skip
def test_an_outcome_that_nobody_can_read_does_not_come_again(told: dict[str, Any]) -> None:
    assert recording.apply_outcome(told)
