"""Recipients: whom the settings name, and by which channel each is reached."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pydantic import ValidationError

from upright.domain.directive import AlertSettings
from upright.domain.severity import Severity
from upright.services.ports import Instance

Kind = Literal["alert", "escalation"]

_ADDRESS = re.compile(r"[^@\s,<>/]+@[^@\s,<>/]+")


@dataclass(frozen=True)
class Channels:
    """The same people, by channel, each once."""

    emails: tuple[str, ...] = ()
    webhooks: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def sort(named: Iterable[str]) -> Channels:
    emails, webhooks, unknown = list[str](), list[str](), list[str]()
    for one in dict.fromkeys(name.strip() for name in named):
        if one.lower().startswith(("https://", "http://")):
            webhooks.append(one)
        elif _ADDRESS.fullmatch(one):
            emails.append(one)
        else:
            unknown.append(one)
    return Channels(tuple(emails), tuple(webhooks), tuple(unknown))


def shown(recipient: str) -> str:
    """What may be recorded and read. The address of a webhook is a secret: whoever has it can post there."""
    if "/" not in recipient:
        return recipient
    try:
        host = urlsplit(recipient if "://" in recipient else f"//{recipient}").hostname or "webhook"
    except ValueError:
        host = "webhook"
    return f"{host}/…{hashlib.sha256(recipient.encode()).hexdigest()[:8]}"


def announced(instances: Sequence[Instance]) -> AlertSettings | None:
    """By the process that was heard last."""
    for instance in sorted(instances, key=lambda one: one.seen_at, reverse=True):
        if instance.settings:
            try:
                return AlertSettings.model_validate(instance.settings)
            except ValidationError:
                continue
    return None


def named(kind: Kind, severity: Severity, settings: AlertSettings | None, own: Sequence[str]) -> list[str]:
    """Whom to tell. ALERTS_BY_SEVERITY goes before ERROR_ALERT_RECIPIENTS, an empty list in it means nobody; the
    service's own setting counts where the application has announced none."""
    if settings is None:
        return list(own) if kind == "alert" else []
    if kind == "escalation":
        return list(settings.escalation_recipients)
    if settings.alerts_by_severity is not None and severity.value in settings.alerts_by_severity:
        return list(settings.alerts_by_severity[severity.value])
    return list(settings.alert_recipients) or list(own)


def everyone(settings: AlertSettings | None, own: Sequence[str]) -> list[str]:
    """Whoever could be told, those of escalations first: for when those who should be can't be reached."""
    if settings is None:
        return list(own)
    return list(dict.fromkeys([*settings.escalation_recipients, *settings.alert_recipients, *own]))


def known(settings: AlertSettings | None, own: Sequence[str]) -> list[str]:
    """Every recipient that is set anywhere."""
    by_severity = (settings.alerts_by_severity or {}).values() if settings is not None else ()
    return list(dict.fromkeys([*everyone(settings, own), *(one for those in by_severity for one in those)]))
