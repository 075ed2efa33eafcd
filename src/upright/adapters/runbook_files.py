"""Runbooks from their YAML files: every problem at once, each with file, line and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upright.adapters.documents import Document, Place, did_you_mean, get, read, report, validated
from upright.domain.guardrails import Guardrails
from upright.domain.runbook import CustomStrategies, Runbook, SeverityTable
from upright.domain.severity import Severity
from upright.errors import ConfigurationError, RunbookError
from upright.services.book import Book
from upright.services.scoring import Prior, built_in_priors
from upright.services.strategies import STRATEGIES, Custom, Strategy

SEVERITY_FILE = "severity.yaml"
CUSTOM_FILE = "custom_strategies.yaml"
"""Declares the strategies that the application brings, so that a mistyped name is still a mistake."""
GUARDRAILS_FILE = "guardrails.yaml"


def load(project: Path) -> Book:
    """The book of a project directory. Raises RunbookError with every problem found, ConfigurationError for priors."""
    reader = _Reader(project / "runbooks")
    return reader.book(priors(project / "models" / "priors.json", reader.declared()))


def priors(path: Path, declared: Mapping[str, Strategy] | None = None) -> dict[str, Prior]:
    """Success rates and costs, the file's over the built-in and the declared ones. Raises ConfigurationError."""
    found = built_in_priors()
    found |= {name: Prior(one.success_rate, one.cost_s) for name, one in (declared or {}).items()}
    if not path.is_file():
        return found
    try:
        entries: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))["strategies"]
        for name, entry in entries.items():
            if name not in found:
                raise ConfigurationError(f"{path}: unknown strategy {name!r}{did_you_mean(name, found)}")
            rate, cost = float(entry["success_rate"]), float(entry["cost_s"])
            if not 0 < rate <= 1 or not 0 < cost < float("inf"):
                raise ConfigurationError(f"{path}: {name}: success_rate must be above 0 and at most 1, cost_s above 0")
            found[name] = Prior(rate, cost)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f'{path}: not of the form {{"strategies": {{NAME: {{"success_rate": R, "cost_s": C}}}}}}: {error!r}'
        ) from error
    return found


class _Reader:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._problems: list[str] = []
        self._names: dict[str, str] = {}
        self._classes: dict[str, tuple[str, str]] = {}
        self._strategies: dict[str, Strategy] = dict(STRATEGIES)

    def declared(self) -> dict[str, Strategy]:
        """The application's own strategies, which steps may name from now on."""
        path = self._directory / CUSTOM_FILE
        if not path.is_file():
            return {}
        document = read(path)
        table = validated(CustomStrategies, document) if document.data is not None else None
        self._problems += document.problems
        found: dict[str, Strategy] = {}
        for index, one in enumerate(table.custom_strategies if table is not None else []):
            where = ("custom_strategies", index, "name")
            if one.name in STRATEGIES:
                self._problems.append(f"{document.at(where)}: {one.name!r} is a strategy that ships")
            elif one.name in found:
                self._problems.append(f"{document.at(where)}: {one.name!r} is declared twice")
            found[one.name] = Custom(
                one.name, description=one.description, success_rate=one.success_rate, cost_s=one.cost_s
            )
        self._strategies |= {name: one for name, one in found.items() if name not in STRATEGIES}
        return found

    def book(self, priors: Mapping[str, Prior]) -> Book:
        if not self._directory.is_dir():
            raise RunbookError([f"{self._directory}: there is no such directory; `upright init` makes a project"])
        runbooks: dict[str, Runbook] = {}
        severities: SeverityTable | None = None
        guardrails, guarded = Guardrails(), Document(self._directory / GUARDRAILS_FILE)
        files = sorted(path for path in self._directory.iterdir() if path.suffix in (".yaml", ".yml"))
        for path in files:
            if path.name == CUSTOM_FILE:
                continue
            document = read(path)
            if not document.problems or document.data is not None:
                if path.name == SEVERITY_FILE:
                    severities = self._severities(document)
                elif path.name == GUARDRAILS_FILE:
                    guarded = document
                    guardrails = validated(Guardrails, document) or guardrails
                elif (runbook := self._runbook(document)) is not None:
                    runbooks[runbook.name] = runbook
            if path.name != GUARDRAILS_FILE:
                self._problems += document.problems
        for name in guardrails.strategies:
            if name not in self._strategies:
                guarded.report(("strategies", name), f"unknown strategy {name!r}{did_you_mean(name, self._strategies)}")
        self._problems += guarded.problems
        if not any(path.name == SEVERITY_FILE for path in files):
            self._problems.append(f"{self._directory / SEVERITY_FILE}:1: missing; it holds the severity tables")
        if self._problems or severities is None:
            raise RunbookError(self._problems)
        return Book(runbooks, severities, priors, self._strategies, guardrails)

    def _runbook(self, document: Document) -> Runbook | None:
        runbook = validated(Runbook, document)
        _check_steps(document, (), self._strategies)
        self._claim_name(document, ())
        if isinstance(document.data, dict):
            self._claim_classes(document, ("matches",), "runbook")
        return runbook

    def _severities(self, document: Document) -> SeverityTable | None:
        table = validated(SeverityTable, document)
        for severity in Severity:
            _check_steps(document, (severity.value, "fallback"), self._strategies)
            self._claim_name(document, (severity.value, "fallback"))
            self._claim_classes(document, (severity.value, "types"), "severity")
            matches = get(document.data, (severity.value, "fallback", "matches"))
            if matches:
                document.report((severity.value, "fallback", "matches"), "a fallback answers what nothing matches")
        return table

    def _claim_name(self, document: Document, where: Place) -> None:
        name = get(document.data, (*where, "name"))
        if not isinstance(name, str):
            return
        place = document.at((*where, "name"))
        if name in self._names:
            document.report((*where, "name"), f"the name {name!r} is taken by {self._names[name]}")
        self._names.setdefault(name, place)

    def _claim_classes(self, document: Document, where: Place, kind: str) -> None:
        listed = get(document.data, where)
        for index, name in enumerate(listed if isinstance(listed, list) else []):  # pyright: ignore
            if not isinstance(name, str):
                continue
            key, owner = f"{kind} {name}", where[0] if kind == "severity" else get(document.data, ("name",))
            place = document.at((*where, index))
            if key in self._classes and self._classes[key][0] != owner:
                document.report(
                    (*where, index),
                    f"{name!r} already belongs to {kind} {self._classes[key][0]} ({self._classes[key][1]})",
                )
            self._classes.setdefault(key, (str(owner), place))


def _check_steps(document: Document, where: Place, strategies: Mapping[str, Strategy]) -> None:
    steps = get(document.data, (*where, "steps"))
    for index, step in enumerate(steps if isinstance(steps, list) else []):  # pyright: ignore
        at = (*where, "steps", index)
        name = get(step, ("strategy",))
        if not isinstance(name, str):
            continue
        if name not in strategies:
            document.report((*at, "strategy"), f"unknown strategy {name!r}{did_you_mean(name, strategies)}")
            continue
        parameters = get(step, ("parameters",))
        model = strategies[name].parameters
        if isinstance(parameters, dict):
            try:
                model.model_validate(parameters)
            except ValidationError as error:
                report(error, model, (*at, "parameters"), document)
