"""request_throttle: a rate limit on the service, on a route, or on each client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from error_logging import throttles
from error_logging.actuators.base import Change, NotSupported, whole
from error_logging.routes import ANY_ROUTE, ROUTE
from error_logging.throttles import CLIENT, SERVICE, Throttle


class RequestThrottle:
    def targets(self) -> list[str]:
        return [SERVICE, CLIENT, ANY_ROUTE]

    def apply(self, target: str, values: Mapping[str, Any]) -> Change:
        if target not in (SERVICE, CLIENT) and not target.startswith(ROUTE):
            raise NotSupported(f"{target!r} is not {SERVICE}, {CLIENT} or a route")
        throttle = Throttle(
            target,
            requests_per_minute=whole(values, "requests_per_minute", 1, 10_000_000),
            burst_size=whole(values, "burst_size", 1, 1_000_000),
            processes=whole({"processes": 1, **values}, "processes", 1, 100_000),
        )
        return Change(_told(throttles.put(throttle)), _told(throttles.get(target)))

    def revert(self, target: str) -> Change:
        return Change(_told(throttles.remove(target)), _told(throttles.get(target)))


def _told(throttle: Throttle | None) -> dict[str, Any]:
    if throttle is None:
        return {"requests_per_minute": None}
    return {"requests_per_minute": throttle.requests_per_minute, "burst_size": throttle.burst_size}
