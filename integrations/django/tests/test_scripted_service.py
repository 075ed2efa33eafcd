"""The shipped test helper: a service whose script a test writes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from django.db import connection
from django.test import Client, override_settings

from error_logging import client, drain, signatures
from error_logging.models import ErrorLog
from error_logging.testing import (
    ScriptedService,
    action,
    closing,
    final,
    garbage,
    pending,
    recovered,
    redirect,
    refusal,
    report,
    signed_for_another,
    silence,
    unsigned,
)

EVENT = {"error_id": "11111111-1111-4111-8111-111111111111", "error": {"severity": "high"}}


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with ScriptedService() as running, running.connected():
        yield running


def test_an_application_is_tested_without_a_service(service: ScriptedService, db: None) -> None:
    service.on_error(recovered("pool_increase"))
    answer = Client().get("/broken/").json()
    assert answer["recovery"]["message"] == "Recovery successful: Pool Increase"
    assert service.errors[0].error_id == answer["error"]["error_id"]
    assert ErrorLog.objects.get().context["recovery_strategy"] == "pool_increase"


def test_it_accepts_errors_without_a_script(service: ScriptedService) -> None:
    answer = client.post("/v1/errors", EVENT, timeout_s=5)
    assert (answer["recovery"]["status"], answer["severity"]) == ("pending", "high")
    assert answer["error_id"] == EVENT["error_id"]


def test_a_second_delivery_takes_nothing_from_the_script(service: ScriptedService) -> None:
    service.on_error(recovered(), final(report("not_recovered", action("retry", "not_recovered"))))
    answers = [client.post("/v1/errors", EVENT, delivery_id="one", timeout_s=5) for _ in range(2)]
    assert [answer["recovery"]["status"] for answer in answers] == ["recovered", "recovered"]


def test_a_refused_delivery_is_new_when_it_comes_again(service: ScriptedService) -> None:
    service.on_error(refusal(503, retry_after=7), recovered())
    with pytest.raises(client.Unreachable) as busy:
        client.post("/v1/errors", EVENT, delivery_id="one", timeout_s=5)
    assert busy.value.retry_after_s == 7
    assert client.post("/v1/errors", EVENT, delivery_id="one", timeout_s=5)["recovery"]["success"]


def test_who_does_not_know_the_secret_is_refused(service: ScriptedService) -> None:
    with override_settings(UPRIGHT_SECRET="whsec_" + "A" * 40), pytest.raises(client.Refused, match="401"):
        client.post("/v1/errors", EVENT, timeout_s=5)
    assert service.rejected == ["no signature matches a known secret"]
    assert service.received == []


def test_a_body_that_is_too_large_is_refused(service: ScriptedService) -> None:
    with pytest.raises(client.Refused, match="413"):
        client.post("/v1/errors", {"error_id": "x" * 70_000}, timeout_s=5)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (unsigned(recovered()), "can't be trusted"),
        (signed_for_another(recovered()), "answer to another"),
        (garbage(), "no JSON"),
        (garbage(b"[]"), "no JSON object"),
        (redirect("http://127.0.0.1:9/"), "redirect"),
        (closing(), "Protocol"),
        (refusal(500), "answered 500"),
        (refusal(429), "answered 429"),
    ],
)
def test_it_misbehaves_as_it_is_told(service: ScriptedService, reply, why: str) -> None:
    service.on_error(reply)
    with pytest.raises(client.Unreachable, match=why):
        client.post("/v1/errors", EVENT, timeout_s=5)


def test_it_can_want_no_more(service: ScriptedService) -> None:
    service.on_error(refusal(410))
    with pytest.raises(client.Gone):
        client.post("/v1/errors", EVENT, timeout_s=5)


def test_it_can_stay_silent(service: ScriptedService) -> None:
    service.on_error(silence())
    with pytest.raises(client.Unreachable):
        client.post("/v1/errors", EVENT, timeout_s=0.2)
    assert len(service.wait_for("error")) == 1


def test_it_goes_down_and_comes_up_again_at_the_same_address(service: ScriptedService) -> None:
    client.post("/v1/errors", EVENT, timeout_s=5)
    service.stop()
    with pytest.raises(client.Unreachable):
        client.post("/v1/errors", EVENT, timeout_s=5)
    service.start()
    client.post("/v1/errors", EVENT, timeout_s=5)
    assert client.probe()


def test_a_held_answer_is_pending_when_the_time_is_up(service: ScriptedService) -> None:
    gate = threading.Event()
    service.on_error(recovered().held(gate), recovered().held(gate))
    assert client.post("/v1/errors", EVENT, wait_ms=30, timeout_s=5)["recovery"]["status"] == "pending"
    gate.set()
    assert client.post("/v1/errors", EVENT, wait_ms=30, timeout_s=5)["recovery"]["status"] == "recovered"


def test_news_reaches_a_sync_that_is_held(service: ScriptedService) -> None:
    heard: list[dict] = []
    body = {"instance": "a:1:b", "hold_ms": 10_000, "desired_version": 0}
    asking = threading.Thread(target=lambda: heard.append(client.post("/v1/sync", body, timeout_s=15)))
    asking.start()
    service.wait_for("sync")
    service.tell(desired=[{"id": "d"}])
    asking.join(10)
    assert (heard[0]["version"], heard[0]["desired"]) == (1, [{"id": "d"}])


def test_an_outcome_is_told_until_it_is_received(service: ScriptedService) -> None:
    service.tell(outcomes=[{"recovery_id": "r"}])
    body = {"instance": "a:1:b", "hold_ms": 0}
    assert client.post("/v1/sync", body, timeout_s=5)["outcomes"] == [{"recovery_id": "r"}]
    assert client.post("/v1/sync", {**body, "outcomes_received": ["r"]}, timeout_s=5)["outcomes"] == []


def test_what_does_not_come_is_told() -> None:
    with ScriptedService() as service, pytest.raises(AssertionError, match="0 of 1 error"):
        service.wait_for("error", timeout_s=0.01)


def test_its_answers_are_signed_as_the_protocol_says(service: ScriptedService) -> None:
    import urllib3

    raw = b"{}"
    headers = signatures.headers(service.secret, "id-1", raw)
    answer = urllib3.request("POST", f"{service.url}/v1/errors", body=raw, headers=headers)
    received = {name.lower(): text for name, text in answer.headers.items()}
    assert signatures.verify([service.secret], received, answer.data) == "id-1"
    assert answer.status == pending().status == 202


def test_it_needs_nothing_but_django_and_an_http_client() -> None:
    code = (
        "import sys, error_logging.testing\n"
        "heavy = {'upright', 'prefect', 'pydantic', 'sqlalchemy', 'sklearn', 'pytest', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_connection_to_the_test_database_stays_open(service: ScriptedService, db: None) -> None:
    def sessions() -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return cursor.fetchone()[0]

    before = sessions()
    Client(raise_request_exception=False).get("/broken/", headers={"accept": "text/html"})
    service.wait_for("error")
    assert drain.settle()
    assert sessions() == before
