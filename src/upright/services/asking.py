"""Asking: tell people that a run waits for their approval."""

from __future__ import annotations

from collections.abc import Sequence

from upright.domain.directive import Email
from upright.services import alerts, reporting
from upright.services.guardrails import Approval, links
from upright.services.ports import AlertRecord
from upright.services.recovery import Recovery


async def ask(recovery: Recovery, question: Approval, more: Sequence[str] = ()) -> list[AlertRecord]:
    """Once for each question; whoever is told of alerts or escalations is asked."""
    store, record = recovery.dependencies.store, recovery.record
    subject = f"[{record.severity.value}] Approval wanted: {question.strategy} in {record.service}"
    done = [one for one in await store.alerts(record.id) if (one.kind, one.subject) == ("approval", subject)]
    if done:
        return done
    instances = await store.live_instances(record.tenant, record.service)
    named = [*alerts.recipients("alert", recovery, instances), *alerts.recipients("escalation", recovery, instances)]
    addresses = alerts.addresses(named)
    if addresses:
        email = Email(recipients=addresses, subject=subject, text=_text(recovery, question, more))
        status, detail = await alerts.deliver(recovery, instances, email)
        found = AlertRecord(record.id, "approval", "email", tuple(addresses), subject, status, detail)
    else:
        found = AlertRecord(record.id, "approval", "none", (), subject, "skipped", "no recipients are configured")
    await store.record_alert(found)
    return [found]


def _text(recovery: Recovery, question: Approval, more: Sequence[str]) -> str:
    settings, event = recovery.dependencies.settings, recovery.event
    lines = [
        f"{reporting.title(question.strategy)} waits for a person's approval.",
        "",
        "What failed",
        f"  {event.error.type}: {event.error.message}",
        f"  service {question.service}, severity {recovery.record.severity.value}, error {recovery.record.error_id}",
        "",
        "What would be done",
        f"  {question.plan}",
        *(f"  {name}: {value}" for name, value in question.values.items()),
        "",
        f"Decide until {question.expires_at:%Y-%m-%d %H:%M:%S %Z}; after that it is not done.",
        f"  upright approvals approve {question.id} --by NAME",
        f"  upright approvals reject {question.id} --by NAME",
    ]
    if settings.public_url and settings.approval_secret is not None:
        lines.append(f"  {links.address(settings.public_url, settings.approval_secret.get_secret_value(), question)}")
    lines += [f"  {link}" for link in more]
    return "\n".join(lines) + "\n"
