"""retry: the failed operation again, with exponential backoff."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from upright.domain.directive import RetryPolicy
from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy, as_number

LONGEST_DELAY_MS = 60_000
SAFE_METHODS = ("GET", "HEAD")


class RetryParameters(Parameters):
    max_retries: Annotated[int, Field(ge=1, le=10)] = 3
    retry_delay_ms: Annotated[int, Field(ge=0, le=LONGEST_DELAY_MS)] = 1000
    exponential_backoff: bool = True


class Retry(Strategy):
    name = "retry"
    success_rate = 0.75
    cost_s = 1
    parameters = RetryParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: RetryParameters) -> str | None:
        waiter_can = fleet.waiter_present and event.waiter is not None and "retry" in (event.waiter.can or ["retry"])
        request = event.request
        if request is None:
            return (
                None if waiter_can else "no request to repeat, and no caller waits that could repeat its own operation"
            )
        if not request.replayable:
            return f"this {request.method} request must not be repeated"
        asked_for_s = as_number(event.measurements.get("retry_after_s"))
        if asked_for_s is not None and asked_for_s * 1000 > LONGEST_DELAY_MS:
            return f"the peer asks to wait {asked_for_s:g} s, longer than anybody waits here"
        if waiter_can:
            return None
        if request.method not in SAFE_METHODS:
            return f"nobody waits, and a {request.method} request can only be repeated by its caller"
        if not request.path_intact:
            return "nobody waits, and the path was scrubbed, so it can't be requested again"
        return None if fleet.able("retry") else "nobody waits, and no process of the service is connected"

    def plan(self, event: Event, fleet: Fleet, parameters: RetryParameters) -> Plan:
        delay_ms = parameters.retry_delay_ms
        asked_for_s = as_number(event.measurements.get("retry_after_s"))
        if asked_for_s is not None:
            delay_ms = min(LONGEST_DELAY_MS, max(delay_ms, round(asked_for_s * 1000)))
        policy = RetryPolicy(
            max_retries=parameters.max_retries,
            retry_delay_ms=delay_ms,
            exponential_backoff=parameters.exponential_backoff,
            retry_after_ms=round((asked_for_s or 0) * 1000),
        )
        return Plan(
            command="retry",
            retry=policy,
            values=dict(policy.model_dump()),
            scope="once",
            why=f"up to {policy.max_retries} repetitions, the first after {policy.retry_delay_ms} ms",
        )
