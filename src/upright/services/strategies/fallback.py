"""fallback: another answer for a failing route: its last good one, a simpler view's, or another service's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy, route_of


class FallbackParameters(Parameters):
    fallback_service: Annotated[str, Field(min_length=1, max_length=200)] = "laravel"
    fallback_mode: Literal["degraded", "full"] = "degraded"


class Fallback(Strategy):
    name = "fallback"
    success_rate = 0.95
    cost_s = 3
    parameters = FallbackParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: FallbackParameters) -> str | None:
        route = route_of(event)
        if route is None or event.request is None:
            return "no request failed that could be answered otherwise"
        if event.request.method not in ("GET", "HEAD"):
            return f"a {event.request.method} request changes something, which no other answer can stand for"
        if parameters.fallback_mode == "full":
            if not fleet.announces(self.name, f"service:{parameters.fallback_service}", any_route=False):
                return f"no process of the service knows a fallback service {parameters.fallback_service!r}"
        elif not fleet.announces(self.name, route, any_route=False):
            return f"{route!r} keeps no last good response and has no fallback view"
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: FallbackParameters) -> Plan:
        target = route_of(event) or ""
        full = parameters.fallback_mode == "full"
        service = parameters.fallback_service if full else ""
        what = f"the service {service!r}" if full else "its last good response or fallback view (degraded)"
        return Plan(
            command="apply",
            target=target,
            values={"mode": parameters.fallback_mode, "service": service},
            why=f"GET and HEAD of {target!r} answered by {what}",
        )
