"""`manage.py upright_test_alert`, and what an agent sends: a real SMTP server takes the mail."""

from __future__ import annotations

import io
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from django.core.management import CommandError, call_command

from error_logging import mail, recipients
from error_logging.testing import Reply, ScriptedService, refusal

HOOK = "https://hooks.slack.com/services/T0/B0/s3cret"


class Inbox:
    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802 (as aiosmtpd calls it)
        if address.startswith("nobody@"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 (as aiosmtpd calls it)
        self.messages.append(message_from_bytes(envelope.content, policy=policy.default))  # type: ignore[arg-type]
        return "250 OK"


class FreePort(Controller):
    """On a port of the system's choice, which the library itself can't find again."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        super()._trigger_server()


@pytest.fixture
def inbox(settings: Any) -> Iterator[Inbox]:
    made = Inbox()
    controller = FreePort(made, hostname="127.0.0.1", port=0)
    controller.start()
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", controller.port
    yield made
    controller.stop()


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with ScriptedService() as running, running.connected():
        yield running


def told(*arguments: str) -> tuple[str, str]:
    """What it says, and why it fails."""
    out, problem = io.StringIO(), ""
    try:
        call_command("upright_test_alert", *arguments, stdout=out, no_color=True)
    except CommandError as error:
        problem = str(error)
    return out.getvalue(), problem


def test_every_recipient_of_the_settings_is_tried(inbox: Inbox, service: ScriptedService, settings: Any) -> None:
    settings.ERROR_ALERT_RECIPIENTS = ["ops@example.com", HOOK]
    settings.ERROR_ESCALATION_RECIPIENTS = ["boss@example.com", "ops@example.com"]
    settings.ALERTS_BY_SEVERITY = {"critical": ["critical@example.com"]}
    said, problem = told()
    assert problem == ""
    assert [one["To"] for one in inbox.messages] == ["ops@example.com", "boss@example.com", "critical@example.com"]
    assert {part.get_content_type() for part in inbox.messages[0].iter_parts()} == {"text/plain", "text/html"}
    [asked] = [one for one in service.received if one.kind == "alert_test"]
    assert asked.body["webhooks"] == [HOOK]
    assert f"sent slack {recipients.shown(HOOK)}" in said
    assert "s3cret" not in said


def test_what_does_not_go_out_is_told_and_fails_the_command(
    inbox: Inbox, service: ScriptedService, settings: Any
) -> None:
    settings.ERROR_ALERT_RECIPIENTS = ["nobody@example.com", "ops@example.com", HOOK, "slack-webhook-url"]
    detail = "hooks.slack.com answers 404 no_service"
    service.on_alert_test(Reply({"results": [{"channel": "slack", "status": "failed", "detail": detail}]}))
    said, problem = told()
    assert problem == "3 of 4 did not go out."
    assert "FAILED email nobody@example.com: SMTPRecipientsRefused" in said
    assert f"FAILED slack {recipients.shown(HOOK)}: {detail}" in said
    assert "FAILED ? slack-webhook-url: neither an e-mail address nor" in said
    assert "sent email ops@example.com" in said


@pytest.mark.parametrize("status", [503, 404])
def test_a_service_that_can_not_be_asked_is_no_mystery(service: ScriptedService, status: int) -> None:
    service.on_alert_test(refusal(status))
    said, problem = told("--to", HOOK)
    assert problem == "1 of 1 did not go out."
    assert "`upright alerts test --to URL`" in said
    assert "s3cret" not in said


def test_nobody_to_tell_is_said(settings: Any) -> None:
    settings.ERROR_ALERT_RECIPIENTS = []
    assert "ERROR_ALERT_RECIPIENTS is empty" in told()[1]


def test_an_alert_has_text_and_html(inbox: Inbox) -> None:
    mail.send({"recipients": ["ops@example.com"], "subject": "It broke", "text": "Plain.", "html": "<p>Marked.</p>"})
    [message] = inbox.messages
    plain, marked = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert marked is not None
    assert (plain.get_content().strip(), marked.get_content().strip()) == ("Plain.", "<p>Marked.</p>")


def test_an_alert_of_an_older_service_has_text_alone(inbox: Inbox) -> None:
    mail.send({"recipients": ["ops@example.com"], "subject": "It broke", "text": "Plain."})
    assert inbox.messages[0].get_content_type() == "text/plain"
