"""The golden messages, from the application's side: what it sends is theirs, and theirs it understands."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.urls import path, resolve

from error_logging import agent, classification, desired_state, events, exchange, recipients, signatures
from error_logging.models import ErrorLog
from error_logging.record import Record

GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "golden"
VOLATILE = ("error_id", "instance", "occurred_at", "age_ms", "line", "budget_ms", "remaining_ms", "duration_ms")
RECOVERY_ID = "0b54c0de-0000-4000-8000-000000000002"


class OperationalError(Exception):
    """Stands for a driver's exception that another one caused."""


def report(request: HttpRequest, year: int) -> HttpResponse:
    try:
        raise ConnectionError("reset by peer")
    except ConnectionError as error:
        raise OperationalError("the report failed") from error


urlpatterns = [path("report/<int:year>/", report)]


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_bytes())


def steady(message: Any) -> Any:
    """The message without what differs from one run to the next; each kind of value still has its type."""
    if isinstance(message, dict):
        return {key: type(value).__name__ if key in VOLATILE else steady(value) for key, value in message.items()}
    return [steady(entry) for entry in message] if isinstance(message, list) else message


def failed(method: str = "GET") -> tuple[HttpRequest, Exception]:
    request = RequestFactory().generic(method, "/report/2026/?kind=sales")
    request.resolver_match = match = resolve("/report/2026/", urlconf=__name__)
    try:
        match.func(request, *match.args, **match.kwargs)
    except OperationalError as error:
        return request, error
    raise AssertionError("the view works")


def test_the_event_of_a_request_is_the_golden_one(settings: Any) -> None:
    settings.UPRIGHT_SERVICE = "shop"
    request, error = failed()
    event = events.build(error, request=request, context={"tenant": "books"}, began=time.monotonic())
    record = Record(event["error_id"], event, began=time.monotonic(), spool=None)
    conversation = exchange.steps(record, exchange.Abilities(replay=True, probe=False), time.monotonic() + 5)
    post = next(conversation)
    assert isinstance(post, exchange.Post)
    # Here the view is called by this module's own function, and there by a middleware.
    sent = json.loads(json.dumps(post.body).replace(__name__, "shop.views"))
    caller = sent["error"]["frames"][0]
    assert caller["in_app"]
    caller |= {"module": "shop.middleware", "function": "__call__"}
    sent["measurements"] = {}  # of this very process
    assert steady(sent) == steady(golden("event_request"))


@pytest.mark.django_db
def test_the_event_of_a_hand_made_row_is_the_golden_one() -> None:
    row = ErrorLog.objects.create(
        service="shop", error_type="TimeoutError", severity="high", message="Database query timeout",
        context={"pending_requests": 15},
    )  # fmt: skip
    assert steady(events.from_row(row)) == steady(golden("event_manual"))


@pytest.mark.parametrize("name", ["answer_apply", "answer_retry", "answer_replay"])
def test_the_golden_commands_are_carried_out(name: str) -> None:
    """The conversation goes on with a result in the golden form."""
    request, error = failed()
    event = {**events.build(error, request=request), "error_id": golden(name)["error_id"]}
    record = Record(event["error_id"], event, began=time.monotonic(), spool=None)
    conversation = exchange.steps(record, exchange.Abilities(replay=True, probe=False), time.monotonic() + 5)
    step = next(conversation)
    reply: Any = golden(name)
    while not (isinstance(step := conversation.send(reply), exchange.Post)):
        reply = {
            exchange.Apply: golden("results_apply")["results"][0]["acknowledgements"][0],
            exchange.Replay: {"outcome": "passed", "detail": "answered 200", "status_code": 200, "kind": "replay",
                              "attempts": 1, "duration_ms": 1.0},
            exchange.Sleep: None,
        }[type(step)]  # fmt: skip
    wanted = golden(name.replace("answer", "results"))
    assert step.path == f"/v1/errors/{event['error_id']}/results"
    assert steady({**step.body}) == steady(wanted)
    with pytest.raises(StopIteration) as ended:
        conversation.send(golden("answer_recovered"))
    assert ended.value.value.answer["recovery"]["success"] is True


def test_a_final_golden_answer_ends_the_conversation() -> None:
    for name in ("answer_recovered", "answer_not_recovered", "answer_pending"):
        request, error = failed()
        event = events.build(error, request=request)
        record = Record(event["error_id"], event, began=time.monotonic(), spool=None)
        conversation = exchange.steps(record, exchange.Abilities(replay=True, probe=False), time.monotonic() + 5)
        next(conversation)
        with pytest.raises(StopIteration) as ended:
            conversation.send(golden(name))
        assert ended.value.value.delivered
        assert ended.value.value.answer["recovery"] == golden(name)["recovery"]


def test_the_golden_directives_are_told_one_by_one() -> None:
    """This process has none of what they act on, and says so rather than fail."""
    answer = golden("sync_answer")
    told = desired_state.apply_desired(
        answer["version"], [{**one, "target": "no such alias"} for one in answer["desired"]]
    )
    assert {one["directive_id"] for one in told} == {one["id"] for one in answer["desired"]}
    assert {one["status"] for one in told} == {"unsupported"}
    assert set(told[0]) <= set(golden("sync_request")["acknowledgements"][0])
    desired_state.reset()


@pytest.mark.django_db
def test_what_an_agent_says_has_the_golden_keys(settings: Any) -> None:
    settings.UPRIGHT_SERVICE = "shop"
    settings.ERROR_ALERT_RECIPIENTS = ["ops@shop.example"]
    request = agent.Agent._request(object.__new__(agent.Agent), [], [], [])
    wanted = golden("sync_request")
    assert set(request) == set(wanted)
    assert set(request["settings"]) == set(wanted["settings"])
    assert set(request["capabilities"]) == set(wanted["capabilities"])
    assert request["capabilities"]["commands"] == wanted["capabilities"]["commands"]


@pytest.mark.parametrize("row", golden("severity")["rows"], ids=lambda row: row["classes"][0][0])
def test_severity_and_status_are_the_golden_tables(row: dict[str, Any]) -> None:
    for environment, severity in row["severity"].items():
        found = classification.classify(row["classes"], environment)
        assert (found.severity, found.http_status) == (severity, row["http_status"])


@pytest.mark.parametrize("case", golden("signature")["cases"], ids=lambda case: case["name"])
def test_signatures_are_judged_as_the_golden_cases_say(case: dict[str, Any]) -> None:
    verify = lambda: signatures.verify(  # noqa: E731
        case["secrets"], case["headers"], case["body"].encode(), now=case["now"]
    )
    if case["valid"]:
        assert verify() == case["headers"]["webhook-id"]
    else:
        with pytest.raises(signatures.SignatureInvalid):
            verify()


def test_a_webhook_is_shown_as_the_service_shows_it() -> None:
    [address] = golden("alert_test_request")["webhooks"]
    assert recipients.shown(address) == golden("alert_test_answer")["results"][0]["recipient"]
