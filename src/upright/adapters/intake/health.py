"""Routes for those who watch the service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

Readiness = Callable[[], Awaitable[Mapping[str, str]]]
"""Parts that the service needs, each with what is wrong with it, or "" if nothing is."""


class Health(BaseModel):
    status: str = "ok"


class Ready(BaseModel):
    status: str
    """ok or unavailable"""
    parts: dict[str, str]
    """`ok`, or what is wrong with it."""


class HealthRoutes:
    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def add_to(self, api: APIRouter) -> None:
        api.add_api_route("/healthz", self.healthz, methods=["GET"], summary="Is the process alive", tags=["health"])
        api.add_api_route(
            "/readyz",
            self.readyz,
            methods=["GET"],
            summary="Can it take errors",
            tags=["health"],
            responses={200: {"model": Ready}, 503: {"model": Ready}},
            response_class=JSONResponse,
        )

    async def healthz(self) -> Health:
        return Health()

    async def readyz(self) -> JSONResponse:
        try:
            problems = dict(await self._readiness())
        except Exception as error:  # whatever it is, the answer is that it is not ready
            problems = {"service": str(error) or type(error).__name__}
        ready = not any(problems.values())
        parts = {name: problem or "ok" for name, problem in problems.items()}
        body = Ready(status="ok" if ready else "unavailable", parts=parts)
        return JSONResponse(body.model_dump(), 200 if ready else 503)
