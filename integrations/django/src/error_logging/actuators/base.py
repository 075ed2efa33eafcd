"""What every actuator says of what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class NotSupported(Exception):
    """This process has nothing of the kind to act on."""


@dataclass(frozen=True)
class Change:
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def whole(values: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """A whole number out of a directive's values. Raises ValueError."""
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
    return value


def number(values: Mapping[str, Any], name: str, low: float, high: float) -> float:
    """A number out of a directive's values. Raises ValueError."""
    value = values.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")
    return float(value)
