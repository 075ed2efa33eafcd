"""Delivery: one notice to several people, by all their channels at once, each tried again before it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID, uuid4

from upright.domain.directive import AlertSettings, Command, Email
from upright.errors import ChannelRefused, Unavailable
from upright.services import recipients
from upright.services.notice import Notice
from upright.services.ports import AlertKind, AlertRecord, Instance
from upright.services.recovery import Recovery

ATTEMPTS = 3
BACKOFF_S = (0.5, 2.0)
"""Before the second and the third."""
BUDGET_S = 26.0
"""For all attempts of one round; a second one falls back to others. The task that sends has a minute."""
SEND_DEADLINE_MS = 15_000


@dataclass(frozen=True)
class _Target:
    channel: str
    recipients: tuple[str, ...]
    """As they are recorded."""
    send: Callable[[], Awaitable[str]]
    """How it went out. Raises ChannelRefused, Unavailable."""


class Delivery:
    """Of one kind of message about one recovery. What an earlier run of it has sent is not sent again."""

    def __init__(
        self,
        recovery: Recovery,
        kind: AlertKind,
        instances: Sequence[Instance],
        *,
        about: str = "",
        done: Sequence[AlertRecord] = (),
        record_for: UUID | None = None,
    ) -> None:
        self._recovery = recovery
        self._dependencies = recovery.dependencies
        self._kind: AlertKind = kind
        self._instances = instances
        self._about = about
        self._done = list(done)
        self._id = record_for or recovery.record.id
        self._records: list[AlertRecord] = []

    async def send(self, notice: Notice, named: Sequence[str]) -> list[AlertRecord]:
        """Tell those who are named; if none of them can be reached, whoever else could be. Records each attempt."""
        await self._round(notice, named)
        tried = any(one.status == "failed" for one in self._records)
        if tried and not any(one.status == "sent" for one in (*self._done, *self._records)):
            others = [one for one in recipients.everyone(self._settings, self._own) if one not in named]
            if others:
                why = "You are told since those who should be could not be reached."
                await self._round(notice.opening(why), others)
        return self._records

    @property
    def _settings(self) -> AlertSettings | None:
        return recipients.announced(self._instances)

    @property
    def _own(self) -> Sequence[str]:
        return self._dependencies.settings.alert_recipients

    async def _round(self, notice: Notice, named: Sequence[str]) -> None:
        end = asyncio.get_running_loop().time() + BUDGET_S
        trying = [self._try(notice, one, end) for one in self._targets(notice, named) if not self._over(one)]
        # All are heard out: what one channel does to us is no reason to leave another.
        for result in await asyncio.gather(*trying, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _targets(self, notice: Notice, named: Sequence[str]) -> list[_Target]:
        channels = recipients.sort(named)
        targets = [
            _Target("slack", (recipients.shown(url),), lambda url=url: self._post(url, notice))
            for url in channels.webhooks
        ]
        if channels.emails:
            email = Email(
                recipients=list(channels.emails), subject=notice.subject, text=notice.text(), html=notice.html()
            )
            targets.insert(0, _Target("email", channels.emails, _Mailing(self._recovery, self._instances, email)))
        if channels.unknown:
            targets.append(_Target("other", tuple(map(recipients.shown, channels.unknown)), _unknown))
        return targets

    def _over(self, target: _Target) -> bool:
        """Whether an earlier run has sent it, or has done all it could."""
        before = [one for one in self._done if (one.channel, one.recipients) == (target.channel, target.recipients)]
        return any(one.status in ("sent", "skipped") or one.attempt >= ATTEMPTS for one in before)

    async def _try(self, notice: Notice, target: _Target, end: float) -> None:
        clock = asyncio.get_running_loop().time
        for attempt in range(1, ATTEMPTS + 1):
            status, detail, again = await self._attempt(target, max(0.1, end - clock()))
            record = AlertRecord(
                self._id, self._kind, target.channel, target.recipients, notice.subject, status, detail, self._about,
                attempt,
            )  # fmt: skip
            self._records.append(record)
            await self._dependencies.store.record_alert(record)
            if not again or attempt == ATTEMPTS or clock() + BACKOFF_S[attempt - 1] >= end:
                return
            await asyncio.sleep(BACKOFF_S[attempt - 1])

    async def _attempt(self, target: _Target, left_s: float) -> tuple[Literal["sent", "failed", "skipped"], str, bool]:
        """What became of it, why, and whether to try again."""
        if target.send is _unknown:
            return "skipped", await _unknown(), False
        try:
            async with asyncio.timeout(left_s):
                return "sent", await target.send(), False
        except ChannelRefused as error:
            return "failed", str(error), False
        except Unavailable as error:
            return "failed", str(error), True
        except TimeoutError:
            return "failed", "no answer in time", True

    async def _post(self, url: str, notice: Notice) -> str:
        if self._dependencies.webhooks is None:
            raise ChannelRefused("webhooks are not available here")
        await self._dependencies.webhooks.post(url, notice)
        return ""


async def _unknown() -> str:
    return "neither an e-mail address nor the https:// address of a webhook"


class _Mailing:
    """An e-mail, through the application's own settings if one of its processes can, else by the service itself."""

    def __init__(self, recovery: Recovery, instances: Sequence[Instance], email: Email) -> None:
        self._dependencies, self._record = recovery.dependencies, recovery.record
        self._email = email
        self._agents = any("send_email" in _commands(one) for one in instances)

    async def __call__(self) -> str:
        detail = "no process of the application can send e-mail"
        silent = not self._agents
        if self._agents:
            command = Command(id=uuid4(), kind="send_email", deadline_ms=SEND_DEADLINE_MS, email=self._email)
            result = await self._dependencies.dispatch.to_agent(self._record.tenant, self._record.service, command)
            if result is not None and result.status == "done":
                return "by the application"
            if result is None:
                # It may have been sent all the same, so this way is not tried twice.
                detail, silent, self._agents = "the application did not answer", True, False
            else:
                detail = f"the application {result.status}: {result.reason}"
        if self._dependencies.mailer is None:
            told = f"{detail}; UPRIGHT_SMTP_URL is not set"
            raise ChannelRefused(told) if silent else Unavailable(told)
        try:
            await self._dependencies.mailer.send(
                self._email.recipients, self._email.subject, self._email.text, self._email.html
            )
        except Unavailable as error:
            raise Unavailable(f"{detail}; {error}") from error
        return f"by the service ({detail})"


def _commands(instance: Instance) -> list[str]:
    announced = instance.capabilities.get("commands")
    return [str(one) for one in announced] if isinstance(announced, list) else ["send_email"]  # pyright: ignore
