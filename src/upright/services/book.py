"""The book: every runbook of a project, and what leads to each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from upright.domain.guardrails import Guardrails
from upright.domain.runbook import Runbook, SeverityTable
from upright.domain.severity import Severity
from upright.errors import NotFound
from upright.services.scoring import Prior, built_in_priors
from upright.services.strategies import STRATEGIES, Strategy


@dataclass(frozen=True)
class Book:
    runbooks: Mapping[str, Runbook]
    """By name; those that are matched by error type, without the fallbacks."""
    severities: SeverityTable
    priors: Mapping[str, Prior] = field(default_factory=built_in_priors)
    strategies: Mapping[str, Strategy] = field(default_factory=lambda: STRATEGIES)
    """By name: those that ship, and the application's own that the project declares."""
    guardrails: Guardrails = field(default_factory=Guardrails)
    by_class: Mapping[str, str] = field(init=False)
    """Class name to the name of the runbook that lists it."""
    severity_by_class: Mapping[str, Severity] = field(init=False)

    def __post_init__(self) -> None:
        by_class = {name: runbook.name for runbook in self.runbooks.values() for name in runbook.matches}
        severities = {name: severity for severity in Severity for name in self.severities.row(severity).types}
        object.__setattr__(self, "by_class", by_class)
        object.__setattr__(self, "severity_by_class", severities)

    def __iter__(self) -> Iterator[Runbook]:
        """All of them, the fallbacks last."""
        yield from self.runbooks.values()
        for severity in Severity:
            yield self.severities.row(severity).fallback

    def runbook(self, name: str) -> Runbook:
        for one in self:
            if one.name == name:
                return one
        raise NotFound(f"no runbook is named {name!r}; there are {', '.join(one.name for one in self)}")
