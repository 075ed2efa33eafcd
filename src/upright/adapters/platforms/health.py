"""The health address of a replica, asked over HTTP."""

from __future__ import annotations

import time
from typing import Literal

import httpx

from upright.domain.verdict import Evidence

LOOKS = 3
"""Requests that must all be answered: where one process of several hangs, one answer alone says little."""


class HttpHealth:
    def __init__(self, url: str, *, timeout_s: float = 2) -> None:
        self.url = url
        self._timeout_s = timeout_s

    async def look(self) -> Evidence:
        """Passed if every request is answered in time with a status below 400. Redirects aren't followed."""
        began = time.monotonic()
        status: int | None = None
        for attempt in range(1, LOOKS + 1):
            status, problem = await self._ask()
            if problem:
                return _evidence("failed", began, attempt, status, problem)
        return _evidence("passed", began, LOOKS, status, "")

    async def _ask(self) -> tuple[int | None, str]:
        try:
            # A connection of its own for each, so that each may meet another process.
            async with httpx.AsyncClient(timeout=self._timeout_s, trust_env=False) as http:
                response = await http.get(self.url, headers={"user-agent": "upright-health"})
        except httpx.TimeoutException:
            return None, f"no answer within {self._timeout_s:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return None, str(error) or type(error).__name__
        return response.status_code, "" if response.status_code < 400 else f"status {response.status_code}"


def _evidence(
    outcome: Literal["passed", "failed"], began: float, attempts: int, status: int | None, detail: str
) -> Evidence:
    return Evidence(
        kind="health",
        outcome=outcome,
        detail=detail,
        status_code=status,
        attempts=attempts,
        duration_ms=round((time.monotonic() - began) * 1000, 1),
    )
