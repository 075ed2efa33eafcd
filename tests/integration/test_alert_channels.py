"""Alerts on real engines: PostgreSQL remembers, an SMTP server and a webhook take them, the commands tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from upright.adapters.mail import SmtpMailer
from upright.adapters.store import PostgresStore
from upright.services import recipients
from upright.services.ports import AlertRecord
from upright.testing.intake import Replica, a_running_recovery, accept, an_event, service_on
from upright.testing.slack import SlackServer, slack_server

from .test_cli import run

ALERT = AlertRecord(recovery_id=None, kind="alert", channel="slack", recipients=("hooks.slack.com/…1",), subject="s",
                    status="sent", about="recovered")  # type: ignore[arg-type]  # fmt: skip


class Inbox:
    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (as aiosmtpd calls it)
        self.messages.append(message_from_bytes(envelope.content, policy=policy.default))  # type: ignore[arg-type]
        return "250 OK"


class FreePort(Controller):
    """On a port of the system's choice, which the library itself can't find again."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        super()._trigger_server()


@pytest.fixture
def smtp() -> Iterator[tuple[str, Inbox]]:
    inbox = Inbox()
    controller = FreePort(inbox, hostname="127.0.0.1", port=0)
    controller.start()
    port = controller.port
    yield f"smtp://127.0.0.1:{port}", inbox
    controller.stop()


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    with slack_server() as server:
        yield server


async def test_the_services_own_email_has_text_and_html(smtp: tuple[str, Inbox]) -> None:
    url, inbox = smtp
    await SmtpMailer(url).send(["ops@example.com"], "It broke", "Plain.", "<p>Marked.</p>")
    [message] = inbox.messages
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]


async def test_what_was_told_last_of_an_incident_is_remembered(store: PostgresStore) -> None:
    first = await a_running_recovery(store)
    assert await store.last_told(first.incident_id, "alert") is None
    mine = replace(ALERT, recovery_id=first.id)
    for one in (
        replace(mine, status="held"),
        mine,
        replace(mine, status="failed", about="unknown"),
        replace(mine, status="held"),
        replace(mine, status="held"),
        replace(mine, kind="escalation", about="not_recovered"),
    ):
        await store.record_alert(one)
    told = await store.last_told(first.incident_id, "alert")
    assert told is not None
    assert (told.about, told.held) == ("recovered", 2)
    assert 0 <= told.age_s < 60
    other = await accept(store, an_event(), fingerprint="another")
    assert other.recovery is not None
    assert await store.last_told(other.recovery.incident_id, "alert") is None


async def test_channels_are_counted_with_their_last_failure(store: PostgresStore) -> None:
    recovery = await a_running_recovery(store)
    mine = replace(ALERT, recovery_id=recovery.id)
    for one in (
        replace(mine, status="failed", detail="answers 500"),
        replace(mine, attempt=2),
        replace(mine, channel="email", recipients=("ops@example.com",)),
        replace(mine, recipients=("hooks.slack.com/…2",), status="failed", detail="answers 404 no_service"),
        replace(mine, channel="none", recipients=(), status="held"),
    ):
        await store.record_alert(one)
    found = {one.recipients[0]: one for one in await store.channel_deliveries(3600)}
    assert {who: (one.sent, one.failed, one.works) for who, one in found.items()} == {
        "hooks.slack.com/…1": (1, 1, True), "hooks.slack.com/…2": (0, 1, False), "ops@example.com": (1, 0, True),
    }  # fmt: skip
    assert found["hooks.slack.com/…2"].detail == "answers 404 no_service"


async def test_doctor_shows_the_channels_that_failed(store: PostgresStore, database_url: str) -> None:
    def finding() -> dict[str, str]:
        told = run("doctor", "--json", UPRIGHT_DATABASE_URL=database_url)
        return next(one for one in json.loads(told.stdout) if one["check"] == "Alerts")

    recovery = await a_running_recovery(store)
    assert (finding()["status"], finding()["detail"]) == ("ok", "none within a day")
    mine = replace(ALERT, recovery_id=recovery.id)
    await store.record_alert(replace(mine, status="failed", detail="answers 404 no_service"))
    found = finding()
    assert found["status"] == "failed"
    assert "slack hooks.slack.com/…1: 1 failed" in found["detail"]
    assert "answers 404 no_service" in found["detail"]
    await store.record_alert(mine)
    assert finding()["status"] == "warning"


async def test_an_application_has_its_webhooks_tested(replica: Replica, slack: SlackServer) -> None:
    service = service_on(replica, alert_hosts=[slack.host])
    none, foreign = slack.url[:-1], "https://169.254.169.254/latest/s3cret"
    webhooks = [slack.url, none, foreign, "ops@example.com"]
    answer = await service.sender.post("/v1/alerts/test", {"service": "django", "webhooks": webhooks})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [(one["recipient"], one["status"]) for one in results] == [
        (recipients.shown(slack.url), "sent"), (recipients.shown(none), "failed"),
        (recipients.shown(foreign), "failed"), ("ops@example.com", "failed"),
    ]  # fmt: skip
    assert "404 no_service" in results[1]["detail"]
    assert results[2]["detail"] == "UPRIGHT_ALERT_HOSTS does not name 169.254.169.254"
    assert "Service django asked for it. Nothing has failed" in slack.text_of()
    assert "s3cret" not in answer.text
    await service.sender.http.aclose()


async def test_only_who_knows_the_secret_may_ask(replica: Replica, slack: SlackServer) -> None:
    service = service_on(replica, alert_hosts=[slack.host], tenant_services={"default": ["shop"]})
    body = {"schema_version": 1, "service": "django", "webhooks": [slack.url]}
    unsigned = await service.sender.http.post("/v1/alerts/test", json=body)
    foreign = await service.sender.post("/v1/alerts/test", body)
    assert (unsigned.status_code, foreign.status_code, slack.requests) == (401, 403, [])
    await service.sender.http.aclose()


def test_the_command_tests_webhooks_and_email(smtp: tuple[str, Inbox], slack: SlackServer) -> None:
    url, inbox = smtp
    environment = {"UPRIGHT_SMTP_URL": url, "UPRIGHT_ALERT_HOSTS": f"hooks.slack.com,{slack.host}"}
    told = run("alerts", "test", "--to", slack.url, "--to", "ops@example.com", **environment)
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"slack {recipients.shown(slack.url)}: sent" in told.stdout
    assert (len(slack.messages), len(inbox.messages)) == (1, 1)
    failed = run("alerts", "test", "--json", "--to", f"{slack.url}no", "--to", "slack-webhook-url", **environment)
    assert failed.returncode == 1
    assert [(one["channel"], one["status"]) for one in json.loads(failed.stdout)] == [
        ("slack", "failed"), ("other", "failed"),
    ]  # fmt: skip
    assert slack.url not in told.stdout + told.stderr + failed.stdout + failed.stderr


def test_without_recipients_the_command_says_what_to_do() -> None:
    told = run("alerts", "test")
    assert (told.returncode, "--to" in told.stderr) == (1, True)
