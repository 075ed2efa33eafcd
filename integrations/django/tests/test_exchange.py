"""The waiting caller's exchange with the service, command by command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace as changed
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection

from error_logging import client, desired_state, events, exchange
from error_logging.record import Record
from error_logging.testing import (
    Received,
    Reply,
    ScriptedService,
    action,
    apply,
    closing,
    directive,
    final,
    garbage,
    pending,
    probe,
    recovered,
    redirect,
    refusal,
    replay,
    report,
    retry,
    signed_for_another,
    unsigned,
)

pytestmark = pytest.mark.django_db

Evidence = dict[str, Any]


def evidence(outcome: str, kind: str = "replay") -> Evidence:
    return {"kind": kind, "outcome": outcome, "detail": "", "attempts": 1, "duration_ms": 1.0}


class Operation:
    """The caller's own: its outcomes, in turn; the last one stays."""

    def __init__(self, *outcomes: str, kind: str = "replay") -> None:
        self.outcomes = list(outcomes)
        self.kind = kind
        self.done = 0

    def __call__(self) -> Evidence:
        self.done += 1
        return evidence(self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0], self.kind)


def record_of(exc: Exception | None = None, **measurements: Any) -> Record:
    event = events.build(exc or ValueError("it is broken"))
    event["measurements"] = measurements
    return Record(event["error_id"], event, began=time.monotonic(), spool=None)


def run_in_thread(record: Record, *, replay: Operation | None = None, probe: Operation | None = None) -> exchange.Ended:
    return exchange.run(record, replay=replay, probe=probe)


def run_in_loop(record: Record, *, replay: Operation | None = None, probe: Operation | None = None) -> exchange.Ended:
    async def again() -> Evidence:
        assert replay is not None
        return replay()

    async def run() -> exchange.Ended:
        return await exchange.arun(record, replay=again if replay is not None else None, probe=probe)

    return async_to_sync(run)()


@pytest.fixture(params=[run_in_thread, run_in_loop], ids=["thread", "loop"])
def run(request: pytest.FixtureRequest) -> Callable[..., exchange.Ended]:
    """The same conversation, either way."""
    return request.param


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("error_logging.exchange.random.uniform", lambda low, high: high)


class TestTheEvent:
    def test_it_says_what_the_caller_can_and_how_long_it_has(self, service: ScriptedService, run: Any) -> None:
        run(record_of(), replay=Operation("passed"), probe=Operation("passed"))
        waiter = service.errors[0].body["waiter"]
        assert waiter["can"] == ["apply", "replay", "retry", "probe"]
        assert 0 < waiter["budget_ms"] <= 5000

    def test_its_id_is_the_errors(self, service: ScriptedService, run: Any) -> None:
        record = record_of()
        run(record)
        (sent,) = service.errors
        assert (sent.delivery_id, sent.error_id, sent.tenant) == (record.error_id, record.error_id, "default")

    def test_the_final_answer_is_the_answer(self, service: ScriptedService, run: Any) -> None:
        service.on_error(recovered("pool_increase"))
        ended = run(record_of())
        assert ended.delivered
        assert ended.answer["recovery"]["actions"][0]["strategy"] == "pool_increase"


class TestApply:
    def test_directives_are_applied_then_the_operation_is_repeated(self, service: ScriptedService, run: Any) -> None:
        again = Operation("passed")
        wanted = directive("pool_increase", max_size=7, version=3)
        service.on_error(apply(wanted))
        ended = run(record_of(), replay=again)
        (sent,) = service.results
        assert sent.path == f"/v1/errors/{service.errors[0].error_id}/results"
        assert sent.delivery_id == f"{sent.result['command_id']}:result"
        (told,) = sent.result["acknowledgements"]
        assert (told["directive_id"], told["status"], told["after"]["max_size"]) == (wanted["id"], "applied", 7)
        assert connection.pool is not None
        assert connection.pool.max_size == 7
        assert (sent.evidence or {})["outcome"] == "passed"
        assert (ended.answer["recovery"]["success"], again.done) == (True, 1)
        assert sent.body["remaining_ms"] > 0
        assert desired_state.version() == 3

    def test_unless_no_proof_is_wanted(self, service: ScriptedService, run: Any) -> None:
        again = Operation("passed")
        service.on_error(apply(directive("pool_increase", max_size=7), verify=False))
        ended = run(record_of(), replay=again)
        assert (again.done, service.results[0].evidence) == (0, None)
        assert ended.answer["recovery"]["success"] is False

    @pytest.mark.parametrize(
        ("wanted", "status"),
        [
            (directive("pool_increase", max_size=5_000), "refused"),
            (directive("pool_increase", "nowhere", max_size=7), "unsupported"),
            (directive("service_restart"), "unsupported"),
            (directive("pool_increase", max_size="many"), "failed"),
        ],
    )
    def test_what_was_not_applied_is_not_proven(
        self, service: ScriptedService, run: Any, wanted: dict[str, Any], status: str
    ) -> None:
        again = Operation("passed")
        service.on_error(apply(wanted))
        ended = run(record_of(), replay=again)
        (told,) = service.results[0].result["acknowledgements"]
        assert told["status"] == status
        assert told["reason"]
        assert (again.done, service.results[0].evidence) == (0, None)
        assert ended.answer["recovery"]["success"] is False

    def test_a_strategy_that_the_settings_forbid_is_refused(self, service: ScriptedService, run: Any, settings) -> None:
        settings.UPRIGHT_ALLOWED_STRATEGIES = ["retry"]
        service.on_error(apply(directive("pool_increase", max_size=7)))
        run(record_of(), replay=Operation("passed"))
        assert service.results[0].result["acknowledgements"][0]["status"] == "refused"
        assert connection.pool is not None
        assert connection.pool.max_size == 4

    def test_the_next_command_follows_until_there_is_none(self, service: ScriptedService, run: Any) -> None:
        again = Operation("failed", "passed")
        service.on_error(apply(directive("pool_increase", max_size=7)))
        service.on_result(apply(directive("timeout_increase", timeout_ms=900)))
        ended = run(record_of(), replay=again)
        assert [(one.evidence or {})["outcome"] for one in service.results] == ["failed", "passed"]
        assert (ended.answer["recovery"]["success"], again.done) == (True, 2)

    def test_a_probe_counts_only_if_it_failed_before(self, service: ScriptedService, run: Any) -> None:
        service.on_error(apply())
        look = Operation("failed", "passed", kind="probe")
        assert run(record_of(), probe=look).answer["recovery"]["success"]
        assert (service.results[0].evidence or {})["kind"] == "caller_probe"
        service.on_error(apply())
        assert not run(record_of(), probe=Operation("passed", kind="probe")).answer["recovery"]["success"]
        assert (service.results[1].evidence or {})["outcome"] == "inconclusive"

    def test_without_any_means_there_is_no_evidence(self, service: ScriptedService, run: Any) -> None:
        service.on_error(apply(directive("pool_increase", max_size=7)))
        ended = run(record_of())
        assert service.results[0].evidence is None
        assert ended.answer["recovery"]["status"] == "unknown"


class TestReplay:
    def test_the_directives_that_helped_the_other_come_first(self, service: ScriptedService, run: Any) -> None:
        seen: list[int] = []

        class Looks(Operation):
            def __call__(self) -> Evidence:
                assert connection.pool is not None
                seen.append(connection.pool.max_size)
                return super().__call__()

        service.on_error(replay(directive("pool_increase", max_size=9)))
        assert run(record_of(), replay=Looks("passed")).answer["recovery"]["success"]
        assert seen == [9]

    def test_what_fails_again_is_told(self, service: ScriptedService, run: Any) -> None:
        service.on_error(replay())
        assert run(record_of(), replay=Operation("failed")).answer["recovery"]["status"] == "not_recovered"


@pytest.mark.usefixtures("no_jitter")
class TestRetry:
    def test_it_ends_with_the_first_that_works(self, service: ScriptedService, run: Any) -> None:
        again = Operation("failed", "failed", "passed", "failed")
        service.on_error(retry(max_retries=5))
        ended = run(record_of(), replay=again)
        proof = service.results[0].evidence or {}
        assert (proof["kind"], proof["outcome"], proof["attempts"], again.done) == ("retry", "passed", 3, 3)
        assert ended.answer["recovery"]["actions"][0]["strategy"] == "retry"

    def test_and_with_the_last_that_is_allowed(self, service: ScriptedService, run: Any) -> None:
        again = Operation("failed")
        service.on_error(retry(max_retries=2))
        run(record_of(), replay=again)
        assert ((service.results[0].evidence or {})["outcome"], again.done) == ("failed", 2)

    @pytest.mark.parametrize(("exponential", "pauses"), [(True, [0.002, 0.004, 0.008]), (False, [0.002] * 3)])
    def test_pauses_grow(
        self, service: ScriptedService, monkeypatch: pytest.MonkeyPatch, exponential: bool, pauses: list[float]
    ) -> None:
        slept: list[float] = []
        monkeypatch.setattr("error_logging.exchange.time.sleep", slept.append)
        service.on_error(retry(max_retries=3, retry_delay_ms=2, exponential_backoff=exponential))
        exchange.run(record_of(), replay=Operation("failed"), probe=None)
        assert [pause for pause in slept if pause in pauses] == pauses

    def test_who_said_when_to_come_again_is_heeded(self, service: ScriptedService, run: Any) -> None:
        again = Operation("passed")
        service.on_error(retry(retry_delay_ms=1))
        run(record_of(retry_after_s=60), replay=again)
        assert (again.done, service.results[0].result["status"]) == (0, "too_late")

    def test_what_would_come_too_late_is_not_begun(self, service: ScriptedService, run: Any) -> None:
        again = Operation("passed")
        service.on_error(retry(retry_delay_ms=60_000))
        run(record_of(), replay=again)
        result = service.results[0].result
        assert (again.done, result["status"], result["evidence"]) == (0, "too_late", None)
        assert "time is up" in result["reason"]


class TestWhatIsNotDone:
    @pytest.mark.parametrize(("command", "missing"), [(replay(), "replay"), (retry(), "retry"), (probe(), "probe")])
    def test_what_the_caller_can_not(self, service: ScriptedService, run: Any, command: Reply, missing: str) -> None:
        service.on_error(command)
        ended = run(record_of())
        result = service.results[0].result
        assert (result["status"], missing in result["reason"]) == ("unsupported", True)
        assert ended.answer["recovery"]["success"] is False

    def test_what_nobody_knows(self, service: ScriptedService, run: Any) -> None:
        unknown = apply()
        assert isinstance(unknown.body, dict)
        command = {**unknown.body["command"], "kind": "dance"}
        service.on_error(changed(unknown, body={**unknown.body, "command": command}))
        run(record_of(), replay=Operation("passed"))
        assert service.results[0].result["status"] == "unsupported"

    @pytest.mark.parametrize("make", [apply, replay, retry])
    def test_what_comes_too_late(self, service: ScriptedService, run: Any, make: Callable[..., Reply]) -> None:
        again = Operation("passed")
        service.on_error(make(deadline_ms=0))
        run(record_of(), replay=again)
        assert (service.results[0].result["status"], again.done) == ("too_late", 0)


class TestTheDeadline:
    def test_what_outlasts_it_is_told_all_the_same(self, service: ScriptedService, settings, run: Any) -> None:
        settings.ERROR_RECOVERY_TIMEOUT = 1000
        late = record_of()

        class Slow(Operation):
            def __call__(self) -> Evidence:
                time.sleep(1.0)  # What it takes, not what the test waits for.
                return super().__call__()

        service.on_error(apply())
        run(late, replay=Slow("passed"))
        assert (service.results[0].evidence or {})["outcome"] == "passed"
        assert service.results[0].body["remaining_ms"] == 0
        assert service.results[0].wait_ms == 0

    def test_commands_without_end_end_with_it(self, service: ScriptedService, settings, run: Any) -> None:
        settings.ERROR_RECOVERY_TIMEOUT = 1000
        service.on_error(apply())
        service.on_result(*[lambda _: apply()] * 10_000)
        ended = run(record_of(), replay=Operation("failed"))
        assert ended.answer["recovery"]["status"] == "pending"
        assert ended.answer["command"] is None
        assert service.results


class TestADeadService:
    @pytest.mark.parametrize(
        "answer",
        [
            closing(), refusal(500), refusal(503), refusal(429), garbage(), garbage(b'"text"'), unsigned(recovered()),
            signed_for_another(recovered()), redirect("http://127.0.0.1:9/"),
        ],
    )  # fmt: skip
    def test_nothing_that_it_says_is_believed(self, service: ScriptedService, run: Any, answer: Reply) -> None:
        service.on_error(answer)
        ended = run(record_of(), replay=Operation("passed"))
        assert ended.delivered is False
        assert (ended.answer["recovery"]["status"], ended.answer["recovery"]["success"]) == ("pending", False)

    def test_commands_of_a_stranger_are_not_obeyed(self, service: ScriptedService, run: Any) -> None:
        service.on_error(unsigned(apply(directive("pool_increase", max_size=9))))
        again = Operation("passed")
        run(record_of(), replay=again)
        assert connection.pool is not None
        assert (connection.pool.max_size, again.done, service.results) == (4, 0, [])

    def test_one_that_dies_after_its_command_gets_no_claim_from_us(self, service: ScriptedService, run: Any) -> None:
        class Kills(Operation):
            def __call__(self) -> Evidence:
                service.stop()
                return super().__call__()

        service.on_error(apply())
        ended = run(record_of(), replay=Kills("passed"))
        assert ended.delivered
        assert (ended.answer["recovery"]["status"], ended.answer["recovery"]["success"]) == ("pending", False)
        assert ended.answer["command"] is None

    def test_refused_it_says_why(self, service: ScriptedService, run: Any) -> None:
        service.on_error(refusal(422, "error.type is missing"))
        ended = run(record_of())
        assert ended.delivered  # There is no use in sending it again.
        assert "error.type is missing" in ended.answer["recovery"]["message"]
        assert ended.answer["recovery"]["attempted"] is False
        assert ended.answer["recovery"]["status"] == "not_attempted"

    @pytest.mark.parametrize("status", [401, 403])
    def test_not_admitted_it_waits_for_someone_to_mend_the_settings(
        self, service: ScriptedService, run: Any, status: int
    ) -> None:
        service.on_error(refusal(status, "another secret"))
        ended = run(record_of())
        assert not ended.delivered
        assert "another secret" in ended.answer["recovery"]["message"]
        assert (ended.answer["recovery"]["attempted"], ended.answer["recovery"]["status"]) == (False, "pending")


class TestWhatIsOdd:
    """Whatever a service of another version says, the caller gets an answer."""

    @pytest.fixture(autouse=True)
    def still_answers(self, service: ScriptedService) -> Iterator[None]:
        yield
        assert service.errors

    @pytest.mark.parametrize(
        "command",
        [
            {}, {"kind": None}, {"kind": "apply"}, {"kind": "apply", "deadline_ms": 1000, "directives": None},
            {"kind": "apply", "deadline_ms": 1000, "directives": [{}]}, {"kind": "retry", "deadline_ms": 1000},
            {"kind": "replay", "deadline_ms": None}, "apply", [], 7,
        ],
    )  # fmt: skip
    def test_commands(self, service: ScriptedService, run: Any, command: Any) -> None:
        service.on_error(Reply({"recovery": report("pending"), "command": command}))
        ended = run(record_of(), replay=Operation("failed"))
        assert ended.answer["recovery"]["success"] is False

    @pytest.mark.parametrize("body", [{}, {"recovery": None}, {"recovery": "fine"}, {"recovery": []}, {"recovery": {}}])
    def test_answers(self, service: ScriptedService, run: Any, body: dict[str, Any]) -> None:
        service.on_error(Reply(body))
        ended = run(record_of())
        assert ended.answer["recovery"]["success"] is False
        assert set(ended.answer["recovery"]) == {"attempted", "success", "status", "message", "actions"}

    def test_a_report_keeps_what_later_versions_add(self, service: ScriptedService, run: Any) -> None:
        told = {**report("recovered", action("retry")), "confidence": 0.9}
        service.on_error(final(told))
        assert run(record_of()).answer["recovery"]["confidence"] == 0.9


def test_messages_are_genuine_in_both_directions(service: ScriptedService) -> None:
    service.on_error(pending())
    exchange.run(record_of(), replay=None, probe=None)
    sent: Received = service.errors[0]
    assert sent.signature.startswith("v1,")
    assert abs(sent.timestamp - time.time()) < 300
    assert client.available()
