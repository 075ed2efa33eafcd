"""The route that tests an application's webhooks. E-mail it tests itself: the service's is not lent to applications."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from upright.adapters.intake.gate import Gate
from upright.domain.alert_test import AlertTestAnswer, AlertTestRequest, ChannelTest
from upright.services import recipients
from upright.services.alert_test import try_channels
from upright.services.ports import Webhooks


class AlertTestRoute:
    def __init__(self, gate: Gate, webhooks: Webhooks) -> None:
        self._gate = gate
        self._webhooks = webhooks

    def add_to(self, api: APIRouter, **documented: Any) -> None:
        api.add_api_route(
            "/v1/alerts/test", self.post_test, methods=["POST"], summary="Test alert webhooks", **documented
        )

    async def post_test(self, request: Request) -> Response:
        """One message to each webhook whose host UPRIGHT_ALERT_HOSTS names."""
        received = await self._gate.receive(request, AlertTestRequest)
        self._gate.admit(received.tenant, received.body.service)
        given = list(dict.fromkeys(received.body.webhooks))
        webhooks = [one for one in given if recipients.sort([one]).webhooks]
        results = await try_channels(webhooks, asked_by=f"Service {received.body.service}", webhooks=self._webhooks)
        tested = dict(zip(webhooks, results, strict=True))
        return self._gate.respond(
            request, 200, AlertTestAnswer(results=[tested.get(one) or _no_webhook(one) for one in given])
        )


def _no_webhook(one: str) -> ChannelTest:
    return ChannelTest(
        channel="other",
        recipient=recipients.shown(one),
        status="failed",
        detail="not the https:// address of a webhook",
    )
