"""The kill switch, as an application or its operators' tools reach it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from upright.domain.message import Envelope


class SwitchRequest(Envelope):
    service: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^*]+$")]
    stopped: bool
    by: Annotated[str, Field(min_length=1, max_length=200)]
    """Who wants it; for the audit trail."""
    why: Annotated[str, Field(max_length=2000)] = ""


class SwitchAnswer(Envelope):
    service: str
    stopped: bool
    """As it is now; what an operator has stopped, an application can't start."""
    by: str = ""
    why: str = ""
    withdrawn: int = 0
    """Directives that were in force."""
