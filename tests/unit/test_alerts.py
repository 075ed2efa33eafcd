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
from upright.errors import ChannelRefused, ConfigurationError, Unavailable
from upright.services import alerts, delivery, recipients
from upright.services.dependencies import Dependencies
from upright.services.notice import Notice
from upright.services.ports import AlertRecord
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


# Channels

HOOK = "https://hooks.slack.com/services/T0/B0/s3cret"


class Chat:
    """Takes what is posted; the next failures first."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.posted: list[tuple[str, Notice]] = []
        self.tries = 0

    async def post(self, url: str, notice: Notice) -> None:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        self.posted.append((url, notice))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BACKOFF_S", (0.0, 0.0))


async def chatting(
    chat: Chat, waiter: Any = applied, mailer: RecordingMailer | None = None, **announced: Any
) -> Recovery:
    recovery = await ended(ScriptedDispatch(waiter=waiter), mailer)
    recovery.dependencies = replace(recovery.dependencies, webhooks=chat)
    await announce(recovery, **announced)
    return recovery


async def test_a_webhook_is_posted_to_and_its_address_is_not_recorded() -> None:
    chat, mailer = Chat(), RecordingMailer()
    recovery = await chatting(chat, mailer=mailer, alert_recipients=[HOOK, "ops@example.com"])
    email, slack = await alerts.send("alert", recovery, ["http://prefect/runs/1"])
    assert (email.channel, email.status, slack.channel, slack.status) == ("email", "sent", "slack", "sent")
    [(url, notice)] = chat.posted
    assert url == HOOK
    assert notice.subject == "[critical] Recovered: OperationalError in django"
    assert [link.url for link in notice.links] == ["http://prefect/runs/1"]
    assert slack.recipients[0].startswith("hooks.slack.com/…")
    assert "s3cret" not in repr(await recovery.dependencies.store.alerts(recovery.record.id))
    assert "<h3>What failed</h3>" in mailer.html[0]


async def test_a_channel_that_fails_is_tried_again_and_each_attempt_is_recorded() -> None:
    chat = Chat(Unavailable("hooks.slack.com answers 500"), Unavailable("hooks.slack.com answers 503"))
    recovery = await chatting(chat, alert_recipients=[HOOK])
    found = await alerts.send("alert", recovery)
    assert [(one.attempt, one.status) for one in found] == [(1, "failed"), (2, "failed"), (3, "sent")]
    assert await recovery.dependencies.store.alerts(recovery.record.id) == found


async def test_what_is_refused_is_not_tried_again() -> None:
    chat = Chat(ChannelRefused("hooks.slack.com answers 404 no_service"))
    recovery = await chatting(chat, alert_recipients=[HOOK])
    [found] = await alerts.send("alert", recovery)
    assert (found.status, found.attempt, chat.tries) == ("failed", 1, 1)


async def test_if_nobody_can_be_reached_the_others_are_told() -> None:
    chat, mailer = Chat(*(Unavailable("hooks.slack.com answers 500") for _ in range(3))), RecordingMailer()
    recovery = await chatting(
        chat, mailer=mailer, alert_recipients=[HOOK], escalation_recipients=["commander@example.com"]
    )
    found = await alerts.send("alert", recovery)
    assert [(one.channel, one.status) for one in found] == [*([("slack", "failed")] * 3), ("email", "sent")]
    assert found[-1].recipients == ("commander@example.com",)
    assert "You are told since those who should be could not be reached." in mailer.sent[0][2]


async def test_if_one_channel_works_nobody_else_is_told() -> None:
    chat, mailer = Chat(*(Unavailable("down") for _ in range(3))), RecordingMailer()
    recovery = await chatting(
        chat, mailer=mailer, alert_recipients=[HOOK, "ops@example.com"], escalation_recipients=["boss@example.com"]
    )
    await alerts.send("alert", recovery)
    assert [to for to, _, _ in mailer.sent] == [("ops@example.com",)]


async def test_a_run_that_is_taken_up_sends_what_was_not_sent_yet() -> None:
    chat, mailer = Chat(), RecordingMailer()
    recovery = await chatting(chat, mailer=mailer, alert_recipients=[HOOK, "ops@example.com"])
    store = recovery.dependencies.store
    shown = recipients.shown(HOOK)
    for status, attempt in (("failed", 1), ("sent", 2)):
        await store.record_alert(
            AlertRecord(recovery.record.id, "alert", "slack", (shown,), "it", status, attempt=attempt)  # type: ignore[arg-type]
        )
    await alerts.send("alert", recovery)
    assert (chat.posted, len(mailer.sent)) == ([], 1)
    await alerts.send("alert", recovery)
    assert (chat.posted, len(mailer.sent)) == ([], 1)


async def test_those_told_by_a_webhook_hear_of_the_relapse_there() -> None:
    chat = Chat()
    first = await chatting(chat, alert_recipients=[HOOK])
    await alerts.send("alert", first)
    second = await again(first)
    second.relapsed = replace(first.record, status=Status.RELAPSED, relapse="it came back 42 s after it")
    for _ in range(2):
        await alerts.follow_up(second)
    assert [notice.subject for _, notice in chat.posted][1:] == ["[critical] Relapsed: OperationalError in django"]
    assert chat.posted[1][0] == HOOK


# Storms


async def again(recovery: Recovery, status: Status | None = None) -> Recovery:
    """A later recovery of the same incident, with the same end unless another is given."""
    store, event = recovery.dependencies.store, error_event(DJANGO_OPERATIONAL_ERROR)
    acceptance = await store.accept(
        "default", str(event.error_id), event, fingerprint="f", runbook=recovery.runbook.name,
        severity=recovery.record.severity, cooldown_s=0,
    )  # fmt: skip
    assert acceptance.recovery is not None
    opened = acceptance.recovery
    record = replace(recovery.record, id=opened.id, incident_id=opened.incident_id, error_id=event.error_id)
    record = replace(record, status=status or record.status)
    store.records[record.id] = record  # type: ignore[attr-defined]
    return Recovery(recovery.dependencies, record, event, recovery.runbook)


async def test_a_storm_is_told_once_and_then_with_its_count() -> None:
    chat = Chat()
    first = await chatting(chat, alert_recipients=[HOOK])
    await alerts.send("alert", first)
    for _ in range(3):
        [held] = await alerts.send("alert", await again(first))
        assert (held.status, held.recipients) == ("held", (recipients.shown(HOOK),))
        assert "repeat_s is 3600" in held.detail
    assert len(chat.posted) == 1
    later = await again(first)
    later.runbook = first.runbook.model_copy(update={"alert": first.runbook.alert.model_copy(update={"repeat_s": 0})})
    await alerts.send("alert", later)
    assert "3 more recoveries of it ended as told then; no message was sent for it." in chat.posted[1][1].text()


async def test_another_outcome_is_told_at_once() -> None:
    chat = Chat()
    first = await chatting(chat, alert_recipients=[HOOK])
    await alerts.send("alert", first)
    await alerts.send("alert", await again(first, Status.NOT_RECOVERED))
    await alerts.send("alert", await again(first))
    assert [notice.subject.partition(":")[0] for _, notice in chat.posted] == [
        "[critical] Recovered", "[critical] Not recovered", "[critical] Recovered",
    ]  # fmt: skip


async def test_what_is_left_behind_is_told_even_in_a_storm() -> None:
    chat = Chat()
    first = await chatting(chat, alert_recipients=[HOOK])
    await alerts.send("alert", first)
    later = await again(first)
    later.not_reverted.append("pool_increase in host:1:boot")
    [sent] = await alerts.send("alert", later)
    assert sent.status == "sent"
    assert "NOT REVERTED" in chat.posted[1][1].text()


@pytest.mark.parametrize(
    ("recipient", "told"),
    [
        ("ops@example.com", "ops@example.com"),
        (HOOK, "hooks.slack.com/…"),
        ("hooks.slack.com/services/T0/B0/s3cret", "hooks.slack.com/…"),
        ("https://[bad/s3cret", "webhook/…"),
    ],
)
def test_the_address_of_a_webhook_is_not_shown(recipient: str, told: str) -> None:
    assert recipients.shown(recipient).startswith(told)
    assert "s3cret" not in recipients.shown(recipient)
