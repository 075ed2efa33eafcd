"""A test of alert channels, as an application asks for it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upright.domain.message import Envelope, Message


class AlertTestRequest(Envelope):
    """Body of POST /v1/alerts/test."""

    service: Annotated[str, Field(min_length=1, max_length=200)]
    webhooks: Annotated[list[Annotated[str, Field(max_length=2000)]], Field(min_length=1, max_length=10)]
    """Addresses, to each of which one message is sent, where the service allows its host."""


class ChannelTest(Message):
    channel: str
    recipient: str
    """As it may be shown: the address of a webhook is a secret."""
    status: Literal["sent", "failed"]
    detail: str = ""


class AlertTestAnswer(Envelope):
    results: list[ChannelTest]
    """In the order in which they were asked for."""
