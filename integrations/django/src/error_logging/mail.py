"""Alerts by e-mail, through the application's own e-mail settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.mail import EmailMultiAlternatives

MAX_RECIPIENTS = 50


def send(email: Mapping[str, Any]) -> int:
    """Send it; how many messages went out. Raises what Django's e-mail backend raises, and ValueError."""
    recipients = [str(one) for one in email.get("recipients") or []]
    if not recipients or len(recipients) > MAX_RECIPIENTS:
        raise ValueError(f"an alert has 1 to {MAX_RECIPIENTS} recipients, not {len(recipients)}")
    # A line break in a subject would let it add headers; Django refuses it, so it is taken out.
    subject = " ".join(str(email.get("subject") or "Upright").split())[:200]
    message = EmailMultiAlternatives(subject, str(email.get("text") or ""), settings.DEFAULT_FROM_EMAIL, recipients)
    if email.get("html"):
        message.attach_alternative(str(email["html"]), "text/html")
    return message.send()
