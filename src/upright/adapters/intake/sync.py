"""The route of sync: every process says what is so, and waits for news."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from upright.adapters.bus import Bus
from upright.adapters.dispatch import kinds_of
from upright.adapters.intake.errors import MAX_INSTANCE
from upright.adapters.intake.gate import Gate
from upright.adapters.intake.held import watched
from upright.adapters.store import PostgresStore, topics
from upright.domain.directive import Command, Outcome, SyncAnswer, SyncRequest
from upright.errors import MalformedMessage

MAX_SERVICE = 200
OUTCOMES_AT_ONCE = 50
"""An answer stays well under the size that agents read."""


class SyncRoute:
    def __init__(self, gate: Gate, store: PostgresStore, bus: Bus) -> None:
        self._gate = gate
        self._store = store
        self._bus = bus

    def add_to(self, api: APIRouter, **documented: Any) -> None:
        api.add_api_route(
            "/v1/sync", self.post_sync, methods=["POST"], summary="Say what is so, wait for news", **documented
        )

    async def post_sync(self, request: Request) -> Response:
        """Held up to `hold_ms` until the desired state is newer than `desired_version`, or there are commands for this
        process or outcomes of errors. `desired` is always complete: what is absent is to be reverted."""
        received = await self._gate.receive(request, SyncRequest)
        tenant, body = received.tenant, received.body
        for field, value, longest in (
            ("service", body.service, MAX_SERVICE),
            ("instance", body.instance, MAX_INSTANCE),
        ):
            if not 0 < len(value) <= longest:
                raise MalformedMessage(f"It must have 1 to {longest} characters.", field=field)
        self._gate.admit(tenant, body.service)
        loop = asyncio.get_running_loop()
        until = loop.time() + body.hold_ms / 1000
        kinds = kinds_of(body.capabilities)
        with self._bus.subscribe(topics.of_service(tenant, body.service)) as news:
            async with watched(request, news) as client:
                sync = await self._store.arrive(tenant, body)
                commands: list[Command] = []
                outcomes: list[Outcome] = []
                while True:
                    found = await self._store.news(tenant, body.service, body.instance, sync=sync, kinds=kinds)
                    if client.gone:
                        await self._store.forget_instance(tenant, body.service, body.instance, sync=sync)
                        break
                    if found.current and found.commands:  # of several processes that see it, one gets it
                        commands = await self._store.claim_agent_commands(tenant, body.service, body.instance, kinds)
                    if found.current and found.outcomes:
                        outcomes = await self._store.undelivered_outcomes(
                            tenant,
                            body.service,
                            OUTCOMES_AT_ONCE,
                            instance=body.instance,
                            besides=body.outcomes_received,
                        )
                        if not outcomes and body.outcomes_received:
                            break  # the next sync gets them
                    if commands or outcomes or found.version > body.desired_version or not found.current:
                        break
                    if loop.time() >= until or self._bus.closing:
                        break
                    await news.wait(until - loop.time())
                version, desired = await self._store.desired(tenant, body.service, body.instance)
        return self._gate.respond(
            request, 200, SyncAnswer(version=version, desired=desired, commands=commands, outcomes=outcomes)
        )
