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


class ResourceScaleParameters(Parameters):
    resource_type: Literal["cpu", "memory"] = "cpu"
    scale_factor: Annotated[float, Field(gt=1, le=10)] = 1.5
    auto_scale: bool = True


class ResourceScale(NotAvailable):
    name = "resource_scale"
    success_rate = 0.80
    cost_s = 20
    parameters = ResourceScaleParameters


Priority = Literal["low", "normal", "high"]


class QueuePriorityParameters(Parameters):
    current_priority: Priority = "normal"
    new_priority: Priority = "high"
    boost_factor: Annotated[float, Field(ge=1, le=10)] = 2


class QueuePriority(NotAvailable):
    name = "queue_priority"
    success_rate = 0.70
    cost_s = 4
    parameters = QueuePriorityParameters


class ServiceRestartParameters(Parameters):
    graceful: bool = True
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    health_check: bool = True


class ServiceRestart(NotAvailable):
    name = "service_restart"
    success_rate = 0.88
    cost_s = 30
    parameters = ServiceRestartParameters
