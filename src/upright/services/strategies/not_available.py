"""Strategies of the guide that this version can't carry out.

They are named, and their parameters checked, so that runbooks may list them; in a run they end as skipped.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy

REASON = "not available in this version"


class NotAvailable(Strategy):
    available = False

    def precondition(self, event: Event, fleet: Fleet, parameters: Any) -> str | None:
        return REASON

    def plan(self, event: Event, fleet: Fleet, parameters: Any) -> Plan:
        raise NotImplementedError(f"{self.name} is {REASON}")


class CircuitBreakParameters(Parameters):
    failure_threshold: Annotated[int, Field(ge=1, le=1000)] = 5
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60
    half_open_requests: Annotated[int, Field(ge=1, le=100)] = 1


class CircuitBreak(NotAvailable):
    name = "circuit_break"
    success_rate = 0.90
    cost_s = 2
    parameters = CircuitBreakParameters


class FallbackParameters(Parameters):
    fallback_service: Annotated[str, Field(min_length=1, max_length=200)] = "laravel"
    fallback_mode: Literal["degraded", "full"] = "degraded"


class Fallback(NotAvailable):
    name = "fallback"
    success_rate = 0.95
    cost_s = 3
    parameters = FallbackParameters


class RequestThrottleParameters(Parameters):
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    burst_size: Annotated[int, Field(ge=1, le=100_000)] = 10


class RequestThrottle(NotAvailable):
    name = "request_throttle"
    success_rate = 0.65
    cost_s = 4
    parameters = RequestThrottleParameters
