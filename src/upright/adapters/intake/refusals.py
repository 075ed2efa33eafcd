"""Refusals: every request that can't be served gets {"error": {"code", "message", "field"}}, never a traceback."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from upright.adapters.intake.gate import Gate
from upright.errors import (
    ForeignService,
    MalformedMessage,
    MessageTooLarge,
    NotFound,
    RequestRefused,
    SignatureRefused,
    Unavailable,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2

_CODES: dict[type[RequestRefused], str] = {
    SignatureRefused: "signature",
    MessageTooLarge: "too_large",
    MalformedMessage: "malformed",
    ForeignService: "foreign_service",
}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


class Refusal(BaseModel):
    code: str
    """signature, too_large, malformed, foreign_service, not_found, method_not_allowed, unavailable, internal"""
    message: str
    field: str | None = None
    """The part of the message that is wrong, as a path with dots."""


class Refused(BaseModel):
    error: Refusal


def install(app: FastAPI, gate: Gate) -> None:
    def answer(request: Request, status: int, code: str, message: str, field: str | None = None) -> Response:
        return gate.respond(request, status, Refused(error=Refusal(code=code, message=message, field=field)))

    @app.exception_handler(RequestRefused)
    async def refused(request: Request, error: RequestRefused) -> Response:  # pyright: ignore[reportUnusedFunction]
        return answer(request, error.status, _CODES.get(type(error), "refused"), str(error), error.field)

    @app.exception_handler(NotFound)
    async def not_found(request: Request, error: NotFound) -> Response:  # pyright: ignore[reportUnusedFunction]
        return answer(request, 404, "not_found", str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:  # pyright: ignore[reportUnusedFunction]
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return answer(request, 400, "malformed", str(first["msg"]), field or None)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:  # pyright: ignore[reportUnusedFunction]
        response = answer(request, error.status_code, _HTTP_CODES.get(error.status_code, "refused"), error.detail)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(DataError)
    async def unstorable(request: Request, error: DataError) -> Response:  # pyright: ignore[reportUnusedFunction]
        log.warning("PostgreSQL can't store a value of a message: %s", error.orig)
        return answer(request, 400, "malformed", "The message holds a value that can't be stored.")

    @app.exception_handler(Unavailable)
    async def unavailable(request: Request, error: Unavailable) -> Response:  # pyright: ignore[reportUnusedFunction]
        response = answer(request, 503, "unavailable", str(error))
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:  # pyright: ignore[reportUnusedFunction]
        return answer(request, 400, "malformed", "The body ended early.")

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> Response:  # pyright: ignore[reportUnusedFunction]
        return answer(request, 500, "internal", "Upright failed on this request; its log says why.")
