"""The agent against a scripted service, over real HTTP."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.core import mail
from django.db import OperationalError, connection
from django.test import override_settings
from faults import until

from error_logging import agent, client, desired_state, process, recording
from error_logging.agent import Agent
from error_logging.models import ErrorLog
from error_logging.testing import ScriptedService, directive, refusal, report, unsigned

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(agent, "LAST_DELAY_S", 0.05)


@pytest.fixture
def running(service: ScriptedService) -> Iterator[Agent]:
    made = Agent()
    service.wait_for("sync")
    yield made
    stop(made, service)


def stop(one: Agent, service: ScriptedService) -> None:
    one.stop()
    service.always(None)
    service.stop()
    one._thread.join(20)
    assert not one._thread.is_alive()
    one._side.shutdown()


def command(kind: str, **more: Any) -> dict[str, Any]:
    return {"id": str(uuid4()), "kind": kind, "deadline_ms": 10_000, **more}


def said(service: ScriptedService, key: str, number: int = 1) -> list[dict[str, Any]]:
    """All that the syncs said under `key`, each once, as soon as there are so many."""

    def found() -> list[Any]:
        unique: list[Any] = []
        for message in service.syncs:
            unique += [one for one in message.body[key] if one not in unique]
        return unique

    until(lambda: len(found()) >= number)
    return found()


def test_it_says_who_it_is_and_what_it_can(service: ScriptedService) -> None:
    with override_settings(
        ERROR_ALERT_RECIPIENTS=["ops@example.com"], ALERTS_BY_SEVERITY={"low": []}, AUTO_SCALE_ON_ERROR=True,
        UPRIGHT_LIMITS={"pool_increase": {"max_size": (2, 9)}}, UPRIGHT_ALLOWED_STRATEGIES=["pool_increase"],
        ENVIRONMENT="staging",
    ):  # fmt: skip
        one = Agent()
        body = service.wait_for("sync")[0].body
        stop(one, service)
    assert (body["service"], body["environment"], body["instance"]) == ("django", "staging", process.instance())
    assert body["capabilities"]["strategies"] == {
        "pool_increase": {"targets": ["default"], "limits": {"max_size": [2, 9]}},
    }  # fmt: skip
    assert body["settings"] == {
        "alert_recipients": ["ops@example.com"], "escalation_recipients": [], "alerts_by_severity": {"low": []},
        "auto_scale_on_error": True, "max_scale_factor": 1.0,
    }  # fmt: skip
    assert body["measurements"]["databases"]["default"]["max_connections"] > 0
    assert "secret" not in str(body).lower()


def test_directives_are_applied_acknowledged_and_ended(service: ScriptedService, running: Agent) -> None:
    one = directive("pool_increase", max_size=9)
    service.tell(desired=[one])
    (told,) = said(service, "acknowledgements")
    assert (told["directive_id"], told["status"], told["after"]["max_size"]) == (one["id"], "applied", 9)
    assert connection.pool.max_size == 9
    assert service.syncs[-1].body["desired_version"] == 1
    service.tell(desired=[])
    assert said(service, "acknowledgements", 2)[1]["status"] == "reverted"
    assert connection.pool.max_size == 4


def test_what_was_said_is_repeated_until_it_is_answered_and_then_no_more(
    service: ScriptedService, running: Agent
) -> None:
    service.on_sync(refusal(500), refusal(503), unsigned(refusal(404)))
    service.tell(desired=[directive("pool_increase", max_size=9)])
    until(lambda: sum(bool(message.body["acknowledgements"]) for message in service.syncs) == 4)
    service.tell(commands=[command("probe", error_types=["DatabaseError"])])
    until(lambda: service.syncs[-1].body["acknowledgements"] == [])
    told = [message.body["acknowledgements"] for message in service.syncs if message.body["acknowledgements"]]
    assert len(told) == 4
    assert all(one == told[0] for one in told)


def test_an_expiry_is_told(service: ScriptedService, running: Agent) -> None:
    service.tell(desired=[directive("pool_increase", max_size=9, ttl_s=0.05)])
    said(service, "acknowledgements")
    until(lambda: connection.pool.max_size == 4)
    service.tell(commands=[command("probe", error_types=["DatabaseError"])])
    assert [one["status"] for one in said(service, "acknowledgements", 2)] == ["applied", "reverted"]


def test_with_the_service_gone_directives_expire(service: ScriptedService, running: Agent) -> None:
    service.tell(desired=[directive("pool_increase", max_size=9, ttl_s=0.5)])
    said(service, "acknowledgements")
    service.stop()
    until(lambda: connection.pool.max_size == 4)
    count = len(service.syncs)
    service.tell(desired=[])
    service.start()
    service.wait_for("sync", count + 1)
    assert "reverted" in {one["status"] for one in said(service, "acknowledgements", 2)}


def test_commands_are_carried_out_and_their_results_told(service: ScriptedService, running: Agent) -> None:
    probe = command("probe", error_types=["django.db.utils.OperationalError"])
    apply = command("apply", directives=[directive("pool_increase", max_size=9)])
    odd = command("reboot")
    service.tell(commands=[probe, apply, odd])
    results = {one["command_id"]: one for one in said(service, "results", 3)}
    assert results[probe["id"]]["evidence"]["outcome"] == "passed"
    assert results[apply["id"]]["acknowledgements"][0]["status"] == "applied"
    assert results[odd["id"]]["status"] == "unsupported"
    assert connection.pool.max_size == 9


def test_a_path_is_repeated_as_nobody(service: ScriptedService, running: Agent) -> None:
    request = {"method": "GET", "path": "/broken/", "route": "broken/", "replayable": True, "path_intact": True}
    again = command("replay", request=request, error_types=["builtins.ValueError"])
    retry = command(
        "retry", request=request, error_types=["builtins.ValueError"],
        retry={"max_retries": 2, "retry_delay_ms": 1, "exponential_backoff": True},
    )  # fmt: skip
    service.tell(commands=[again, retry, command("replay")])
    results = said(service, "results", 3)
    assert results[0]["evidence"]["outcome"] == "failed"
    assert results[1]["evidence"]["attempts"] == 2
    assert results[2]["status"] == "unsupported"
    assert not ErrorLog.objects.exists()


def test_switched_off_it_does_nothing(service: ScriptedService, running: Agent, settings: Any) -> None:
    asked = command("apply", directives=[directive("pool_increase", max_size=9)])
    with override_settings(UPRIGHT_ENABLED=False):
        assert running._carry_out(asked)["status"] == "unsupported"
    assert connection.pool.max_size == 4


def test_alerts_go_out_through_djangos_own_settings(service: ScriptedService, running: Agent, settings: Any) -> None:
    settings.DEFAULT_FROM_EMAIL = "errors@shop.example"
    email = {"recipients": ["ops@example.com", "boss@example.com"], "subject": "Broken\nBcc: x@y.z", "text": "It is."}
    good, nobody = command("send_email", email=email), command("send_email", email={**email, "recipients": []})
    service.tell(commands=[good, nobody])
    results = {one["command_id"]: one for one in said(service, "results", 2)}
    assert results[good["id"]]["status"] == "done"
    (sent,) = mail.outbox
    assert (sent.from_email, sent.to, sent.body) == ("errors@shop.example", email["recipients"], "It is.")
    assert sent.subject == "Broken Bcc: x@y.z"
    assert results[nobody["id"]]["status"] == "failed"


def test_an_alert_that_cannot_be_sent_says_so(service: ScriptedService, running: Agent, settings: Any) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
    service.tell(commands=[command("send_email", email={"recipients": ["ops@example.com"], "subject": "x"})])
    (result,) = said(service, "results")
    assert result["status"] == "failed"
    assert "ConnectionRefusedError" in result["reason"]


def test_work_past_its_deadline_is_given_up_and_the_agent_goes_on(
    service: ScriptedService, running: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(agent.mail, "send", lambda email: gate.wait(30))
    slow = command("send_email", email={}) | {"deadline_ms": 50}
    service.tell(commands=[slow, command("probe", error_types=["DatabaseError"])])
    results = said(service, "results", 2)
    gate.set()
    assert (results[0]["status"], results[1]["status"]) == ("failed", "done")
    assert "0.05 s" in results[0]["reason"]


def test_an_outcome_comes_into_its_row_once(service: ScriptedService, running: Agent) -> None:
    row = ErrorLog.objects.create(service="shop", error_type="TimeoutError")
    outcome = {
        "recovery_id": str(uuid4()), "error_id": str(row.error_id), "strategy": "retry", "report": report("recovered"),
    }  # fmt: skip
    service.tell(outcomes=[outcome])
    assert said(service, "outcomes_received") == [outcome["recovery_id"]]
    row.refresh_from_db()
    assert row.resolved
    assert row.context["recovery_strategy"] == "retry"
    service.tell(commands=[command("probe", error_types=["DatabaseError"])])
    said(service, "results")
    until(lambda: service.syncs[-1].body["outcomes_received"] == [])
    assert ErrorLog.objects.count() == 1


def test_an_outcome_that_can_not_be_written_comes_again_with_its_recovery(
    service: ScriptedService, running: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [ErrorLog.objects.create(service="shop", error_type="TimeoutError") for _ in range(2)]
    recovery_id, write, failing = str(uuid4()), recording.apply_outcome, [str(rows[1].error_id)]

    def write_or_fail(outcome: dict[str, Any]) -> bool:
        if outcome["error_id"] in failing:
            failing.remove(outcome["error_id"])
            raise OperationalError("the database is away")
        return write(outcome)

    monkeypatch.setattr(recording, "apply_outcome", write_or_fail)
    service.tell(
        outcomes=[
            {
                "recovery_id": recovery_id, "error_id": str(row.error_id), "strategy": "retry",
                "report": report("recovered"),
            }
            for row in rows
        ]
    )  # fmt: skip
    assert said(service, "outcomes_received") == [recovery_id]
    assert not failing
    for row in rows:
        row.refresh_from_db()
        assert row.resolved


def test_one_strange_answer_does_not_stop_it(service: ScriptedService, running: Agent) -> None:
    from error_logging.testing import Reply

    for strange in ({"version": "x"}, {"version": 1, "desired": 5}, {"commands": [5]}, {"outcomes": [None]}, {}):
        count = len(service.syncs)
        service.on_sync(Reply(strange))
        service.tell(commands=[command("probe", error_types=["ValueError"])])
        service.wait_for("sync", count + 2)
    service.tell(commands=[command("probe", error_types=["DatabaseError"])])
    until(lambda: any(one.get("evidence") for one in said(service, "results")))


def test_refused_it_asks_again_later(service: ScriptedService, running: Agent) -> None:
    service.on_sync(refusal(403, "foreign service"))
    service.tell(commands=[command("probe", error_types=["ValueError"])])
    count = len(service.syncs)
    service.wait_for("sync", count + 2)


def test_after_a_410_it_is_quiet(service: ScriptedService, running: Agent) -> None:
    service.on_sync(refusal(410))
    service.tell(desired=[])
    until(client.gone)
    count = len(service.received)
    quiet = threading.Event()
    for _ in range(20):  # several of its pauses
        quiet.wait(0.05)
    assert len(service.received) == count
    client.reset()
    service.wait_for("sync", count + 1)


def test_it_starts_where_there_is_a_service_and_again_in_a_child(service: ScriptedService) -> None:
    agent.start()
    assert not agent.running()
    with override_settings(UPRIGHT_AGENT=True):
        agent.start()
        agent.start()
        service.wait_for("sync")
        mine = agent._process
        child = os.fork()
        if child == 0:
            service.stop = lambda: None  # type: ignore[method-assign]
            threading.Event().wait(20)
            os._exit(0)
        try:
            until(lambda: len({message.body["instance"] for message in service.syncs}) == 2)
            pids = {int(message.body["instance"].split(":")[1]) for message in service.syncs}
            assert pids == {os.getpid(), child}
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert agent._process is mine
        assert mine is not None
        stop(mine[1], service)
        agent._process, agent._wanted = None, False
    desired_state.reset()
