"""Waiting for what a process manager does in its own time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from upright.errors import PlatformFailed
from upright.services.ports import Health

POLL_S = 0.05


async def until(met: Callable[[], Awaitable[bool]], deadline: float) -> bool:
    """Whether it is met by `deadline` on time.monotonic()."""
    while not await met():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def answers(health: Health | None, deadline: float, alive: Callable[[], Awaitable[bool]]) -> None:
    """Until the health address answers. Raises PlatformFailed where it doesn't in time, or the processes are gone."""
    if health is None:
        return
    while True:
        seen = await health.look()
        if not await alive():
            raise PlatformFailed("the new processes did not stay: they are gone again")
        if seen.outcome == "passed":
            return
        if time.monotonic() >= deadline:
            raise PlatformFailed(f"the new processes are there, but the health address fails: {seen.detail}")
        await asyncio.sleep(POLL_S)
