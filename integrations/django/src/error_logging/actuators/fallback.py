"""fallback: another answer for a route's GET and HEAD requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from error_logging import fallbacks
from error_logging.actuators.base import Change, NotSupported
from error_logging.conf import current
from error_logging.fallbacks import DEGRADED, FULL, MODES, Fallback
from error_logging.routes import ROUTE

SERVICE = "service:"


class FallbackActuator:
    def targets(self) -> list[str]:
        """The routes that can be answered in degraded mode, and the services that can answer any."""
        services = [f"{SERVICE}{name}" for name in current().fallback_services]
        return [*services, *(f"{ROUTE}{route}" for route in fallbacks.degradable())]

    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        if not target.startswith(ROUTE):
            raise NotSupported(f"{target!r} is no route")
        route = target.removeprefix(ROUTE)
        mode, service = values.get("mode"), str(values.get("service") or "")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if mode == FULL and service not in current().fallback_services:
            raise NotSupported(f"UPRIGHT_FALLBACK_SERVICES has no {service!r}")
        if mode == DEGRADED and not fallbacks.may_degrade(route):
            raise NotSupported(f"the route {route!r} keeps no last good response and has no fallback view")
        replaced = fallbacks.put(Fallback(route, str(mode), service))
        return Change(_told(replaced), _told(fallbacks.get(route)))

    def revert(self, target: str) -> Change:
        route = target.removeprefix(ROUTE)
        return Change(_told(fallbacks.remove(route)), _told(fallbacks.get(route)))


def _told(fallback: Fallback | None) -> dict[str, Any]:
    return {"mode": None} if fallback is None else {"mode": fallback.mode, "service": fallback.service}
