"""Names of the recovery strategies, and their executor in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    @classmethod
    def declared(cls) -> set[str]:
        """The names of this class and of all that derive from it."""
        return set(cls.names()).union(*(kind.declared() for kind in cls.__subclasses__()))


class AutoRecoveryExecutor:
    """Carries an action out in this process, by the method `_execute_<strategy>`, and takes it back, by
    `_revert_<strategy>` where there is one. Every directive goes this way, also of the strategies that ship.

    An action is a mapping with `strategy`, `target` and `values`, as a directive has them. A method returns
    `{"success": True, "message": "…"}`, which says that it acted; `before` and `after` may hold what it measured.
    Whether it helped is for evidence to say. Subclass it, and name the subclass in UPRIGHT_EXECUTOR, to add strategies.
    """

    def execute(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """Raises NotImplementedError for a strategy that has no method here."""
        return self._method("execute", action)(action)

    def revert(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """Raises NotImplementedError where nothing can be taken back."""
        return self._method("revert", action)(action)

    def _method(self, kind: str, action: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        name = f"_{kind}_{action['strategy']}"
        method = getattr(self, name, None)
        if method is None:
            raise NotImplementedError(f"{type(self).__name__} has no {name}")
        return method

    def _execute_timeout_increase(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action)

    def _revert_timeout_increase(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action, revert=True)

    def _execute_cache_clear(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action)

    def _revert_cache_clear(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action, revert=True)

    def _execute_pool_increase(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action)

    def _revert_pool_increase(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action, revert=True)

    def _execute_circuit_break(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action)

    def _revert_circuit_break(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action, revert=True)

    def _execute_fallback(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action)

    def _revert_fallback(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action, revert=True)

    def _execute_queue_priority(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action)

    def _revert_queue_priority(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action, revert=True)

    def _execute_request_throttle(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action)

    def _revert_request_throttle(self, action: Mapping[str, Any]) -> dict[str, Any]:
        return actuators.carry_out(action, revert=True)
