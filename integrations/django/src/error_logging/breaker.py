"""A local circuit breaker: after a failure nobody waits, until something in the background has succeeded."""

from __future__ import annotations

import time


class Breaker:
    """Open after the first failure, since a request that waits for a dead peer is the harm that it prevents.

    It is closed by a success alone. Requests never try a peer that failed: background threads do, at their own pace,
    so that a peer which accepts and stays silent can't hold a request again and again. Reads and writes are single
    attributes, so it needs no lock.
    """

    def __init__(self) -> None:
        self._opened_at: float | None = None

    @property
    def closed(self) -> bool:
        return self._opened_at is None

    def failed(self) -> None:
        if self._opened_at is None:
            self._opened_at = time.monotonic()

    def succeeded(self) -> None:
        self._opened_at = None

    def open_for_s(self) -> float:
        """Seconds since it opened; 0 when it is closed."""
        opened = self._opened_at
        return 0.0 if opened is None else time.monotonic() - opened
