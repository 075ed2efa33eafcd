"""Actuators: what a directive changes in this process, within the bounds of Django's settings.

Each has `apply(directive) -> Change` and, where the change is temporary, `revert(target) -> Change`. What they tell is
measured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from error_logging import http_clients, kill_file, measurements
from error_logging.actuators import cache, circuit_break, fallback, pool, queue, request_throttle, timeout
from error_logging.actuators.base import Change, NotSupported
from error_logging.conf import current

logger = logging.getLogger("error_logging")


class Actuator(Protocol):
    def apply(self, target: str, values: Mapping[str, Any]) -> Change: ...
    def revert(self, target: str) -> Change: ...


REGISTRY: Mapping[str, Actuator] = {
    "pool_increase": pool.PoolIncrease(),
    "timeout_increase": timeout.TimeoutIncrease(),
    "cache_clear": cache.CacheClear(),
    "queue_priority": queue.QueuePriority(),
    "circuit_break": circuit_break.CircuitBreak(),
    "fallback": fallback.FallbackActuator(),
    "request_throttle": request_throttle.RequestThrottle(),
}


def prepare_thread() -> None:
    """See that what this thread does next obeys the directives in force, whichever thread brought them."""
    if timeout.active():
        timeout.prepare()


def needs_requests() -> bool:
    return timeout.active()


def targets(strategy: str) -> list[str]:
    """What a strategy could act on in this process."""
    from django.conf import settings

    announced = getattr(REGISTRY.get(strategy), "targets", None)
    if announced is not None:
        return list(announced())
    if strategy == "cache_clear":
        return [alias for alias in settings.CACHES if cache.supported(alias)]
    if strategy == "pool_increase":
        return [alias for alias in current().databases if pool.configured(alias)]
    if strategy == "queue_priority":
        return queue.targets()
    clients = [f"{http_clients.PREFIX}{name}" for name in tuple(http_clients.registered)]
    return [*(alias for alias in current().databases if timeout.supported(alias)), *clients]


def refusal(strategy: str, values: Mapping[str, Any]) -> str | None:
    """Why Django's settings don't allow it, or None if they do."""
    conf = current()
    if not conf.enabled:
        return "UPRIGHT_ENABLED is False"
    if kill_file.exists():
        return kill_file.REASON
    if conf.allowed_strategies is not None and strategy not in conf.allowed_strategies:
        return f"UPRIGHT_ALLOWED_STRATEGIES does not hold {strategy}"
    for parameter, (low, high) in conf.limits.get(strategy, {}).items():
        value = values.get(parameter)
        if isinstance(value, int | float) and not low <= value <= high:
            return f"{parameter} {value:g} is outside {low:g} to {high:g} (UPRIGHT_LIMITS)"
    return None


def carry_out(action: Mapping[str, Any], *, revert: bool = False) -> dict[str, Any]:
    """One of the strategies that ship, as an executor tells of it. Raises NotSupported, and what an actuator raises."""
    strategy, target = str(action.get("strategy")), str(action.get("target"))
    values: Mapping[str, Any] = action.get("values") or {}
    actuator = REGISTRY.get(strategy)
    if actuator is None:
        raise NotSupported(f"this application has no {strategy}")
    refused = None if revert else refusal(strategy, values)
    if refused is not None:
        return {"success": False, "message": refused}
    change = actuator.revert(target) if revert else actuator.apply(target, values)
    return {"success": True, "message": change.note, "before": change.before, "after": change.after}


def acknowledgement(
    directive: Mapping[str, Any], *, revert: bool = False, deadline: float | None = None
) -> dict[str, Any]:
    """Apply or revert a directive through the application's executor, and say what came of it. Never raises."""
    from error_logging import execution

    began = time.monotonic()
    strategy = str(directive.get("strategy"))
    given = directive.get("values")
    values: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    told: dict[str, Any] = {
        "directive_id": directive.get("id"), "version": directive.get("version", 1), "reason": "", "before": {},
        "after": {},
    }  # fmt: skip
    refused = None if revert else refusal(strategy, values)
    try:
        if strategy not in REGISTRY and strategy not in execution.custom():
            told |= {"status": "unsupported", "reason": f"this application has no {strategy}"}
        elif refused is not None:
            told |= {"status": "refused", "reason": refused}
        else:
            action = {**directive, "values": values}
            with measurements.opening_pools():
                change = execution.carry_out(action, revert=revert, deadline=deadline)
            status = "reverted" if revert else "applied"
            told |= {"status": status, "reason": change.note, "before": change.before, "after": change.after}
    except NotSupported as error:
        told |= {"status": "unsupported", "reason": str(error)}
    except execution.ActionFailed as error:
        told |= {"status": "failed", "reason": str(error)}
    except Exception as error:
        logger.exception("Upright could not %s %s", "revert" if revert else "apply", strategy)
        told |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    told["duration_ms"] = round((time.monotonic() - began) * 1000, 2)
    return told
