"""request_throttle: fewer requests at a time, so that those which are let through work again."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy, route_of

SETTLE_S = 2.0
"""What requests that are under way get to end before the failed one is tried again."""
_OF_CLIENTS = frozenset(("AuthenticationError", "AuthenticationFailed", "NotAuthenticated", "ValidationError"))
"""Errors that some client brings about by what it sends."""


class RequestThrottleParameters(Parameters):
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    burst_size: Annotated[int, Field(ge=1, le=100_000)] = 10


class RequestThrottle(Strategy):
    name = "request_throttle"
    success_rate = 0.65
    cost_s = 4
    parameters = RequestThrottleParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: RequestThrottleParameters) -> str | None:
        if route_of(event) is None:
            return "no request failed, so fewer of them would not help"
        target = _target(event)
        if not fleet.announces(self.name, target):
            return f"no process of the service can throttle {target!r}"
        return None

    def not_yet(self, event: Event, fleet: Fleet, parameters: RequestThrottleParameters) -> str | None:
        if fleet.recent_errors <= parameters.burst_size:
            return (
                f"{fleet.recent_errors} errors within a minute: no more than the burst of {parameters.burst_size} that "
                "would be let through"
            )
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: RequestThrottleParameters) -> Plan:
        target, processes = _target(event), max(1, len({one.id for one in fleet.instances}))
        return Plan(
            command="apply",
            target=target,
            values={
                "requests_per_minute": parameters.requests_per_minute,
                "burst_size": parameters.burst_size,
                "processes": processes,
            },
            before={"recent_errors": fleet.recent_errors},
            settle_s=SETTLE_S,
            why=(
                f"{parameters.requests_per_minute} requests a minute, {parameters.burst_size} of them at once, for "
                f"{'each client' if target == 'client' else repr(target)}"
            ),
        )


def _target(event: Event) -> str:
    names = {name.rpartition(".")[2] for chain in event.error.classes for name in chain}
    return "client" if names & _OF_CLIENTS else route_of(event) or "service"
