"""Routes of errors: a new one, a waiting caller's results, a past one again."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from starlette.background import BackgroundTask

from upright.adapters.bus import Bus, Subscription
from upright.adapters.intake.gate import Gate, Received
from upright.adapters.intake.held import Client, Held, hold, watched
from upright.adapters.store import PostgresStore, topics
from upright.domain.directive import Results
from upright.domain.event import Event
from upright.domain.fingerprint import fingerprint
from upright.domain.severity import Severity
from upright.errors import MalformedMessage, Unavailable
from upright.services.ports import Launcher

MAX_INSTANCE = 300

log = logging.getLogger(__name__)

WaitMs = Annotated[
    int,
    Query(ge=0, le=60_000, description="How long the answer may be held, in milliseconds, for a verdict or command."),
]


class Routing(Protocol):
    @property
    def runbook(self) -> str: ...

    @property
    def severity(self) -> Severity: ...

    @property
    def cooldown_s(self) -> float: ...

    @property
    def relapse_window_s(self) -> float: ...


class Router(Protocol):
    def route(self, event: Event) -> Routing:
        """Which runbook answers it, how severe it is, and for how long a failed recovery answers the next ones."""
        ...


class ErrorRoutes:
    def __init__(self, gate: Gate, store: PostgresStore, bus: Bus, router: Router, launcher: Launcher) -> None:
        self._gate = gate
        self._store = store
        self._bus = bus
        self._router = router
        self._launcher = launcher

    def add_to(self, api: APIRouter, **documented: dict[str, Any]) -> None:
        add = api.add_api_route
        add("/v1/errors", self.post_error, methods=["POST"], summary="Report an error", **documented["errors"])
        add(
            "/v1/errors/{error_id}/results",
            self.post_results,
            methods=["POST"],
            summary="Say what the waiting caller did",
            **documented["results"],
        )
        add(
            "/v1/errors/{error_id}/recoveries",
            self.post_recovery,
            methods=["POST"],
            summary="Recover a past error again",
            **documented["recoveries"],
        )

    async def post_error(self, request: Request, wait_ms: WaitMs = 0) -> Response:
        """Durable when answered. The same `webhook-id` again changes nothing and gets the present state."""
        received = await self._gate.receive(request, Event)
        return await self._take(request, received, wait_ms, rerun=False)

    async def post_recovery(self, request: Request, error_id: UUID, wait_ms: WaitMs = 0) -> Response:
        """The body is the event again, so that an error which the service never saw can be recovered too."""
        received = await self._gate.receive(request, Event)
        if received.body.error_id != error_id:
            raise MalformedMessage("It differs from the error_id in the address.", field="error_id")
        return await self._take(request, received, wait_ms, rerun=True)

    async def post_results(self, request: Request, error_id: UUID, wait_ms: WaitMs = 0) -> Response:
        """Answered with the next command, or the final answer."""
        received = await self._gate.receive(request, Results)
        results = received.body
        if len(results.instance) > MAX_INSTANCE:
            raise MalformedMessage(f"It has more than {MAX_INSTANCE} characters.", field="instance")
        until = _until(wait_ms)
        with self._bus.subscribe(topics.of_error(error_id)) as news:
            async with watched(request, news) as client:
                state = await self._store.error_state(error_id, received.tenant)
                self._gate.admit(received.tenant, state.service)
                if state.recovery is not None:
                    news.add(topics.of_recovery(state.recovery.id))
                await self._store.record_results(
                    error_id, received.tenant, results.instance, results.results, wait_s=wait_ms / 1000
                )
                held = await hold(self._store, self._bus, news, client, error_id, until=until, waits=wait_ms > 0)
                return self._end(request, client, held, waits=True, told=True)

    async def _take(self, request: Request, received: Received[Event], wait_ms: int, *, rerun: bool) -> Response:
        event, until = received.body, _until(wait_ms)
        self._gate.admit(received.tenant, event.service)
        if wait_ms == 0:
            event = event.model_copy(update={"waiter": None})
        with self._bus.subscribe(topics.of_error(event.error_id)) as news:
            async with watched(request, news) as client:
                return await self._accept(request, received, event, news, client, until, rerun=rerun)

    async def _accept(
        self,
        request: Request,
        received: Received[Event],
        event: Event,
        news: Subscription,
        client: Client,
        until: float,
        *,
        rerun: bool,
    ) -> Response:
        routing = self._router.route(event)
        accepted = await self._store.accept(
            received.tenant,
            received.delivery_id,
            event,
            fingerprint=fingerprint(event),
            runbook=routing.runbook,
            severity=routing.severity,
            cooldown_s=routing.cooldown_s,
            rerun=rerun,
            queued=True,
            relapse_window_s=routing.relapse_window_s,
        )
        opened = accepted.role == "opened"
        if accepted.recovery is not None:
            if opened:
                self._launcher.submit(accepted.recovery)
            news.add(topics.of_recovery(accepted.recovery.id))
        waits = event.waiter is not None
        if event.waiter is not None and accepted.role == "duplicate":
            # Its first delivery may be held still, or its sender may have lost the connection and come back.
            waits = await self._store.take_wait(accepted.error_id, event.waiter.budget_ms / 1000, event.waiter.can)
        held = await hold(
            self._store,
            self._bus,
            news,
            client,
            accepted.error_id,
            until=until,
            waits=waits,
            look_first=not opened,
        )
        # A sender that doesn't wait (the drainer) needn't read the answer; it hears the end by sync.
        return self._end(request, client, held, waits=waits, told=until > 0)

    def _end(self, request: Request, client: Client, held: Held, *, waits: bool, told: bool) -> Response:
        """Answer; and once that is sent, note that this caller waits no more and what it was told."""
        answer = held.answer
        response = self._gate.respond(request, 200 if held.final or answer.command else 202, answer)
        delivered = answer.recovery_id if held.final and told and not client.gone else None
        if answer.command is None and (waits or delivered is not None):
            response.background = BackgroundTask(self._settle, answer.error_id, waits, delivered)
        return response

    async def _settle(self, error_id: UUID, waited: bool, delivered: UUID | None) -> None:
        try:
            await self._store.settle(error_id, waited=waited, delivered=delivered)
        except Unavailable:
            # Its outcome is then told once more, by sync.
            log.warning("PostgreSQL did not take that error %s is answered.", error_id)


def _until(wait_ms: int) -> float:
    """On the loop's clock; 0 for a sender that doesn't wait."""
    return asyncio.get_running_loop().time() + wait_ms / 1000 if wait_ms else 0.0
