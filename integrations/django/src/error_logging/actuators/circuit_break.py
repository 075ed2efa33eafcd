"""circuit_break: an open circuit on a route of the application or on a guarded peer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from error_logging import breakers, circuits
from error_logging.actuators.base import Change, NotSupported, number, whole
from error_logging.circuits import Circuit
from error_logging.routes import ANY_ROUTE, ROUTE

UPSTREAM = "upstream:"


class CircuitBreak:
    def targets(self) -> list[str]:
        return [ANY_ROUTE, *breakers.targets()]

    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        if not target.startswith((ROUTE, UPSTREAM)):
            raise NotSupported(f"{target!r} is neither a route nor an upstream")
        circuit = Circuit(
            target,
            failure_threshold=whole(values, "failure_threshold", 1, 100_000),
            timeout_s=number(values, "timeout_seconds", 0.05, 86_400),
            half_open_requests=whole(values, "half_open_requests", 1, 1000),
            prober=str(values.get("prober") or ""),
        )
        replaced = circuits.put(circuit)
        return Change({"state": replaced.state if replaced else "closed"}, {"state": circuit.state})

    def revert(self, target: str) -> Change:
        removed = circuits.remove(target)
        return Change({"state": removed.state if removed else "closed"}, {"state": "closed"})
