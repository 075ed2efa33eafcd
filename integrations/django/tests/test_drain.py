"""The drainer: every event reaches the service, whenever that is, and no event holds the others back."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client, override_settings
from faults import until

from error_logging import client, counters, drain, events, recording, rows
from error_logging.drain import Drainer
from error_logging.models import ErrorLog
from error_logging.record import Record
from error_logging.spool import Spool
from error_logging.testing import Received, Reply, ScriptedService, closing, pending, recovered, refusal, unsigned
from error_logging.writer import Writer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts, but not their order, are shorter here."""
    monkeypatch.setattr(drain, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(drain, "_LONGEST_PAUSE_S", 0.1)


@pytest.fixture
def drainer() -> Iterator[Drainer]:
    """One of the test's own, with a writer of its own."""
    writer = Writer()
    made = Drainer(writer)
    writer.start()
    yield made
    made.stop(5)
    writer.stop(5)


def captured(message: str = "broken") -> Record:
    try:
        raise ValueError(message)
    except ValueError as error:
        return recording.capture(events.build(error), began=time.monotonic())


def recorded(message: str = "broken", **more: Any) -> Record:
    record = captured(message)
    recording.finish(record, **{"answer": None, "delivered": False, **more})
    return record


def spooled(place: Path) -> list[str]:
    return sorted(path.stem for path in place.rglob("*.json"))


def left_by_a_dead_process(place: Path, *files: tuple[str, bytes]) -> None:
    ended = Spool(place, rows.identity(), max_files=1000)
    for name, payload in files:
        ended.put(name, payload)
    ended.close()


def payload(message: str = "left", **changed: Any) -> tuple[str, bytes]:
    try:
        raise ValueError(message)
    except ValueError as error:
        event = {**events.build(error), **changed}
    return event["error_id"], json.dumps({"event": event, "began_at": time.time() - 60, "row": True}).encode()


def test_what_the_request_did_not_deliver_is_delivered(service: ScriptedService, spool_dir: Path) -> None:
    record = recorded()
    (message,) = service.wait_for("error")
    assert (message.delivery_id, message.error_id, message.wait_ms) == (record.error_id, record.error_id, 0)
    assert "waiter" not in message.body
    assert drain.settle()
    assert spooled(spool_dir) == []


def test_what_the_request_delivered_is_not_sent_again(service: ScriptedService) -> None:
    recorded("delivered", answer=recovered().body, delivered=True)  # type: ignore[arg-type]
    other = recorded()
    assert drain.settle()
    assert [message.error_id for message in service.errors] == [other.error_id]


def test_while_the_request_owns_it_nobody_else_sends_it(service: ScriptedService) -> None:
    record = captured()
    drain.drainer.submit(record)
    other = recorded()
    assert drain.settle()
    assert [message.error_id for message in service.errors] == [other.error_id]
    recording.finish(record, answer=None, delivered=False)
    assert len(service.wait_for("error", 2)) == 2


def test_the_answer_is_put_into_the_row(service: ScriptedService) -> None:
    service.on_error(recovered("pool_increase"))
    record = recorded()
    assert drain.settle()
    row = ErrorLog.objects.get(error_id=record.error_id)
    assert (row.resolved, row.context["recovery_strategy"]) == (True, "pool_increase")


@pytest.mark.parametrize("down", [refusal(500), refusal(429), closing(), unsigned(pending()), unsigned(refusal(404))])
def test_with_the_service_down_they_wait_and_arrive_under_the_same_id(
    service: ScriptedService, spool_dir: Path, down: Reply
) -> None:
    service.always(down)
    records = [recorded(str(number)) for number in range(5)]
    service.wait_for("error", 8)
    assert spooled(spool_dir) == sorted(record.error_id for record in records)
    assert ErrorLog.objects.count() == 5
    service.always(None)
    assert drain.settle(30)
    assert spooled(spool_dir) == []
    attempts: dict[str, list[Received]] = {}
    for message in service.errors:
        attempts.setdefault(message.delivery_id, []).append(message)
        assert message.error_id == message.delivery_id
    assert sorted(attempts) == sorted(record.error_id for record in records)
    assert max(len(tries) for tries in attempts.values()) > 1


def test_a_service_that_refuses_connections_and_comes_back(service: ScriptedService) -> None:
    service.stop()
    record = recorded()
    until(lambda: not client.available())
    service.start()
    assert drain.settle(30)
    assert [message.error_id for message in service.errors] == [record.error_id]


def test_it_looks_whether_the_service_is_back_before_anything_is_to_be_sent(service: ScriptedService) -> None:
    service.stop()
    drain.start()
    with pytest.raises(client.Unreachable):
        client.post("/v1/sync", {}, timeout_s=1)
    assert not client.available()
    service.start()
    drain.drainer.submit(captured())  # wakes it; it isn't its to send
    until(client.available)


def test_how_old_the_error_is_is_told_when_it_is_sent(service: ScriptedService, drainer: Drainer) -> None:
    record = captured()
    record.owned = False
    record.began -= 100
    drainer.submit(record)
    drainer.start()
    assert service.wait_for("error")[0].body["age_ms"] >= 100_000


def test_retry_after_is_taken_at_its_word(service: ScriptedService, drainer: Drainer) -> None:
    service.on_error(refusal(503, retry_after=1000))
    record = captured()
    record.owned, record.attempts = False, 5
    drainer.submit(record)
    drainer.start()
    service.wait_for("error")
    with drainer._condition:
        assert drainer._condition.wait_for(lambda: bool(drainer._due), 10)
        (due, _, _), now = drainer._due[0], time.monotonic()
    assert 900 < due - now <= 1000
    assert 900 < drainer._not_before - now <= 1000


def test_after_a_410_events_are_given_up_and_rows_are_kept(service: ScriptedService, spool_dir: Path) -> None:
    service.on_error(refusal(410))
    for number in range(3):
        recorded(str(number))
    assert drain.settle(20)
    assert len(service.errors) == 1
    assert ErrorLog.objects.count() == 3
    assert [name for name in spooled(spool_dir) if not (spool_dir / "refused" / f"{name}.json").exists()] == []
    recorded("afterwards")
    assert drain.settle(20)
    assert len(service.errors) == 1


def test_what_the_service_refuses_is_kept_with_the_reason(service: ScriptedService, spool_dir: Path) -> None:
    service.on_error(refusal(422, "error.type is missing"))
    record = recorded()
    other = recorded()
    assert drain.settle(20)
    assert spooled(spool_dir) == [record.error_id]
    assert "error.type is missing" in (spool_dir / "refused" / f"{record.error_id}.txt").read_text()
    assert service.errors[-1].error_id == other.error_id


@pytest.mark.parametrize("status", [401, 403])
def test_nothing_is_lost_for_a_secret_that_was_mistyped(
    service: ScriptedService, spool_dir: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(drain, "_LONGEST_PAUSE_S", 0.05)
    service.on_error(refusal(status, "who are you?"), refusal(status, "who are you?"))
    records = [recorded("one"), recorded("two")]
    assert drain.settle(20)
    assert {message.error_id for message in service.errors[2:]} == {record.error_id for record in records}
    assert spooled(spool_dir) == []


def test_an_event_that_the_service_trips_over_holds_back_nothing_else(service: ScriptedService) -> None:
    poison = captured("poison")

    def trip(message: Received) -> Reply:
        return refusal(500) if message.error_id == poison.error_id else pending()

    service.on_error(*[trip] * 200)
    recording.finish(poison, answer=None, delivered=False)
    records = [recorded(str(number)) for number in range(10)]
    wanted = {record.error_id for record in records}
    until(lambda: wanted <= {message.error_id for message in service.errors})


def test_what_a_dead_process_left_is_written_and_delivered(
    service: ScriptedService, drainer: Drainer, spool_dir: Path
) -> None:
    files = [payload(str(number)) for number in range(5)]
    left_by_a_dead_process(spool_dir, *files)
    drainer.start()
    service.wait_for("error", 5)
    assert drainer.settle(20)
    assert drainer._writer.settle(20)
    names = sorted(name for name, _ in files)
    assert sorted(message.error_id for message in service.errors) == names
    assert sorted(str(row.error_id) for row in ErrorLog.objects.all()) == names
    assert spooled(spool_dir) == []
    assert all(message.body["age_ms"] >= 60_000 for message in service.errors)


POISON: list[Callable[[str], bytes]] = [
    lambda name: b"",
    lambda name: b'{"event": {"error_i',
    lambda name: b"\xff\xfe\x00",
    lambda name: b"[" * 200_000,
    lambda name: b"[]",
    lambda name: b"null",
    lambda name: b'{"event": null, "began_at": 0, "row": true}',
    lambda name: b'{"event": {"error_id": "another"}, "began_at": 0, "row": true}',
    lambda name: json.dumps({"event": {"error_id": name}, "began_at": 10**400, "row": True}).encode(),
    lambda name: json.dumps({"event": {"error_id": name}, "began_at": 0, "row": True}).encode(),
    lambda name: json.dumps({"event": {"error_id": name, "error": 5}, "began_at": 0, "row": True}).encode(),
    lambda name: json.dumps({"event": {"error_id": name, "error": {"type": "x", "severity": "low", "classes": 5}},
                             "began_at": "now", "row": True}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(POISON)))
def test_a_file_that_nobody_can_read_holds_back_nothing_else(
    service: ScriptedService, drainer: Drainer, spool_dir: Path, index: int
) -> None:
    bad, good = str(uuid4()), payload()
    left_by_a_dead_process(spool_dir, (bad, POISON[index](bad)), good)
    drainer.start()
    assert service.wait_for("error")[0].error_id == good[0]
    assert drainer.settle(20)
    assert drainer._writer.settle(20)
    assert [str(row.error_id) for row in ErrorLog.objects.all()] == [good[0]]
    assert spooled(spool_dir) == [bad]
    assert (spool_dir / "refused" / f"{bad}.txt").exists()


def test_a_left_event_of_the_wrong_shape_holds_back_nothing_else(
    service: ScriptedService, drainer: Drainer, spool_dir: Path
) -> None:
    odd, good = payload(request=["no object"]), payload()
    left_by_a_dead_process(spool_dir, odd, good)
    drainer.start()
    service.wait_for("error", 2)
    assert drainer._writer.settle(20)
    assert [str(row.error_id) for row in ErrorLog.objects.all()] == [good[0]]


def test_a_left_file_that_cannot_be_opened_now_is_not_lost(
    service: ScriptedService, drainer: Drainer, spool_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard, good = payload("hard"), payload("good")
    left_by_a_dead_process(spool_dir, hard, good)
    read = Spool.read

    def short_of_descriptors(self: Spool, name: str) -> bytes:
        if name == hard[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        return read(self, name)

    monkeypatch.setattr(Spool, "read", short_of_descriptors)
    drainer.start()
    assert service.wait_for("error")[0].error_id == good[0]
    assert drainer.settle(20)
    assert hard[0] in spooled(spool_dir)
    assert not (spool_dir / "refused").exists()


def test_without_a_service_nothing_waits_for_one(spool_dir: Path) -> None:
    recorded()
    assert drain.settle()
    assert spooled(spool_dir) == []
    assert ErrorLog.objects.count() == 1


def test_a_long_outage_fills_the_disk_and_not_the_memory(service: ScriptedService) -> None:
    service.stop()
    idle = Drainer(Writer())  # not started
    records = [captured() for _ in range(drain.MAX_LOADED + 50)]
    for record in records:
        record.owned = False
        idle.submit(record)
    assert sum(record._event is not None for record in records) <= drain.MAX_LOADED + 1
    idle.forget()


def test_with_neither_disk_nor_service_the_memory_is_bounded(tmp_path: Path, service: ScriptedService) -> None:
    service.stop()
    idle = Drainer(Writer())
    (tmp_path / "file").touch()
    before = counters.snapshot().get("deliveries_dropped", 0)
    with override_settings(UPRIGHT_SPOOL_DIR=str(tmp_path / "file")):
        for _ in range(210):
            record = captured()
            record.owned = False
            idle.submit(record)
    assert counters.snapshot()["deliveries_dropped"] == before + 10
    idle.forget()


def test_a_request_with_the_service_down_is_answered_and_delivered_later(service: ScriptedService) -> None:
    service.stop()
    answer = Client().get("/broken/").json()
    assert answer["recovery"]["status"] == "pending"
    service.start()
    (message,) = service.wait_for("error", timeout_s=30)
    assert message.delivery_id == answer["error"]["error_id"]


def test_a_process_that_ends_leaves_what_it_could_not_deliver(spool_dir: Path, postgres: Any) -> None:
    code = f"""
import django, time
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["error_logging"], UPRIGHT_SPOOL_DIR={str(spool_dir)!r}, UPRIGHT_URL="http://127.0.0.1:9",
    UPRIGHT_SECRET="whsec_{"A" * 40}", USE_TZ=True,
    DATABASES={{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": "test_site", "USER": "postgres",
                             "HOST": {str(postgres.socket_dir)!r}}}}},
)
django.setup()
from error_logging import events, recording
try:
    raise ValueError("at the end")
except ValueError as error:
    record = recording.capture(events.build(error), began=time.monotonic())
recording.finish(record, answer=None, delivered=False)
print(record.error_id)
"""
    told = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() in {str(row.error_id) for row in ErrorLog.objects.all()}
    assert spooled(spool_dir) == [told.stdout.strip()]
