"""Slack, and what takes its webhooks: a notice as a message of Block Kit, posted to an incoming webhook.

The address of a webhook comes from the application and is a secret: it leads to allowed hosts only, redirects are not
followed, and no message of ours tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from slack_sdk.models.blocks import Block, DividerBlock, HeaderBlock, SectionBlock
from slack_sdk.webhook import WebhookClient, WebhookResponse

from upright.errors import ChannelRefused, ConfigurationError, Unavailable
from upright.services.notice import Link, Notice, Part

TIMEOUT_S = 5
TOTAL_S = 8.0
"""With whatever a slow peer makes of the above, which is for each read."""
THREADS = 4
MAX_BLOCKS, MAX_HEADER, MAX_SECTION = 50, 150, 3000
LONGEST_LINE = 1000
LONGEST_ESCAPED = 2900
"""It shares a section with nothing but its bullet then."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PORTS = {"https": 443, "http": 80}
# The client writes addresses to its log; this one belongs to no tree of loggers and takes nothing.
_SILENT = logging.Logger("slack", logging.CRITICAL + 1)


class SlackWebhooks:
    def __init__(self, hosts: Sequence[str], *, trusted: ssl.SSLContext | None = None) -> None:
        self._allowed = frozenset(_host_and_port(host) for host in hosts)
        self._trusted = trusted
        self._threads = ThreadPoolExecutor(THREADS, "upright-slack")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, notice: Notice) -> None:
        host = self._check(url)
        payload = message(notice)
        client = _Client(url, timeout=TIMEOUT_S, ssl=self._trusted, logger=_SILENT, retry_handlers=[])
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TOTAL_S):
                answer = await loop.run_in_executor(self._threads, lambda: client.send(**payload))
        except TimeoutError:
            raise Unavailable(f"{host} did not answer in time") from None
        except Exception as error:
            # Its text may hold the address.
            reason = getattr(error, "reason", None)
            told = reason if isinstance(reason, OSError) else type(error).__name__
            raise Unavailable(f"{host} can't be reached: {told}".replace(url, "…")) from None
        if answer.status_code == HTTPStatus.OK:
            return
        said = f"{host} answers {answer.status_code} {_line(str(answer.body), 100)}".rstrip().replace(url, "…")
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS or answer.status_code >= 500:
            raise Unavailable(said)
        raise ChannelRefused(said)

    def _check(self, url: str) -> str:
        """Its host, if it may be posted to. Raises ChannelRefused."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            raise ChannelRefused("the address of the webhook is none") from None
        if parts.username is not None or parts.password is not None:
            raise ChannelRefused("the address of the webhook holds a user or password")
        if (host, port) not in self._allowed:
            raise ChannelRefused(f"UPRIGHT_ALERT_HOSTS does not name {host if port == 443 else f'{host}:{port}'}")
        if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
            raise ChannelRefused("the address of the webhook is not https")
        return host


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Whoever answers for an allowed host doesn't lead us to another one."""


class _Client(WebhookClient):
    def _perform_http_request_internal(self, url: str, req: urllib.request.Request) -> WebhookResponse:
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects(), urllib.request.HTTPSHandler(context=self.ssl)]
        if (urlsplit(url).hostname or "") in _LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))
        elif self.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": self.proxy, "https": self.proxy}))
        # post() has seen to it that the scheme is http or https.
        with contextlib.closing(urllib.request.build_opener(*handlers).open(req, timeout=self.timeout)) as answer:
            body = answer.read(10_000).decode("utf-8", "replace")
            return WebhookResponse(url="", status_code=answer.status, body=body, headers={})


def _host_and_port(entry: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{entry}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.path or parts.username is not None:  # pyright: ignore[reportPossiblyUnboundVariable]
        raise ConfigurationError("UPRIGHT_ALERT_HOSTS lists hosts, each as hooks.example.com or hooks.example.com:8443")
    return host.lower(), port or 443


def message(notice: Notice) -> dict[str, Any]:
    """Within the limits of Block Kit, whatever the notice holds."""
    blocks: list[Block] = [HeaderBlock(text=_line(notice.subject, MAX_HEADER))]
    links = [SectionBlock(text=one) for one in _fitted(map(_linked, notice.links))]
    body = [block for part in notice.parts for block in _shown(part)]
    room = MAX_BLOCKS - len(blocks) - len(links) - 2
    if len(body) > room:
        body = [*body[:room], SectionBlock(text="_There is more: see the run._")]
    if links:
        links = [DividerBlock(), *links]
    return {
        "text": _mrkdwn(_line(notice.subject, 300)),
        "blocks": [*blocks, *body, *links],
        "unfurl_links": False,
        "unfurl_media": False,
    }


def _shown(part: Part) -> Iterator[Block]:
    title = [f"*{_mrkdwn(_line(part.title, 200))}*"] if part.title else []
    lines = (_mrkdwn(_cut(line, LONGEST_LINE)) for line in part.lines)
    marked = (line if line.startswith(" ") or not part.title else f"• {line}" for line in lines)
    yield from (SectionBlock(text=one) for one in _fitted([*title, *marked]))


def _fitted(lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    """As few texts as hold them. A line is never cut here: that could leave half an entity or half a link."""
    text = ""
    for line in lines:
        if text and len(text) + 1 + len(line) > MAX_SECTION:
            yield text
            text = ""
        text = f"{text}\n{line}" if text else line
    if text.strip():
        yield text


def _linked(link: Link) -> str:
    url = link.url.replace("|", "%7C").replace(">", "%3E").replace("<", "%3C")
    return f"<{url.replace('&', '&amp;')}|{_mrkdwn(_line(link.label, 100)).replace('|', '/')}>"


def _mrkdwn(text: str) -> str:
    """So that no text of an error makes a link or calls everyone."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped if len(escaped) <= LONGEST_ESCAPED else _mrkdwn(_cut(text, len(text) // 2))


def _line(text: str, most: int) -> str:
    return _cut(" ".join(text.split()), most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
