"""Strategies of the application's own: declared in the runbook project, carried out by the application's executor."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy, as_mapping


class CustomParameters(Parameters):
    """Whatever the application's own code reads."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Custom(Strategy):
    """Held by every process, and reverted, where the application can revert it; else carried out once."""

    parameters = CustomParameters

    def __init__(self, name: str, *, description: str = "", success_rate: float = 0.5, cost_s: float = 5) -> None:
        self.name = name  # pyright: ignore[reportAttributeAccessIssue]
        self.description = description
        self.success_rate = success_rate  # pyright: ignore[reportAttributeAccessIssue]
        self.cost_s = cost_s  # pyright: ignore[reportAttributeAccessIssue]

    def precondition(self, event: Event, fleet: Fleet, parameters: CustomParameters) -> str | None:
        if self._announced(fleet) is None:
            return (
                f"no process of the service announces {self.name}: "
                f"the class that UPRIGHT_EXECUTOR names needs _execute_{self.name}"
            )
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: CustomParameters) -> Plan:
        values = parameters.model_dump()
        target = str(values.pop("target", ""))
        revertible = bool((self._announced(fleet) or {}).get("revertible"))
        return Plan(
            command="apply",
            target=target,
            values=values,
            scope="process" if revertible else "once",
            why=self.description or f"{self.name} of the application",
        )

    def _announced(self, fleet: Fleet) -> dict[str, Any] | None:
        for instance in fleet.instances:
            announced = as_mapping(instance.capabilities.get("strategies"))
            if self.name in announced:
                return as_mapping(announced[self.name])
        return None
