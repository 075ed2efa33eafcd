"""Answers to a caller: the guide's JSON, and the command that it is to carry out first."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from upright.adapters.report import report, works
from upright.adapters.store import ErrorState
from upright.domain.answer import Answer
from upright.domain.directive import Command, Directive
from upright.domain.event import Event
from upright.domain.matching import names
from upright.domain.verdict import Status

LEAST_REPLAY_MS = 50
"""A caller with less time than this isn't asked to replay."""


def answer(state: ErrorState, command: Command | None = None) -> Answer:
    recovery = state.recovery
    return Answer(
        error_id=state.error_id,
        recovery_id=None if recovery is None else recovery.id,
        severity=state.severity,
        recovery=report(recovery, error_id=state.error_id, own_result=state.own_result),
        command=command,
    )


def final(state: ErrorState) -> bool:
    return state.recovery is not None and state.recovery.status.final


def may_check_itself(state: ErrorState, left_ms: float) -> bool:
    """Whether the caller should replay: the incident recovered, but of its own operation nothing is known yet."""
    recovery = state.recovery
    return (
        recovery is not None
        and recovery.status is Status.RECOVERED
        and state.own_result is None
        and not works(recovery, error_id=state.error_id, own_result=None)
        and "replay" in state.waiter_can
        and left_ms >= LEAST_REPLAY_MS
    )


def replay(event: Event, desired: Sequence[Directive], left_ms: float) -> Command:
    """With the directives in force, since what repaired the incident may not have reached this caller's process yet."""
    return Command(
        id=uuid4(),
        kind="replay",
        deadline_ms=int(left_ms),
        directives=list(desired),
        verify=True,
        error_types=list(dict.fromkeys(names(event.error))),
    )
