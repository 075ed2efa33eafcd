"""Retry budget: how many repetitions this process may make, so that retries never multiply its load."""

from __future__ import annotations

import threading
import time
from collections import deque

from error_logging import process

WINDOW_S = 60.0
SHARE = 0.1
"""Of the requests that this process has served within the window."""
FLOOR = 10
"""For a process that serves few: so many within the window are no load."""


class RetryBudget:
    def __init__(self) -> None:
        self.requests = 0
        """Served so far. Counted without a lock: a lost one now and then does no harm."""
        self._lock = threading.Lock()
        self._retries: deque[float] = deque()
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def take(self, now: float | None = None) -> bool:
        """Whether one more repetition may be made; it counts as made then."""
        now = time.monotonic() if now is None else now
        with self._lock:
            while self._retries and self._retries[0] <= now - WINDOW_S:
                self._retries.popleft()
            if len(self._retries) >= max(FLOOR, SHARE * self._recent(now)):
                return False
            self._retries.append(now)
            return True

    def _recent(self, now: float) -> float:
        """Requests within the window; at their average rate where the last reading is older than that."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()
        at, count = self._samples[0]
        if now - self._samples[-1][0] >= 1:
            self._samples.append((now, self.requests))
        served = self.requests - count
        return served * min(1.0, WINDOW_S / (now - at)) if now > at else served


budget = RetryBudget()


def renew() -> None:
    """Nothing served, nothing repeated; for tests, and after a fork."""
    global budget
    budget = RetryBudget()


process.after_fork(renew)
