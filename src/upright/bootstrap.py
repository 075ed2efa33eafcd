"""The one place that wires adapters to ports."""

from __future__ import annotations

from upright.errors import ConfigurationError
from upright.services.dependencies import Dependencies

__all__ = ["Dependencies", "current", "use"]

_current: Dependencies | None = None


def use(dependencies: Dependencies | None) -> None:
    """Set what flows in this process work with."""
    global _current
    _current = dependencies


async def current() -> Dependencies:
    if _current is None:
        raise ConfigurationError("none")
    return _current
