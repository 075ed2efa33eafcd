"""Names of the recovery strategies, and their executor in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from error_logging import actuators


class RecoveryStrategy:
    """The strategies' names. Subclasses add their own, as upper-case attributes."""

    RETRY = "retry"
    TIMEOUT_INCREASE = "timeout_increase"
    CACHE_CLEAR = "cache_clear"
    POOL_INCREASE = "pool_increase"
    RESOURCE_SCALE = "resource_scale"
    CIRCUIT_BREAK = "circuit_break"
    FALLBACK = "fallback"
    QUEUE_PRIORITY = "queue_priority"
    REQUEST_THROTTLE = "request_throttle"
    SERVICE_RESTART = "service_restart"

    @classmethod
    def names(cls) -> list[str]:
        """All names, of base classes too."""
        found = {
            value: None
            for kind in reversed(cls.__mro__)
            for name, value in vars(kind).items()
            if name.isupper() and isinstance(value, str)
        }
        return list(found)


class AutoRecoveryExecutor:
    """Carries an action out in this process, by the method `_execute_<strategy>`.

    An action is a mapping with `strategy`, `target` and `values`, as a directive has them. What is returned says that
    it acted, by `success`; whether it helped is for evidence to say.
    """

    def execute(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """Raises NotImplementedError for a strategy that has no method here."""
        method = getattr(self, f"_execute_{action['strategy']}", None)
        if method is None:
            raise NotImplementedError(f"{type(self).__name__} has no _execute_{action['strategy']}")
        return method(action)

    def _execute_pool_increase(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return _acted(action)

    def _execute_timeout_increase(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return _acted(action)

    def _execute_cache_clear(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return _acted(action)


def _acted(action: Mapping[str, Any]) -> dict[str, Any]:
    told = actuators.acknowledgement(action)
    return {"success": told["status"] == "applied", "message": told["reason"], **told}
