"""The gate: what a request must be before anything is done with it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from upright.adapters.intake.signatures import DEFAULT_TENANT, Keyring
from upright.config import Settings
from upright.domain.message import Message
from upright.errors import ForeignService, MalformedMessage, MessageTooLarge

MAX_BODY_BYTES = 64 * 1024
_READ_TIMEOUT_S = 15.0

Body = TypeVar("Body", bound=Message)


@dataclass(frozen=True)
class Received(Generic[Body]):
    tenant: str
    delivery_id: str
    body: Body


class Gate:
    def __init__(self, settings: Settings) -> None:
        self.keyring = Keyring.of(settings)
        self._services = settings.tenant_services

    async def receive(self, request: Request, model: type[Body]) -> Received[Body]:
        """Read, verify, parse. Raises RequestRefused."""
        raw = await read(request)
        tenant = request.headers.get("upright-tenant", DEFAULT_TENANT)
        delivery_id = self.keyring.verify(tenant, request.headers, raw)
        request.state.signed_for = (tenant, delivery_id)
        return Received(tenant, delivery_id, parse(raw, model))

    def admit(self, tenant: str, service: str) -> None:
        """Raises ForeignService unless the tenant may speak for the service."""
        allowed = self._services.get(tenant)
        if allowed is not None and service not in allowed:
            raise ForeignService(f"Tenant {tenant} does not speak for service {service}.")

    def respond(self, request: Request, status: int, body: BaseModel | dict[str, object]) -> Response:
        """Signed, if the request was."""
        content = body.model_dump_json() if isinstance(body, BaseModel) else json.dumps(body, separators=(",", ":"))
        raw = content.encode()
        signed_for: tuple[str, str] | None = getattr(request.state, "signed_for", None)
        headers = {} if signed_for is None else self.keyring.sign(*signed_for, raw)
        return Response(raw, status, headers, media_type="application/json")


def parse(raw: bytes, model: type[Body]) -> Body:
    """Raises MalformedMessage, which names the field."""
    if b"\\u0000" in raw:
        raw = _without_nul(raw)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise MalformedMessage(first["msg"], field=field or None) from None


def _without_nul(raw: bytes) -> bytes:
    """PostgreSQL stores no NUL; an exception's message may well hold one, and the error is not to be lost for it."""
    try:
        return json.dumps(_replaced(json.loads(raw))).encode()
    except (ValueError, RecursionError):
        return raw  # the model says what is wrong


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}  # pyright: ignore
    if isinstance(value, list):
        return [_replaced(item) for item in value]  # pyright: ignore
    return value.replace("\x00", "\ufffd") if isinstance(value, str) else value


async def read(request: Request) -> bytes:
    """The raw bytes. What is declared too large isn't read at all; the rest is counted while it is read."""
    declared = request.headers.get("content-length", "")
    if len(declared) > 9 or (declared.isdigit() and int(declared) > MAX_BODY_BYTES):
        raise MessageTooLarge
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise MessageTooLarge
                chunks.append(chunk)
    except TimeoutError:
        raise MalformedMessage("The body did not arrive in time.") from None
    return b"".join(chunks)
