"""Routing: which runbook answers an error, and how severe the error is."""

from __future__ import annotations

from dataclasses import dataclass

from upright.domain.event import Event
from upright.domain.matching import first_match
from upright.domain.severity import Severity, in_environment
from upright.services.book import Book


@dataclass(frozen=True)
class Routing:
    runbook: str
    """Its name."""
    severity: Severity
    cooldown_s: float
    relapse_window_s: float = 600
    matched: str | None = None
    """The class name that led to the runbook; None where the severity's fallback answers."""


class Router:
    def __init__(self, book: Book) -> None:
        self._book = book

    def severity(self, event: Event) -> Severity:
        """Final severity. What someone set by hand on an error that is recovered by hand stands."""
        if event.origin == "manual" and event.error.severity is not None:
            return event.error.severity
        found = first_match(event.error, self._book.severity_by_class)
        return in_environment(found[1] if found else Severity.LOW, event.environment)

    def http_status(self, event: Event) -> int:
        """By the error's type alone, whatever the environment."""
        found = first_match(event.error, self._book.severity_by_class)
        return self._book.severities.row(found[1] if found else Severity.LOW).http_status

    def route(self, event: Event) -> Routing:
        severity = self.severity(event)
        found = first_match(event.error, self._book.by_class)
        runbook = self._book.runbook(found[1]) if found else self._book.severities.row(severity).fallback
        return Routing(
            runbook.name, severity, runbook.cooldown_s, runbook.relapse_window_s, found[0] if found else None
        )
