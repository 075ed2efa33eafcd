"""Runbooks from their YAML files: every problem at once, each with file, line and what is allowed."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from upright.domain.check import CHECKS
from upright.domain.runbook import Runbook, SeverityTable, Step
from upright.domain.severity import Severity
from upright.errors import ConfigurationError, RunbookError
from upright.services.book import Book
from upright.services.scoring import Prior, built_in_priors
from upright.services.strategies import STRATEGIES

SEVERITY_FILE = "severity.yaml"

_MEMBER = re.compile(r"<\w+\.\w+: ('[^']*')>")
"""A member of an enumeration, as pydantic shows it."""

_Model = TypeVar("_Model", bound=BaseModel)
_Path = tuple[str | int, ...]


def load(project: Path) -> Book:
    """The book of a project directory. Raises RunbookError with every problem found, ConfigurationError for priors."""
    return _Reader(project / "runbooks").book(priors(project / "models" / "priors.json"))


def priors(path: Path) -> dict[str, Prior]:
    """Success rates and costs, the file's over the built-in ones. Raises ConfigurationError."""
    found = built_in_priors()
    if not path.is_file():
        return found
    try:
        entries: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))["strategies"]
        for name, entry in entries.items():
            if name not in found:
                raise ConfigurationError(f"{path}: unknown strategy {name!r}{_did_you_mean(name, found)}")
            rate, cost = float(entry["success_rate"]), float(entry["cost_s"])
            if not 0 < rate <= 1 or not 0 < cost < float("inf"):
                raise ConfigurationError(f"{path}: {name}: success_rate must be above 0 and at most 1, cost_s above 0")
            found[name] = Prior(rate, cost)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f'{path}: not of the form {{"strategies": {{NAME: {{"success_rate": R, "cost_s": C}}}}}}: {error!r}'
        ) from error
    return found


@dataclass
class _Document:
    """Plain data of one file, and where each part of it stands."""

    path: Path
    data: Any = None
    lines: dict[_Path, int] = field(default_factory=dict[_Path, int])
    problems: list[str] = field(default_factory=list[str])

    def at(self, where: _Path) -> str:
        """`file:line` of a place, or of the nearest one around it."""
        while where and where not in self.lines:
            where = where[:-1]
        return f"{self.path}:{self.lines.get(where, 1)}"

    def report(self, where: _Path, text: str) -> None:
        self.problems.append(f"{self.at(where)}: {text}")


def _read(path: Path) -> _Document:
    document = _Document(path)
    yaml = YAML(typ="safe", pure=True)
    try:
        node: Any = yaml.compose(path.read_text("utf-8"))  # pyright: ignore
    except MarkedYAMLError as error:
        told: Any = error
        line = told.problem_mark.line + 1 if told.problem_mark else 1
        document.problems.append(f"{path}:{line}: not valid YAML: {told.problem}")
        return document
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        document.problems.append(f"{path}:1: can't be read: {error}")
        return document
    if node is None:
        document.problems.append(f"{path}:1: the file is empty")
        return document
    document.data = _plain(yaml, node, (), document, ())
    return document


def _plain(yaml: Any, node: Any, where: _Path, document: _Document, around: tuple[Any, ...]) -> Any:
    """`around`: the nodes that hold this one."""
    document.lines.setdefault(where, node.start_mark.line + 1)
    parts: list[Any] = node.value
    if any(node is one for one in around):
        document.report(where, "an alias must not stand inside what it stands for")
        return None
    around = (*around, node)
    if node.id == "sequence":
        return [_plain(yaml, item, (*where, index), document, around) for index, item in enumerate(parts)]
    if node.id == "mapping":
        result: dict[str, Any] = {}
        for key_node, value_node in parts:
            line = key_node.start_mark.line + 1
            if key_node.id != "scalar":
                document.problems.append(f"{document.path}:{line}: a key must be a plain word")
                continue
            key = str(key_node.value)
            if key in result:
                first = document.lines[(*where, key)]
                document.problems.append(f"{document.path}:{line}: {key!r} stands twice, first in line {first}")
                continue
            document.lines[(*where, key)] = line
            result[key] = _plain(yaml, value_node, (*where, key), document, around)
        return result
    try:
        return yaml.constructor.construct_object(node)
    except (YAMLError, ValueError):
        kind = str(node.tag).rpartition(":")[2]
        document.report(where, f"{node.value!r} is no {kind}; a text of that form stands in quotes")
        return None


class _Reader:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._problems: list[str] = []
        self._names: dict[str, str] = {}
        self._classes: dict[str, tuple[str, str]] = {}

    def book(self, priors: Mapping[str, Prior]) -> Book:
        if not self._directory.is_dir():
            raise RunbookError([f"{self._directory}: there is no such directory; `upright init` makes a project"])
        runbooks: dict[str, Runbook] = {}
        severities: SeverityTable | None = None
        files = sorted(path for path in self._directory.iterdir() if path.suffix in (".yaml", ".yml"))
        for path in files:
            document = _read(path)
            if not document.problems or document.data is not None:
                if path.name == SEVERITY_FILE:
                    severities = self._severities(document)
                elif (runbook := self._runbook(document)) is not None:
                    runbooks[runbook.name] = runbook
            self._problems += document.problems
        if not any(path.name == SEVERITY_FILE for path in files):
            self._problems.append(f"{self._directory / SEVERITY_FILE}:1: missing; it holds the severity tables")
        if self._problems or severities is None:
            raise RunbookError(self._problems)
        return Book(runbooks, severities, priors)

    def _runbook(self, document: _Document) -> Runbook | None:
        runbook = _validated(Runbook, document)
        _check_steps(document, ())
        self._claim_name(document, ())
        if isinstance(document.data, dict):
            self._claim_classes(document, ("matches",), "runbook")
        return runbook

    def _severities(self, document: _Document) -> SeverityTable | None:
        table = _validated(SeverityTable, document)
        for severity in Severity:
            _check_steps(document, (severity.value, "fallback"))
            self._claim_name(document, (severity.value, "fallback"))
            self._claim_classes(document, (severity.value, "types"), "severity")
            matches = _get(document.data, (severity.value, "fallback", "matches"))
            if matches:
                document.report((severity.value, "fallback", "matches"), "a fallback answers what nothing matches")
        return table

    def _claim_name(self, document: _Document, where: _Path) -> None:
        name = _get(document.data, (*where, "name"))
        if not isinstance(name, str):
            return
        place = document.at((*where, "name"))
        if name in self._names:
            document.report((*where, "name"), f"the name {name!r} is taken by {self._names[name]}")
        self._names.setdefault(name, place)

    def _claim_classes(self, document: _Document, where: _Path, kind: str) -> None:
        listed = _get(document.data, where)
        for index, name in enumerate(listed if isinstance(listed, list) else []):  # pyright: ignore
            if not isinstance(name, str):
                continue
            key, owner = f"{kind} {name}", where[0] if kind == "severity" else _get(document.data, ("name",))
            place = document.at((*where, index))
            if key in self._classes and self._classes[key][0] != owner:
                document.report(
                    (*where, index),
                    f"{name!r} already belongs to {kind} {self._classes[key][0]} ({self._classes[key][1]})",
                )
            self._classes.setdefault(key, (str(owner), place))


def _get(data: Any, where: _Path) -> Any:
    for part in where:
        if isinstance(data, dict):
            data = data.get(part)  # pyright: ignore
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):  # pyright: ignore
            data = data[part]  # pyright: ignore
        else:
            return None
    return data  # pyright: ignore


def _validated(model: type[_Model], document: _Document) -> _Model | None:
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        _report(error, model, (), document)
        return None


def _check_steps(document: _Document, where: _Path) -> None:
    steps = _get(document.data, (*where, "steps"))
    for index, step in enumerate(steps if isinstance(steps, list) else []):  # pyright: ignore
        at = (*where, "steps", index)
        name = _get(step, ("strategy",))
        if not isinstance(name, str):
            continue
        if name not in STRATEGIES:
            document.report((*at, "strategy"), f"unknown strategy {name!r}{_did_you_mean(name, STRATEGIES)}")
            continue
        parameters = _get(step, ("parameters",))
        model = STRATEGIES[name].parameters
        if isinstance(parameters, dict):
            try:
                model.model_validate(parameters)
            except ValidationError as error:
                _report(error, model, (*at, "parameters"), document)


def _report(error: ValidationError, model: type[BaseModel], where: _Path, document: _Document) -> None:
    for problem in error.errors(include_url=False):
        location, holder = _untagged(problem["loc"], model)
        place = (*where, *location)
        dotted = ".".join(str(part) for part in place)
        if problem["type"] == "extra_forbidden":
            allowed = list(holder.model_fields) if holder is not model else _fields(model, location[:-1])
            text = f"unknown key {location[-1]!r}{_did_you_mean(str(location[-1]), allowed)}"
        elif problem["type"] == "missing":
            text = f"{location[-1]!r} is missing"
        else:
            shown = problem["input"]
            given = f" (given: {shown!r})" if isinstance(shown, str | int | float | bool) or shown is None else ""
            message = _MEMBER.sub(r"\1", problem["msg"].removeprefix("Value error, "))
            text = f"{dotted + ': ' if dotted else ''}{message}{given}"
        document.report(place, text)


def _untagged(location: _Path, model: type[BaseModel]) -> tuple[_Path, type[BaseModel]]:
    """A place without the kind of a check, which stands between the check's number and its key; and the model that has
    the key."""
    for index, part in enumerate(location[:-2]):
        tag = location[index + 2]
        if part == "checks" and isinstance(tag, str) and tag in CHECKS:
            return (*location[: index + 2], *location[index + 3 :]), CHECKS[tag]
    return location, model


def _fields(model: type[BaseModel], where: _Path) -> Iterable[str]:
    """Keys that are allowed at a place inside a model."""
    current: Any = model
    for part in where:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        current = next(
            (
                one
                for one in (annotation, *get_args(annotation))
                if isinstance(one, type) and issubclass(one, BaseModel)
            ),
            Step,
        )
    return list(current.model_fields)


def _did_you_mean(name: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} allowed: {', '.join(names)}"
