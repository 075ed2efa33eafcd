"""Asking: tell people that a run waits for their approval."""

from __future__ import annotations

from collections.abc import Sequence

from upright.services import alerts, reporting
from upright.services.delivery import Delivery
from upright.services.guardrails import Approval, links
from upright.services.notice import Link, Notice, Part
from upright.services.ports import AlertRecord
from upright.services.recovery import Recovery


async def ask(recovery: Recovery, question: Approval, more: Sequence[str] = ()) -> list[AlertRecord]:
    """Once for each question; whoever is told of alerts or escalations is asked."""
    store, record = recovery.dependencies.store, recovery.record
    notice = _notice(recovery, question, more)
    done = [one for one in await store.alerts(record.id) if (one.kind, one.subject) == ("approval", notice.subject)]
    if any(one.status == "sent" or one.channel == "none" for one in done):
        return done
    instances = await store.live_instances(record.tenant, record.service)
    who = [*alerts.named("alert", recovery, instances), *alerts.named("escalation", recovery, instances)]
    if not who:
        detail = "no recipients are configured"
        found = AlertRecord(record.id, "approval", "none", (), notice.subject, "skipped", detail)
        await store.record_alert(found)
        return [found]
    return [*done, *await Delivery(recovery, "approval", instances, done=done).send(notice, who)]


def _notice(recovery: Recovery, question: Approval, more: Sequence[str]) -> Notice:
    settings, event = recovery.dependencies.settings, recovery.event
    severity = recovery.record.severity.value
    found: list[Link] = []
    if settings.public_url and settings.approval_secret is not None:
        url = links.address(settings.public_url, settings.approval_secret.get_secret_value(), question)
        found.append(Link("Approve or reject", url))
    found += [Link(reporting.RUN, link) for link in more]
    return Notice(
        f"[{severity}] Approval wanted: {question.strategy} in {recovery.record.service}",
        (
            Part((f"{reporting.title(question.strategy)} waits for a person's approval.",)),
            Part(
                (
                    f"{event.error.type}: {event.error.message}",
                    f"service {question.service}, severity {severity}, error {recovery.record.error_id}",
                ),
                "What failed",
            ),
            Part(
                (question.plan, *(f"{name}: {value}" for name, value in question.values.items())),
                "What would be done",
            ),
            Part(
                (
                    f"upright approvals approve {question.id} --by NAME",
                    f"upright approvals reject {question.id} --by NAME",
                ),
                f"Decide until {question.expires_at:%Y-%m-%d %H:%M:%S %Z}; after that it is not done",
            ),
        ),
        tuple(found),
    )
