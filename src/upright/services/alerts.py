"""Alerts: tell the people whom the application's settings name what became of a recovery."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from uuid import uuid4

from pydantic import ValidationError

from upright.domain.directive import AlertSettings, Command, Email
from upright.domain.verdict import Status
from upright.errors import UprightError
from upright.services import reporting
from upright.services.ports import AlertRecord, Instance
from upright.services.recovery import Recovery

SEND_DEADLINE_MS = 15_000

Kind = Literal["alert", "escalation"]

_ADDRESS = re.compile(r"[^@\s,<>]+@[^@\s,<>]+\.?[^@\s,<>]*")


def recipients(kind: Kind, recovery: Recovery, instances: Sequence[Instance]) -> list[str]:
    """Whom to tell. ALERTS_BY_SEVERITY goes before ERROR_ALERT_RECIPIENTS, an empty list in it means nobody; the
    service's own setting counts where the application has announced none."""
    severity, own = recovery.record.severity, recovery.dependencies.settings.alert_recipients
    announced = _announced(instances)
    if announced is None:
        return list(own) if kind == "alert" else []
    if kind == "escalation":
        return list(announced.escalation_recipients)
    if announced.alerts_by_severity is not None and severity.value in announced.alerts_by_severity:
        return list(announced.alerts_by_severity[severity.value])
    return list(announced.alert_recipients) or list(own)


def addresses(named: Sequence[str]) -> list[str]:
    """Those that e-mail reaches, each once."""
    return [one for one in dict.fromkeys(named) if _ADDRESS.fullmatch(one)]


def _announced(instances: Sequence[Instance]) -> AlertSettings | None:
    for instance in sorted(instances, key=lambda one: one.seen_at, reverse=True):
        if instance.settings:
            try:
                return AlertSettings.model_validate(instance.settings)
            except ValidationError:
                continue
    return None


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
    if done:
        return done
    if (await store.recovery(record.id)).status is Status.RELAPSED:
        # The recovery that came after it has more to tell.
        return []
    instances = await store.live_instances(record.tenant, record.service)
    named = list(dict.fromkeys(recipients(kind, recovery, instances)))
    addresses = [one for one in named if _ADDRESS.fullmatch(one)]
    others = [one for one in named if one not in addresses]
    email = Email(
        recipients=addresses, subject=reporting.subject(recovery, kind), text=reporting.alert_text(recovery, links)
    )
    found: list[AlertRecord] = []
    if addresses:
        status, detail = await deliver(recovery, instances, email)
        found.append(AlertRecord(record.id, kind, "email", tuple(addresses), email.subject, status, detail))
    if others:
        detail = "channel not available in this version"
        found.append(AlertRecord(record.id, kind, "other", tuple(others), email.subject, "skipped", detail))
    if not named:
        found.append(AlertRecord(record.id, kind, "none", (), email.subject, "skipped", "no recipients are configured"))
    for alert in found:
        await store.record_alert(alert)
    return found


async def follow_up(recovery: Recovery, links: Sequence[str] = ()) -> list[AlertRecord]:
    """Tell those who were told that it had recovered that it came back, once."""
    store, former = recovery.dependencies.store, recovery.relapsed
    if former is None:
        return []
    told = await store.alerts(former.id)
    done = [alert for alert in told if alert.kind == "relapse"]
    sent = [alert for alert in told if alert.status == "sent" and alert.channel == "email"]
    if done or not sent:
        return done
    addresses = list(dict.fromkeys(who for alert in sent for who in alert.recipients))
    instances = await store.live_instances(recovery.record.tenant, recovery.record.service)
    email = Email(
        recipients=addresses,
        subject=reporting.relapse_subject(recovery),
        text=reporting.relapse_text(recovery, former, links),
    )
    status, detail = await deliver(recovery, instances, email)
    alert = AlertRecord(former.id, "relapse", "email", tuple(addresses), email.subject, status, detail)
    await store.record_alert(alert)
    return [alert]


async def deliver(
    recovery: Recovery, instances: Sequence[Instance], email: Email
) -> tuple[Literal["sent", "failed"], str]:
    """Through the application's own e-mail settings if one of its processes can, else by the service itself."""
    dependencies, record = recovery.dependencies, recovery.record
    detail = "no process of the application can send e-mail"
    if any("send_email" in _commands(one) for one in instances):
        command = Command(id=uuid4(), kind="send_email", deadline_ms=SEND_DEADLINE_MS, email=email)
        result = await dependencies.dispatch.to_agent(record.tenant, record.service, command)
        if result is not None and result.status == "done":
            return "sent", "by the application"
        detail = (
            "the application did not answer" if result is None else f"the application {result.status}: {result.reason}"
        )
    if dependencies.mailer is None:
        return "failed", f"{detail}; UPRIGHT_SMTP_URL is not set"
    try:
        await dependencies.mailer.send(email.recipients, email.subject, email.text)
    except UprightError as error:
        return "failed", f"{detail}; {error}"
    return "sent", f"by the service ({detail})"


def _commands(instance: Instance) -> list[str]:
    announced = instance.capabilities.get("commands")
    return [str(one) for one in announced] if isinstance(announced, list) else ["send_email"]  # pyright: ignore
