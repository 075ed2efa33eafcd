"""Recipients of alerts: by which channel each is reached."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from error_logging import conf

Channel = Literal["email", "webhook", "unknown"]


def channel(recipient: str) -> Channel:
    try:
        parts = urlsplit(recipient)
        if parts.scheme == "https" or (parts.scheme == "http" and conf.loopback(recipient)):
            return "webhook" if parts.hostname else "unknown"
    except ValueError:
        return "unknown"
    try:
        validate_email(recipient)
    except ValidationError:
        return "unknown"
    return "email"


def shown(recipient: str) -> str:
    """What may be read: the address of a webhook is a secret. The service shows it in the same way."""
    if "/" not in recipient:
        return recipient
    try:
        host = urlsplit(recipient if "://" in recipient else f"//{recipient}").hostname or "webhook"
    except ValueError:
        host = "webhook"
    return f"{host}/…{hashlib.sha256(recipient.encode()).hexdigest()[:8]}"


def of_settings(read: conf.Conf) -> Iterator[tuple[str, str]]:
    """Each one that a setting names, after that setting."""
    yield from (("ERROR_ALERT_RECIPIENTS", one) for one in read.alert_recipients)
    yield from (("ERROR_ESCALATION_RECIPIENTS", one) for one in read.escalation_recipients)
    for severity, those in (read.alerts_by_severity or {}).items():
        yield from ((f"ALERTS_BY_SEVERITY['{severity}']", one) for one in those)
