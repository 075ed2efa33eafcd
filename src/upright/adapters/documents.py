"""YAML files that people edit: every problem at once, each with file, line and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from upright.domain.check import CHECKS
from upright.domain.runbook import Step

_MEMBER = re.compile(r"<\w+\.\w+: ('[^']*')>")
"""A member of an enumeration, as pydantic shows it."""

_Model = TypeVar("_Model", bound=BaseModel)
Place = tuple[str | int, ...]
"""Keys and indexes that lead to a part of a document."""


@dataclass
class Document:
    """Plain data of one file, and where each part of it stands."""

    path: Path
    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict[Place, int])
    problems: list[str] = field(default_factory=list[str])

    def at(self, where: Place) -> str:
        """`file:line` of a place, or of the nearest one around it."""
        while where and where not in self.lines:
            where = where[:-1]
        return f"{self.path}:{self.lines.get(where, 1)}"

    def report(self, where: Place, text: str) -> None:
        self.problems.append(f"{self.at(where)}: {text}")


def read(path: Path) -> Document:
    document = Document(path)
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


def _plain(yaml: Any, node: Any, where: Place, document: Document, around: tuple[Any, ...]) -> Any:
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


def get(data: Any, where: Place) -> Any:
    """The part at a place, or None."""
    for part in where:
        if isinstance(data, dict):
            data = data.get(part)  # pyright: ignore
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):  # pyright: ignore
            data = data[part]  # pyright: ignore
        else:
            return None
    return data  # pyright: ignore


def validated(model: type[_Model], document: Document) -> _Model | None:
    """The whole document as a model; None where it has problems, which are in the document then."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        report(error, model, (), document)
        return None


def report(error: ValidationError, model: type[BaseModel], where: Place, document: Document) -> None:
    for problem in error.errors(include_url=False):
        location, holder = _untagged(problem["loc"], model)
        place = (*where, *location)
        dotted = ".".join(str(part) for part in place)
        if problem["type"] == "extra_forbidden":
            allowed = list(holder.model_fields) if holder is not model else _fields(model, location[:-1])
            text = f"unknown key {location[-1]!r}{did_you_mean(str(location[-1]), allowed)}"
        elif problem["type"] == "missing":
            text = f"{location[-1]!r} is missing"
        else:
            shown = problem["input"]
            given = f" (given: {shown!r})" if isinstance(shown, str | int | float | bool) or shown is None else ""
            message = _MEMBER.sub(r"\1", problem["msg"].removeprefix("Value error, "))
            text = f"{dotted + ': ' if dotted else ''}{message}{given}"
        document.report(place, text)


def _untagged(location: Place, model: type[BaseModel]) -> tuple[Place, type[BaseModel]]:
    """A place without the kind of a check, which stands between the check's number and its key; and the model that has
    the key."""
    for index, part in enumerate(location[:-2]):
        tag = location[index + 2]
        if part == "checks" and isinstance(tag, str) and tag in CHECKS:
            return (*location[: index + 2], *location[index + 3 :]), CHECKS[tag]
    return location, model


def _fields(model: type[BaseModel], where: Place) -> Iterable[str]:
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


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} allowed: {', '.join(names)}"
