"""How a run is called in the Prefect UI."""

from __future__ import annotations

from upright.domain.event import Event
from upright.domain.severity import Severity


def run_name(event: Event) -> str:
    """`OperationalError in django · report/<int:year>/`."""
    where = event.request.route if event.request and event.request.route else event.origin
    return f"{event.error.type} in {event.service} · {where}"[:200]


def run_tags(event: Event, severity: Severity) -> list[str]:
    return [f"service:{event.service}", f"error:{event.error.type}", f"severity:{severity.value}"]
