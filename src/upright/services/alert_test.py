"""Testing channels: one message that says that it is a test, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from upright.domain.alert_test import ChannelTest
from upright.errors import ChannelRefused, Unavailable
from upright.services import recipients
from upright.services.notice import Notice, Part
from upright.services.ports import Mailer, Webhooks

NO_MAILER = "UPRIGHT_SMTP_URL is not set; `manage.py upright_test_alert` tests the application's own e-mail"


def notice(asked_by: str) -> Notice:
    return Notice(
        "Upright: a test of this alert channel",
        (
            Part((f"{asked_by} asked for it. Nothing has failed, and nothing is to be done.",)),
            Part(("the address is right", "Upright can reach it"), "What it shows"),
        ),
    )


async def try_channels(
    named: Sequence[str], *, asked_by: str, webhooks: Webhooks, mailer: Mailer | None = None
) -> list[ChannelTest]:
    """One message to each, once, all at the same time."""
    return list(await asyncio.gather(*(_try(one, notice(asked_by), webhooks, mailer) for one in named)))


async def _try(recipient: str, said: Notice, webhooks: Webhooks, mailer: Mailer | None) -> ChannelTest:
    channels = recipients.sort([recipient])
    channel = "slack" if channels.webhooks else "email" if channels.emails else "other"
    try:
        if channels.webhooks:
            await webhooks.post(channels.webhooks[0], said)
        elif channels.unknown:
            raise ChannelRefused("neither an e-mail address nor the https:// address of a webhook")
        elif mailer is None:
            raise ChannelRefused(NO_MAILER)
        else:
            await mailer.send(channels.emails, said.subject, said.text(), said.html())
    except (ChannelRefused, Unavailable) as error:
        return ChannelTest(channel=channel, recipient=recipients.shown(recipient), status="failed", detail=str(error))
    return ChannelTest(channel=channel, recipient=recipients.shown(recipient), status="sent")
