"""The event: what a Django process tells of one error."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from upright.domain.message import Envelope, Json, Message
from upright.domain.severity import Severity

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Frame(Message):
    """One frame of the traceback; no local variables ever travel."""

    module: str = ""
    function: str = ""
    line: int = 0
    in_app: bool = False


class ErrorDetail(Message):
    type: Name
    """Class name of the outermost exception, without its module."""
    message: Annotated[str, Field(max_length=4000)] = ""
    classes: list[list[str]] = Field(default_factory=list[list[str]])
    """Qualified class names, nearest first (MRO without Exception, BaseException and object): one list for the
    outermost exception, then one for each cause in turn."""
    severity: Severity | None = None
    """The application's provisional severity, or one set by hand."""
    frames: list[Frame] = Field(default_factory=list[Frame])
    """In-app frames last to first are the most telling; the innermost is last."""
    fingerprint: list[str] | None = None
    """Explicit grouping, where the application gives one."""


class RequestDetail(Message):
    method: str
    route: str
    """The URL pattern, e.g. `shop/report/<int:year>/`."""
    path: str
    """The path with its query string, scrubbed."""
    view: str = ""
    replayable: bool = False
    """Whether a replay is allowed: GET or HEAD, and the view did not opt out."""
    path_intact: bool = True
    """False where scrubbing changed the path, so that it can't be requested again."""


class Waiter(Message):
    """The caller that holds its request open for the verdict."""

    budget_ms: Annotated[int, Field(ge=0, le=60_000)]
    can: list[str] = Field(default_factory=list[str])
    """Kinds of command that it can carry out: apply, replay, retry, probe."""


class Event(Envelope):
    error_id: UUID
    service: Name
    environment: str = "production"
    instance: str = ""
    occurred_at: datetime
    age_ms: Annotated[int, Field(ge=0)] = 0
    """How long before this message was sent the failed operation began, on the sender's monotonic clock, so that the
    order of things does not depend on two clocks agreeing."""
    desired_version: Annotated[int, Field(ge=0)] = 0
    """Version of the service's desired state that the process had applied when the failed operation began."""
    origin: Literal["request", "block", "manual", "task", "log", "health"] = "request"
    """`health`: nobody raised it; the service's health probe failed."""
    error: ErrorDetail
    request: RequestDetail | None = None
    context: Json = Field(default_factory=dict)
    """What the application says about the error; scrubbed."""
    measurements: Json = Field(default_factory=dict)
    """Readings of the process when the error was caught; see docs/protocol.md for the keys."""
    waiter: Waiter | None = None
