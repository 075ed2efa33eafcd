"""Blast radius: which of a service's processes a change touches before it is verified."""

from __future__ import annotations

import math
from collections.abc import Sequence

AS_A_WHOLE = frozenset({"circuit_break", "request_throttle", "queue_priority"})
"""Strategies that say nothing in one process alone: what they hold back or route comes through all of them."""


def first_share(radius: int | str, strategy: str, live: Sequence[str], first: str) -> list[str] | None:
    """The processes to begin with: `first`, where the failure is seen again, and as many more as the radius has room
    for. None: all of them."""
    known = [first, *(one for one in live if one != first)]
    if not first or strategy in AS_A_WHOLE:
        return None
    size = math.ceil(len(known) * int(radius[:-1]) / 100) if isinstance(radius, str) else radius
    return None if size >= len(known) else known[: max(1, size)]
