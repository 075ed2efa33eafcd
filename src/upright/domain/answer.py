"""The answer that a waiting caller gets: the guide's JSON, and what to do next while there is more to do."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import Field

from upright.domain.directive import Command
from upright.domain.message import Envelope, Message
from upright.domain.severity import Severity
from upright.domain.verdict import Verdict


class ActionReport(Message):
    strategy: str
    success: bool
    verdict: Verdict
    duration_ms: float = 0.0
    reason: str = ""


class RecoveryReport(Message):
    attempted: bool
    """The service durably accepted the error and a run for it exists."""
    success: bool
    """This caller's own operation is known to work again."""
    status: Literal["pending", "recovered", "not_recovered", "unknown", "cancelled", "relapsed"]
    message: str
    actions: list[ActionReport] = Field(default_factory=list[ActionReport])


class Answer(Envelope):
    error_id: UUID
    recovery_id: UUID | None = None
    severity: Severity
    recovery: RecoveryReport
    command: Command | None = None
    """Work for the waiting caller; the result is posted to /v1/errors/{error_id}/results. None: final or pending."""
