"""Waiting: how many requests of this process wait for a recovery at the same time, and what they give back first."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from django.db import connections

from error_logging import client, process
from error_logging.conf import current

_lock = threading.Lock()
_waiting = 0


def waiters() -> int:
    """Requests of this process that wait now."""
    return _waiting


@contextlib.contextmanager
def place() -> Iterator[bool]:
    """A place to wait, if there is one and it is worth it; never blocks.

    Threads that wait serve nobody: with all of them waiting, one failing view takes the whole application down.
    """
    global _waiting
    conf = current()
    with _lock:
        taken = conf.recovery_timeout_ms > 0 and _waiting < conf.max_waiters and client.available()
        _waiting += taken
    try:
        yield taken
    finally:
        if taken:
            with _lock:
                _waiting -= 1


def give_back_connections() -> None:
    """Return this thread's database connections: what waits needs none, and they may be what others wait for."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


def _after_fork() -> None:
    global _lock, _waiting
    _lock = threading.Lock()
    _waiting = 0


process.after_fork(_after_fork)
