"""Severities are the guide's tables, matched along the exception's classes, and lowered outside production."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from upright.adapters import runbook_files
from upright.domain.event import ErrorDetail
from upright.domain.severity import Severity
from upright.services.routing import Router
from upright.testing.events import error_event

ROOT = Path(__file__).parents[2]
BOOK = runbook_files.load(ROOT)
GOLDEN = json.loads((ROOT / "tests" / "golden" / "severity.json").read_bytes())["rows"]

GUIDE = {
    Severity.CRITICAL: (500, "DatabaseError OutOfMemoryError SystemError AssertionError"),
    Severity.HIGH: (503, "TimeoutError ConnectionError IOError OSError"),
    Severity.MEDIUM: (400, "ValueError KeyError AttributeError TypeError"),
    Severity.LOW: (400, "SomethingElse ValidationError"),
}
ACTIONS = {
    Severity.CRITICAL: "pool_increase resource_scale service_restart",
    Severity.HIGH: "timeout_increase cache_clear fallback",
    Severity.MEDIUM: "fallback request_throttle",
    Severity.LOW: "retry fallback",
}


def named(name: str) -> Any:
    return error_event().model_copy(update={"error": ErrorDetail(type=name)})


@pytest.mark.parametrize("severity", GUIDE)
def test_the_guides_types_have_the_guides_severity_and_status(severity: Severity) -> None:
    status, types = GUIDE[severity]
    for name in types.split():
        assert Router(BOOK).severity(named(name)) is severity
        assert Router(BOOK).http_status(named(name)) == status


@pytest.mark.parametrize("severity", ACTIONS)
def test_the_fallback_of_a_severity_takes_the_guides_actions(severity: Severity) -> None:
    assert [step.strategy for step in BOOK.severities.row(severity).fallback.steps] == ACTIONS[severity].split()


def test_outside_production_an_error_is_one_step_less_severe_and_its_status_stays() -> None:
    event = named("DatabaseError").model_copy(update={"environment": "staging"})
    assert Router(BOOK).severity(event) is Severity.HIGH
    assert Router(BOOK).http_status(event) == 500
    low = named("SomethingElse").model_copy(update={"environment": "development"})
    assert Router(BOOK).severity(low) is Severity.LOW


def test_what_someone_set_by_hand_stands_when_the_error_is_recovered_by_hand() -> None:
    error = ErrorDetail(type="DatabaseError", severity=Severity.LOW)
    event = error_event().model_copy(update={"error": error})
    assert Router(BOOK).severity(event) is Severity.CRITICAL
    assert Router(BOOK).severity(event.model_copy(update={"origin": "manual"})) is Severity.LOW


def test_memory_error_is_the_guides_out_of_memory_error() -> None:
    assert Router(BOOK).severity(error_event(("builtins.MemoryError",))) is Severity.CRITICAL


@pytest.mark.parametrize("row", GOLDEN, ids=[row["classes"][0][0] for row in GOLDEN])
def test_severity_and_status_are_the_golden_tables(row: dict[str, Any]) -> None:
    """The application tests against the same one: the two copies of the tables must not drift apart."""
    found = error_event(*(tuple(chain) for chain in row["classes"]))
    for environment, severity in row["severity"].items():
        event = found.model_copy(update={"environment": environment})
        assert (Router(BOOK).severity(event), Router(BOOK).http_status(event)) == (severity, row["http_status"])
