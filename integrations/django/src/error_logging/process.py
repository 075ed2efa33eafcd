"""This process, told apart from every other one, also after a fork."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable

_instance: str | None = None


def instance() -> str:
    """host:pid:boot, unique for each process."""
    global _instance
    if _instance is None:
        _instance = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
    return _instance


def after_fork(renew: Callable[[], None]) -> None:
    """Have `renew` called in every child: locks are remade there, threads and connections forgotten."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)


def _renew() -> None:
    global _instance
    _instance = None


after_fork(_renew)
