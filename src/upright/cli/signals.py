"""Being asked to end, while starting, running or stopping."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Generator[None]:
    """Within it the first of SIGINT, SIGTERM and SIGHUP raises KeyboardInterrupt; later ones are ignored, so that
    what was started is also stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in _ASKS:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, interrupt) for one in _ASKS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
