"""`manage.py upright_test_alert`: whether alerts reach those whom the settings name."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from error_logging import client, mail, recipients
from error_logging.conf import current

TIMEOUT_S = 20.0
AT_ONCE = 10
_SUBJECT = "Upright: a test of this alert channel"
_TEXT = "`manage.py upright_test_alert` asked for it. Nothing has failed, and nothing is to be done."
_HTML = "<p><code>manage.py upright_test_alert</code> asked for it. Nothing has failed, and nothing is to be done.</p>"

Result = tuple[str, str, bool, str]
"""Channel, recipient as it may be shown, whether it went out, and what is to be said of it."""


class Command(BaseCommand):
    help = (
        "Sends a test alert to every recipient that the settings name: e-mail through Django's own e-mail settings, "
        "webhooks through the Upright service, as alerts go."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--to", action="append", metavar="ADDRESS", help="Instead: an e-mail address or a webhook's, any number."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        named = options["to"] or [one for _setting, one in recipients.of_settings(current())]
        named = list(dict.fromkeys(named))
        if not named:
            raise CommandError("Nobody to tell: ERROR_ALERT_RECIPIENTS is empty. Set it, or give --to.")
        failed = 0
        for channel, shown, sent, detail in _results(named):
            failed += not sent
            style, word = (self.style.SUCCESS, "sent") if sent else (self.style.ERROR, "FAILED")
            self.stdout.write(f"{style(word)} {channel} {shown}{f': {detail}' if detail else ''}")
        if failed:
            raise CommandError(f"{failed} of {len(named)} did not go out.")


def _results(named: Sequence[str]) -> Iterator[Result]:
    by_channel = {one: recipients.channel(one) for one in named}
    for one in named:
        if by_channel[one] == "email":
            yield _email(one)
        elif by_channel[one] == "unknown":
            yield "?", recipients.shown(one), False, "neither an e-mail address nor the https:// address of a webhook"
    webhooks = [one for one in named if by_channel[one] == "webhook"]
    for start in range(0, len(webhooks), AT_ONCE):
        yield from _webhooks(webhooks[start : start + AT_ONCE])


def _email(address: str) -> Result:
    backend = str(settings.EMAIL_BACKEND)
    try:
        mail.send({"recipients": [address], "subject": _SUBJECT, "text": _TEXT + "\n", "html": _HTML})
    except Exception as error:
        return "email", address, False, f"{type(error).__name__}: {error} (EMAIL_BACKEND is {backend})"
    if backend != "django.core.mail.backends.smtp.EmailBackend":
        return "email", address, True, f"handed to {backend}"
    return "email", address, True, f"{settings.EMAIL_HOST}:{settings.EMAIL_PORT} has taken it; see whether it arrives"


def _webhooks(webhooks: Sequence[str]) -> Iterator[Result]:
    how = "on the service's machine, `upright alerts test --to URL` tests it"
    body = {"schema_version": 1, "service": current().service, "webhooks": list(webhooks)}
    try:
        answer = client.post("/v1/alerts/test", body, timeout_s=TIMEOUT_S)
        results = [dict(one) for one in answer.get("results") or []]
    except (client.Unreachable, client.Refused) as error:
        yield from (("webhook", recipients.shown(one), False, f"not tested: {error}; {how}") for one in webhooks)
        return
    for number, one in enumerate(webhooks):
        told = results[number] if number < len(results) else {"status": "failed", "detail": f"not told; {how}"}
        yield (
            str(told.get("channel") or "webhook"), recipients.shown(one), told.get("status") == "sent",
            str(told.get("detail") or ""),
        )  # fmt: skip
