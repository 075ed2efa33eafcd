"""Counters of this process: what was recorded, delivered, dropped. Nothing is lost without one of them growing."""

from __future__ import annotations

import threading
from collections import Counter

from error_logging import process

_lock = threading.Lock()
_counts: Counter[str] = Counter()


def add(name: str, amount: int = 1) -> int:
    """The new count."""
    with _lock:
        _counts[name] += amount
        return _counts[name]


def snapshot() -> dict[str, int]:
    with _lock:
        return dict(_counts)


def _renew() -> None:
    global _lock
    _lock = threading.Lock()
    _counts.clear()


process.after_fork(_renew)
