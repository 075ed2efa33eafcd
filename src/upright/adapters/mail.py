"""E-mail by the service's own SMTP address (UPRIGHT_SMTP_URL)."""

from __future__ import annotations

from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib

from upright.errors import ConfigurationError, Unavailable

TIMEOUT_S = 10.0
_FORM = "smtp://user:password@host:port[?tls=true&from=address]"


class SmtpMailer:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        unknown = sorted(set(options) - {"tls", "from"})
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"UPRIGHT_SMTP_URL: {error}; the form is {_FORM}") from None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or unknown:
            raise ConfigurationError(f"UPRIGHT_SMTP_URL is not of the form {_FORM}")
        self._host = parts.hostname
        self._implicit_tls = parts.scheme == "smtps"
        self._start_tls = options.get("tls", "false").lower() in ("true", "1", "yes")
        self._port = port or (465 if self._implicit_tls else 587 if self._start_tls else 25)
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._sender = options.get("from", f"upright@{self._host}")

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    async def check(self, timeout_s: float = TIMEOUT_S) -> None:
        """Connect, encrypt and log in as for an e-mail, and send none. Raises Unavailable."""
        client = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            username=self._user,
            password=self._password,
            use_tls=self._implicit_tls,
            start_tls=self._start_tls and not self._implicit_tls,
            timeout=timeout_s,
        )
        try:
            async with client:
                await client.noop()
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Unavailable(f"{self.address} is not ready for e-mail: {error}") from error

    async def send(self, recipients: Sequence[str], subject: str, text: str, html: str = "") -> None:
        """Raises Unavailable."""
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = ", ".join(recipients)
        message["Subject"] = " ".join(subject.split())
        message["Date"] = formatdate()
        message["Message-ID"] = make_msgid(domain="upright.invalid")
        message.set_content(text)
        if html:
            message.add_alternative(html, subtype="html")
        try:
            await aiosmtplib.send(
                message,
                hostname=self._host,
                port=self._port,
                username=self._user,
                password=self._password,
                use_tls=self._implicit_tls,
                start_tls=self._start_tls and not self._implicit_tls,
                timeout=TIMEOUT_S,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Unavailable(f"{self.address} did not take the e-mail: {error}") from error
