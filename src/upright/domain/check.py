"""Checks: how a runbook has a repair verified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def label(self) -> str:
        """What it is called in reasons and reports."""
        return type(self).__name__


class ReplayCheck(_Check):
    kind: Literal["replay"]

    @property
    def label(self) -> str:
        return "replay"


class HttpCheck(_Check):
    """An address that the service asks, without following redirects."""

    kind: Literal["http"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$", max_length=2000)]
    status: Annotated[int, Field(ge=100, le=599)] = 200
    contains: Annotated[str, Field(max_length=500)] = ""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5

    @property
    def label(self) -> str:
        return f"http {self.url}"


class SqlCheck(_Check):
    """A query whose first value is compared."""

    kind: Literal["sql"]
    database: Annotated[str, Field(min_length=1, max_length=100)] = "default"
    """Alias in the application, or name in UPRIGHT_PROBE_DATABASES."""
    runs_in: Literal["application", "service"] = "application"
    query: Annotated[str, Field(pattern=r"^\s*(?i:select|with|show|values)\b[^;]*;?\s*$", max_length=4000)]
    expected: bool | int | float | str | None = True
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5

    @property
    def label(self) -> str:
        return f"sql on {self.database}"


class TcpCheck(_Check):
    """A connection that the service makes."""

    kind: Literal["tcp"]
    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65_535)]
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5

    @property
    def label(self) -> str:
        return f"tcp {self.host}:{self.port}"


class RegisteredCheck(_Check):
    """A Python check that the application has registered."""

    kind: Literal["check"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5

    @property
    def label(self) -> str:
        return f"check {self.name}"


class QuietCheck(_Check):
    """The error does not come back while there is traffic on its route."""

    kind: Literal["quiet"]
    window_s: Annotated[float, Field(ge=1, le=300)] = 30
    min_requests: Annotated[int, Field(ge=1, le=100_000)] = 10

    @property
    def label(self) -> str:
        return f"quiet for {self.window_s:g} s"


Check = Annotated[
    ReplayCheck | HttpCheck | SqlCheck | TcpCheck | RegisteredCheck | QuietCheck, Field(discriminator="kind")
]

CHECKS: Mapping[str, type[BaseModel]] = {
    "replay": ReplayCheck, "http": HttpCheck, "sql": SqlCheck, "tcp": TcpCheck, "check": RegisteredCheck,
    "quiet": QuietCheck,
}  # fmt: skip
