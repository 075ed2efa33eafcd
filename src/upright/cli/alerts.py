"""`upright alerts`: whether people can be told, and how it went."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from upright.cli.context import settings_for
from upright.cli.output import AsJson, console, print_json, table
from upright.domain.alert_test import ChannelTest
from upright.errors import UprightError
from upright.services.ports import ChannelDelivery

app = typer.Typer(help="Test alert channels, and see how they did.", no_args_is_help=True)
HOUR_S = 3600


@app.command("test")
def try_out(
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="An e-mail address or a webhook's, any number. [UPRIGHT_ALERT_RECIPIENTS]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send a test from here: to webhooks, and e-mail by UPRIGHT_SMTP_URL. Exit status 1 if one did not go out."""
    settings = settings_for()
    named = to or settings.alert_recipients
    if not named:
        raise UprightError("nobody to tell: give --to, or set UPRIGHT_ALERT_RECIPIENTS")

    async def work() -> list[ChannelTest]:
        from upright.adapters.mail import SmtpMailer
        from upright.adapters.slack import SlackWebhooks
        from upright.services.alert_test import try_channels

        mailer = SmtpMailer(settings.smtp_url.get_secret_value()) if settings.smtp_url is not None else None
        webhooks = SlackWebhooks(settings.alert_hosts)
        try:
            return await try_channels(named, asked_by="`upright alerts test`", webhooks=webhooks, mailer=mailer)
        finally:
            webhooks.close()

    results = asyncio.run(work())
    if as_json:
        print_json([one.model_dump() for one in results])
    else:
        for one in results:
            mark = "[green]✓[/]" if one.status == "sent" else "[red]✗[/]"
            told = f"{one.channel} {one.recipient}: {one.status}{f': {one.detail}' if one.detail else ''}"
            console.print(f"{mark} {escape(told)}", soft_wrap=True)
    if any(one.status == "failed" for one in results):
        raise typer.Exit(1)


@app.command("channels")
def channels(
    hours: Annotated[float, typer.Option("--hours", min=0.1, help="How far to look back.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Each channel that was used of late, those that failed last first."""
    settings = settings_for()

    async def read() -> Sequence[ChannelDelivery]:
        from upright import bootstrap

        async with bootstrap.dependencies(settings) as found:
            return await found.store.channel_deliveries(hours * HOUR_S)

    found = asyncio.run(read())
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [
        (
            one.channel,
            ", ".join(one.recipients),
            one.sent,
            one.failed,
            "yes" if one.works else "no",
            f"{one.last_failure:%Y-%m-%d %H:%M} {one.detail}" if one.last_failure else "",
        )
        for one in found
    ]
    table(("channel", "recipients", "sent", "failed", "works", "last failure"), rows, empty="No alerts were sent.")
