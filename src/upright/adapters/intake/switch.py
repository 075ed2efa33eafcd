"""The route of the kill switch."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from upright.adapters.intake.gate import Gate
from upright.adapters.store import PostgresStore
from upright.domain.switch import SwitchAnswer, SwitchRequest


class SwitchRoute:
    def __init__(self, gate: Gate, store: PostgresStore) -> None:
        self._gate = gate
        self._store = store

    def add_to(self, api: APIRouter, **documented: Any) -> None:
        api.add_api_route(
            "/v1/switch", self.post_switch, methods=["POST"], summary="Stop or start recovery", **documented
        )

    async def post_switch(self, request: Request) -> Response:
        """Of a service that this secret speaks for. It starts only what was stopped in this way."""
        received = await self._gate.receive(request, SwitchRequest)
        tenant, body = received.tenant, received.body
        self._gate.admit(tenant, body.service)
        withdrawn = 0
        if body.stopped:
            withdrawn = await self._store.stop(tenant, body.service, origin="application", by=body.by, why=body.why)
        else:
            await self._store.start(tenant, body.service, origin="application", by=body.by, why=body.why)
        switch = await self._store.stopped(tenant, body.service)
        answer = SwitchAnswer(
            service=body.service,
            stopped=switch is not None,
            by="" if switch is None else switch.by,
            why="" if switch is None else switch.why,
            withdrawn=withdrawn,
        )
        return self._gate.respond(request, 200, answer)
