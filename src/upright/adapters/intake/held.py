"""A held request: the client on one side, the database on the other, and no connection kept while waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from fastapi import Request

from upright.adapters.bus import Bus, Subscription
from upright.adapters.intake import answers
from upright.adapters.store import ErrorState, PostgresStore
from upright.domain.answer import Answer
from upright.errors import Unavailable


class Client:
    """Whether the other side is still there."""

    def __init__(self) -> None:
        self.gone = False


@asynccontextmanager
async def watched(request: Request, news: Subscription) -> AsyncGenerator[Client]:
    """Notice when the client goes, and wake the one who waits on its behalf."""
    client = Client()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        client.gone = True
        news.wake()

    task = asyncio.create_task(watch())
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass(frozen=True)
class Held:
    """How a held request ends."""

    answer: Answer
    final: bool


async def hold(
    store: PostgresStore,
    bus: Bus,
    news: Subscription,
    client: Client,
    error_id: UUID,
    *,
    until: float,
    waits: bool,
    look_first: bool = True,
) -> Held:
    """Until there is a command for the waiting caller, the verdict, or `until` on the loop's clock.

    `waits`: this caller carries out commands. `look_first` False: nothing can have happened yet.
    """
    loop = asyncio.get_running_loop()
    if not look_first and until > loop.time():
        await news.wait(until - loop.time())
    while True:
        left_ms = 1000 * (until - loop.time())
        try:
            state = await store.error_state(error_id)
            held = await _work(store, state, left_ms) if waits and not client.gone else None
        except Unavailable:
            # The error is stored; while PostgreSQL restarts there is still time.
            if left_ms <= 0 or client.gone or bus.closing:
                raise
            await news.wait(left_ms / 1000)
            continue
        if held is not None:
            return held
        if answers.final(state):
            return Held(answers.answer(state), final=True)
        if left_ms <= 0 or client.gone or bus.closing:
            return Held(answers.answer(state), final=False)
        await news.wait(left_ms / 1000)


async def _work(store: PostgresStore, state: ErrorState, left_ms: float) -> Held | None:
    """A command for the caller, if there is one."""
    if state.has_command and (command := await store.claim_waiter_command(state.error_id)) is not None:
        return Held(answers.answer(state, command), final=False)
    recovery = state.recovery
    if recovery is None or not answers.may_check_itself(state, left_ms):
        return None
    if await store.was_asked(state.error_id, "replay", recovery.created_at):
        return None
    event = await store.event_of(state.error_id, state.tenant)
    _, desired = await store.desired(state.tenant, event.service, event.instance)
    command = answers.replay(event, desired, left_ms)
    if not await store.put_waiter_command(state.error_id, command, status="taken"):
        return None
    return Held(answers.answer(state, command), final=False)
