"""Base of every message on the wire. Unknown keys are ignored, since later versions only add keys."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Json = dict[str, object]


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Envelope(Message):
    """A message that travels on its own."""

    schema_version: Literal[1] = 1
