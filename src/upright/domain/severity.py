"""Severity of an error, from its type and the environment.

The tables are data: `runbooks/severity.yaml` for the service, a copy in django-upright for its provisional severity.
One golden file tests both.
"""

from __future__ import annotations

from enum import StrEnum


class Severity(StrEnum):
    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 is the most urgent."""
        return list(Severity).index(self)

    def lowered(self) -> Severity:
        """One step less urgent; LOW stays LOW."""
        order = list(Severity)
        return order[min(self.rank + 1, len(order) - 1)]


def in_environment(severity: Severity, environment: str) -> Severity:
    """Outside production an error is one step less severe."""
    return severity if environment == "production" else severity.lowered()
