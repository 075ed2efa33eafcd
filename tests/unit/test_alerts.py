"""Who is told what, how, and how often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from upright.adapters import runbook_files
from upright.adapters.mail import SmtpMailer
from upright.config import Settings
from upright.domain.directive import AlertSettings, Command, CommandResult, SyncRequest
from upright.domain.verdict import Evidence, Status
from upright.errors import ConfigurationError
from upright.services import alerts
from upright.services.dependencies import Dependencies
from upright.services.recovery import Recovery
from upright.services.routing import Router
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, error_event
from upright.testing.ports import InMemoryStore, RecordingMailer, ScriptedDispatch

BOOK = runbook_files.load(Path(__file__).parents[2])


async def applied(command: Command) -> CommandResult:
    return CommandResult(command_id=command.id, status="done", evidence=Evidence(kind="replay", outcome="passed"))


async def nothing_seen(command: Command) -> CommandResult:
    return CommandResult(command_id=command.id, status="done")


async def ended(dispatch: ScriptedDispatch, mailer: RecordingMailer | None = None, **settings: Any) -> Recovery:
    """A recovery of a slow query that has ended."""
    store = InMemoryStore()
    dependencies = Dependencies(store, dispatch, BOOK, Settings(**settings), "this", mailer)
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT, message="canceling statement")
    routing = Router(BOOK).route(event)
    acceptance = await store.accept(
        "default", "1", event, fingerprint="f", runbook=routing.runbook, severity=routing.severity, cooldown_s=0
    )
    assert acceptance.recovery is not None
    recovery = await Recovery.begin(
        dependencies, str(event.error_id), runbook=routing.runbook, flow_run_id=event.error_id, attempt=1
    )
    for choice in (await recovery.score()).tried:
        acted = await recovery.act(choice)
        await recovery.verify(acted)
    await recovery.conclude()
    return recovery


async def announce(recovery: Recovery, commands: list[str] | None = None, **settings: Any) -> None:
    request = SyncRequest(
        service="django",
        instance="host:1:boot",
        capabilities={"commands": commands or []},
        settings=AlertSettings(**settings),
    )
    await recovery.dependencies.store.sync("default", request)


async def test_the_application_sends_it_with_its_own_settings() -> None:
    dispatch = ScriptedDispatch(waiter=applied, agent=applied)
    recovery = await ended(dispatch)
    await announce(recovery, ["send_email"], alert_recipients=["ops@example.com", "team@example.com"])
    [alert] = await alerts.send("alert", recovery, ["http://prefect/runs/1"])
    assert (alert.channel, alert.status, alert.detail) == ("email", "sent", "by the application")
    email = dispatch.to_agents[-1].email
    assert email is not None
    assert email.recipients == ["ops@example.com", "team@example.com"]
    assert email.subject == "[critical] Recovered: OperationalError in django"
    assert "Timeout Increase: recovered. replay passed" in email.text
    assert "http://prefect/runs/1" in email.text


async def test_it_is_sent_once_however_often_the_run_is_taken_up() -> None:
    dispatch = ScriptedDispatch(waiter=applied, agent=applied)
    recovery = await ended(dispatch)
    await announce(recovery, ["send_email"], alert_recipients=["ops@example.com"])
    assert await alerts.send("alert", recovery) == await alerts.send("alert", recovery)
    assert [one.kind for one in dispatch.to_agents] == ["send_email"]


async def test_without_a_process_that_can_the_service_sends_it() -> None:
    mailer = RecordingMailer()
    recovery = await ended(ScriptedDispatch(waiter=applied), mailer, alert_recipients=["ops@example.com"])
    [alert] = await alerts.send("alert", recovery)
    assert alert.status == "sent"
    assert [one[0] for one in mailer.sent] == [("ops@example.com",)]


@pytest.mark.parametrize("mailer", [None, RecordingMailer(broken=True)])
async def test_what_could_not_be_sent_is_recorded_as_failed(mailer: RecordingMailer | None) -> None:
    recovery = await ended(ScriptedDispatch(waiter=applied), mailer, alert_recipients=["ops@example.com"])
    found = await alerts.send("alert", recovery)
    assert [one.attempt for one in found] == ([1] if mailer is None else [1, 2, 3])
    alert = found[-1]
    assert alert.status == "failed"
    assert ("UPRIGHT_SMTP_URL is not set" if mailer is None else "refused") in alert.detail


async def test_recipients_by_severity_go_first_and_an_empty_list_means_nobody() -> None:
    recovery = await ended(ScriptedDispatch(waiter=applied), RecordingMailer())
    by_severity = {"critical": ["boss@example.com"], "low": []}
    await announce(recovery, alert_recipients=["ops@example.com"], alerts_by_severity=by_severity)
    instances = await recovery.dependencies.store.live_instances("default", "django")
    assert alerts.named("alert", recovery, instances) == ["boss@example.com"]
    await announce(recovery, alert_recipients=["ops@example.com"], alerts_by_severity={"critical": []})
    instances = await recovery.dependencies.store.live_instances("default", "django")
    assert alerts.named("alert", recovery, instances) == []
    await announce(recovery, alert_recipients=["ops@example.com"], alerts_by_severity={"low": []})
    instances = await recovery.dependencies.store.live_instances("default", "django")
    assert alerts.named("alert", recovery, instances) == ["ops@example.com"]


async def test_recipients_of_other_channels_are_recorded_as_skipped() -> None:
    mailer = RecordingMailer()
    recovery = await ended(
        ScriptedDispatch(waiter=applied), mailer, alert_recipients=["ops@example.com", "slack-webhook-url"]
    )
    sent, skipped = await alerts.send("alert", recovery)
    assert sent.status == "sent"
    assert (skipped.recipients, skipped.status) == (("slack-webhook-url",), "skipped")
    assert skipped.detail == "neither an e-mail address nor the https:// address of a webhook"


async def test_what_was_not_verified_is_not_called_recovered_and_is_escalated() -> None:
    mailer = RecordingMailer()
    recovery = await ended(ScriptedDispatch(waiter=nothing_seen), mailer)
    await announce(recovery, escalation_recipients=["commander@example.com"])
    assert recovery.record.status is Status.UNKNOWN
    [escalation] = await alerts.send("escalation", recovery)
    assert escalation.subject == "[critical] Escalation: Not verified: OperationalError in django"
    text = mailer.sent[0][2]
    assert "treat it as broken" in text
    assert "recovered." not in text.lower().replace("not recovered.", "")


async def test_escalation_is_for_what_failed_from_a_severity_on() -> None:
    recovery = await ended(ScriptedDispatch(waiter=applied))
    assert alerts.due("alert", recovery) is None
    assert alerts.due("escalation", recovery) == "the runbook sends no escalation for recovered"
    recovery.record = replace(recovery.record, status=Status.NOT_RECOVERED)
    assert alerts.due("escalation", recovery) is None
    recovery.record = replace(recovery.record, severity=recovery.record.severity.lowered().lowered())
    assert alerts.due("escalation", recovery) == "severity medium is below high"
    recovery.record = replace(recovery.record, status=Status.CANCELLED)
    assert alerts.due("alert", recovery) == "the recovery was cancelled"


async def test_no_recipients_at_all_is_said() -> None:
    recovery = await ended(ScriptedDispatch(waiter=applied))
    [alert] = await alerts.send("alert", recovery)
    assert (alert.status, alert.detail) == ("skipped", "no recipients are configured")


@pytest.mark.parametrize(
    "url", ["localhost:25", "http://localhost", "smtp://", "smtp://host:port", "smtp://host?ssl=true"]
)
def test_a_wrong_smtp_address_is_told_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="UPRIGHT_SMTP_URL"):
        SmtpMailer(url)
