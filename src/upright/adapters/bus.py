"""The bus: waking those who wait for a topic, in this process at once, in the others by NOTIFY.

A wake-up is a hint. Whoever waits looks at the database itself, and does so every `reconcile_s` seconds anyway: without
notifications (behind a transaction pooler, while PostgreSQL restarts) everything works, only later.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Generator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from upright.adapters.store.database import CHANNEL, address, libpq_address

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 5.0


class Subscription:
    """What one waiter waits for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._woken = asyncio.Event()
        self.topics: set[str] = set()

    def add(self, *topics: str) -> None:
        for topic in topics:
            self.topics.add(topic)
            self._bus.register(topic, self)

    def wake(self) -> None:
        self._woken.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until there is news, `timeout_s` have passed, or it is time to look anyway. True for news."""
        try:
            async with asyncio.timeout(max(0.0, min(timeout_s, self._bus.reconcile_s))):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True


class Bus:
    def __init__(self, url: str | None = None, *, reconcile_s: float = 1.0) -> None:
        """`url` of PostgreSQL; None: this process alone."""
        self.node = secrets.token_hex(4)
        self.reconcile_s = reconcile_s
        self.listening = False
        """Whether notifications of other processes arrive."""
        self.closing = False
        """Nobody should wait any longer: the process is about to end."""
        self._url = None if url is None else libpq_address(address(url))
        self._waiting: dict[str, set[Subscription]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Begin to listen, in the background: PostgreSQL may come up later."""
        self._loop = asyncio.get_running_loop()
        self.closing = False
        if self._url is not None and self._listener is None:
            self._listener = asyncio.create_task(self._listen(self._url), name="upright-bus")

    def drain(self) -> None:
        """Let everyone who waits go, so that the server can stop."""
        self.closing = True
        self._wake_all()

    async def close(self) -> None:
        self.drain()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None

    @contextmanager
    def subscribe(self, *topics: str) -> Generator[Subscription]:
        """Subscribe before looking at the database, so that nothing is missed between the two."""
        subscription = Subscription(self)
        subscription.add(*topics)
        try:
            yield subscription
        finally:
            for topic in subscription.topics:
                waiting = self._waiting.get(topic, set())
                waiting.discard(subscription)
                if not waiting:
                    self._waiting.pop(topic, None)

    def register(self, topic: str, subscription: Subscription) -> None:
        self._waiting.setdefault(topic, set()).add(subscription)

    def wake(self, topic: str) -> None:
        """Safe from any thread."""
        if self._loop is None or self._loop is _running_loop():
            self._wake(topic)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, topic)

    def _wake(self, topic: str) -> None:
        for subscription in self._waiting.get(topic, ()):
            subscription.wake()

    def _wake_all(self) -> None:
        for waiting in self._waiting.values():
            for subscription in waiting:
                subscription.wake()

    async def _listen(self, url: str) -> None:
        delay, told = _FIRST_DELAY_S, False
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    url,
                    autocommit=True,
                    connect_timeout=5,
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                    application_name="upright bus",
                ) as connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                    self.listening = True
                    delay, told = _FIRST_DELAY_S, False
                    self._wake_all()  # something may have happened while nobody listened
                    async for notification in connection.notifies():
                        node, _, topic = notification.payload.partition(" ")
                        if node != self.node:
                            self._wake(topic)
            except (psycopg.Error, OSError) as error:
                if not told:  # once for each time that they are lost
                    log.warning("Notifications are off, looking every %s s instead: %s", self.reconcile_s, error)
                told = True
            finally:
                self.listening = False
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_S)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
