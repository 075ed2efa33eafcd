"""Alerts: tell the people whom the application's settings name what became of a recovery."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from upright.domain.verdict import Status
from upright.services import recipients, reporting
from upright.services.delivery import Delivery
from upright.services.ports import AlertRecord, Instance, Told
from upright.services.recipients import Kind
from upright.services.recovery import Recovery

__all__ = ["Kind", "due", "follow_up", "named", "send"]


def named(kind: Kind, recovery: Recovery, instances: Sequence[Instance]) -> list[str]:
    """Whom to tell, each once."""
    own = recovery.dependencies.settings.alert_recipients
    found = recipients.named(kind, recovery.record.severity, recipients.announced(instances), own)
    return list(dict.fromkeys(found))


def due(kind: Kind, recovery: Recovery) -> str | None:
    """Why nothing is to be sent, or None."""
    rules, record = recovery.runbook.alert, recovery.record
    if recovery.not_reverted:
        return None
    if recovery.told:
        return "people know of this error since recovery was stopped or put on hold"
    if record.status is Status.CANCELLED:
        return "the recovery was cancelled"
    if record.status not in (rules.on if kind == "alert" else rules.escalate_on):
        return f"the runbook sends no {kind} for {record.status.value}"
    left_to_people = bool(record.withheld or recovery.guard.begun)
    if kind == "escalation" and not left_to_people and record.severity.rank > rules.escalate_from.rank:
        return f"severity {record.severity.value} is below {rules.escalate_from.value}"
    return None


async def send(kind: Kind, recovery: Recovery, links: Sequence[str] = ()) -> list[AlertRecord]:
    """Send one alert of a kind for a recovery, once: a run that is taken up again doesn't repeat it."""
    if due(kind, recovery) is not None:
        return []
    store, record = recovery.dependencies.store, recovery.record
    done = [alert for alert in await store.alerts(record.id) if alert.kind == kind]
    if any(alert.status == "held" or alert.channel == "none" for alert in done):
        return done
    if (await store.recovery(record.id)).status is Status.RELAPSED:
        # The recovery that came after it has more to tell.
        return []
    instances = await store.live_instances(record.tenant, record.service)
    who, about = named(kind, recovery, instances), record.status.value
    subject = reporting.subject(recovery, kind)
    if not who:
        if not done:
            detail = "no recipients are configured"
            done = [AlertRecord(record.id, kind, "none", (), subject, "skipped", detail, about)]
            await store.record_alert(done[0])
        return done
    last = await store.last_told(record.incident_id, kind)
    if not done and last is not None and _is_repeated(recovery, last):
        detail = f"the same was told {last.age_s:.0f} s before; repeat_s is {recovery.runbook.alert.repeat_s:g}"
        held = AlertRecord(record.id, kind, "none", tuple(map(recipients.shown, who)), subject, "held", detail, about)
        await store.record_alert(held)
        return [held]
    notice = reporting.notice(recovery, kind, links)
    if last is not None and last.held and not done:
        notice = notice.opening(_held_back(last))
    sent = await Delivery(recovery, kind, instances, about=about, done=done).send(notice, who)
    return [*done, *sent]


def _is_repeated(recovery: Recovery, last: Told) -> bool:
    """Whether people know it already. What needs someone's hand, and what guardrails do from now on, is always told."""
    if recovery.not_reverted or recovery.record.withheld or recovery.guard.begun or recovery.guard.demoted:
        return False
    return last.about == recovery.record.status.value and last.age_s < recovery.runbook.alert.repeat_s


def _held_back(last: Told) -> str:
    since = datetime.now(UTC) - timedelta(seconds=last.age_s)
    more = "1 more recovery of this error ended" if last.held == 1 else f"{last.held} more recoveries of it ended"
    return f"Since the last message, of {since:%Y-%m-%d %H:%M} UTC, {more} as told then; no message was sent for it."


async def follow_up(recovery: Recovery, links: Sequence[str] = ()) -> list[AlertRecord]:
    """Tell those who were told that it had recovered that it came back, once."""
    store, former = recovery.dependencies.store, recovery.relapsed
    if former is None:
        return []
    told = await store.alerts(former.id)
    done = [alert for alert in told if alert.kind == "relapse"]
    reached = {who for alert in told if alert.status == "sent" and alert.kind != "approval" for who in alert.recipients}
    if any(alert.status == "sent" for alert in done) or not reached:
        return done
    instances = await store.live_instances(recovery.record.tenant, recovery.record.service)
    # Recorded is what may be shown; the address itself is with those who set it.
    own, settings = recovery.dependencies.settings.alert_recipients, recipients.announced(instances)
    webhooks = [one for one in recipients.known(settings, own) if recipients.shown(one) in reached and "/" in one]
    who = [*sorted(one for one in reached if "/" not in one), *webhooks]
    notice = reporting.relapse(recovery, former, links)
    delivery = Delivery(recovery, "relapse", instances, about="relapsed", done=done, record_for=former.id)
    return [*done, *await delivery.send(notice, who)]
