"""circuit_break: stop calling what keeps failing, try it again after a while, and go on once it works."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy, as_mapping, as_number, route_of

LONGEST_OPEN_S = 540.0
"""What the verification has the time to wait for."""
SLACK_S = 0.3
"""What the application's clock may begin later than ours."""


class CircuitBreakParameters(Parameters):
    failure_threshold: Annotated[int, Field(ge=1, le=1000)] = 5
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60
    half_open_requests: Annotated[int, Field(ge=1, le=100)] = 1


class CircuitBreak(Strategy):
    name = "circuit_break"
    success_rate = 0.90
    cost_s = 2
    parameters = CircuitBreakParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: CircuitBreakParameters) -> str | None:
        if parameters.timeout_seconds > LONGEST_OPEN_S:
            return (
                f"an open time of {parameters.timeout_seconds:g} s is more than the {LONGEST_OPEN_S:g} s to verify in"
            )
        target = _target(event)
        if target is None:
            return "the error names neither a route nor a guarded peer"
        if not fleet.announces(self.name, target):
            return f"no process of the service can break {target!r}"
        if not fleet.instances:
            return "no process of the service is connected that could try it again"
        return None

    def not_yet(self, event: Event, fleet: Fleet, parameters: CircuitBreakParameters) -> str | None:
        if fleet.recent_errors < parameters.failure_threshold:
            return (
                f"{fleet.recent_errors} of the {parameters.failure_threshold} failures within a minute that open a "
                "circuit"
            )
        succeeded, failed = _outcomes(event)
        if _guarded(event) is None and succeeded > failed:
            return f"the route works for most: {succeeded} of its last {succeeded + failed} requests succeeded"
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: CircuitBreakParameters) -> Plan:
        target = _target(event) or ""
        prober = fleet.first(event.instance)
        open_s = parameters.timeout_seconds
        return Plan(
            command="apply",
            target=target,
            values={
                "failure_threshold": parameters.failure_threshold,
                "timeout_seconds": open_s,
                "half_open_requests": parameters.half_open_requests,
                "prober": prober,
            },
            before={"recent_errors": fleet.recent_errors},
            settle_s=open_s + SLACK_S,
            half_open=True,
            lasts=False,
            why=(
                f"circuit of {target!r} open for {open_s:g} s, then {parameters.half_open_requests} requests try it "
                f"({fleet.recent_errors} failures within a minute)"
            ),
        )


def _guarded(event: Event) -> str | None:
    upstream = as_mapping(event.measurements.get("upstream"))
    host, port = upstream.get("host"), upstream.get("port")
    if upstream.get("guarded") is True and isinstance(host, str) and isinstance(port, int):
        return f"upstream:{host}:{port}"
    return None


def _target(event: Event) -> str | None:
    """The peer, where its calls are guarded: the rest of the route goes on. Else the route."""
    return _guarded(event) or route_of(event)


def _outcomes(event: Event) -> tuple[int, int]:
    """Requests of the route that succeeded and failed in the failing process within the minute."""
    route = as_mapping(event.measurements.get("route"))
    return int(as_number(route.get("succeeded")) or 0), int(as_number(route.get("failed")) or 0)
