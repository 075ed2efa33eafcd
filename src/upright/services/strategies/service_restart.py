"""service_restart: new processes for the old ones."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy


class ServiceRestartParameters(Parameters):
    graceful: bool = True
    """Requests that are under way get time to end."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    """For each replica."""
    health_check: bool = True
    """A replica has come back when its health address answers."""


class ServiceRestart(Strategy):
    name = "service_restart"
    success_rate = 0.88
    cost_s = 30
    on_platform = True
    parameters = ServiceRestartParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: ServiceRestartParameters) -> str | None:
        platform = fleet.platform
        if platform is None or fleet.out_of_reach:
            return fleet.out_of_reach
        if parameters.health_check and not platform.probed:
            return "it has no health_url in platforms.yaml, so that a restart that fails would go unnoticed"
        processes = [process for one in platform.replicas for process in one.processes]
        if processes and all(one.started_at > event.occurred_at.timestamp() for one in processes):
            return "all its processes are newer than the error"
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: ServiceRestartParameters) -> Plan:
        platform = fleet.platform
        assert platform is not None  # noqa: S101 (the precondition is met)
        counts = {one.name: len(one.processes) for one in platform.replicas}
        how = "gracefully" if parameters.graceful else "at once"
        return Plan(
            command="platform",
            target="restart",
            values={
                "graceful": parameters.graceful,
                "timeout_s": parameters.timeout_seconds,
                "health_check": parameters.health_check,
            },
            before={"processes": counts},
            why=f"{sum(counts.values())} processes of {', '.join(counts)} replaced {how}, one replica after the other",
        )
