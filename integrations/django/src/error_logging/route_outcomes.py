"""How the requests of a failing route end in this process: what tells a route that is down from one request that fails.

Counting begins with a failure and ends a minute after it, so that healthy routes cost nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from django.http import HttpRequest

from error_logging import process

WINDOW_S = 60.0
MOST_ROUTES = 200


@dataclass
class _Counts:
    began: float = field(default_factory=time.monotonic)
    failed: int = 0
    succeeded: int = 0


_routes: dict[str, _Counts] = {}


def watching() -> bool:
    return bool(_routes)


def failed(request: HttpRequest) -> dict[str, int]:
    """Count a failure; what is known of its route by now."""
    route = _route(request)
    counts = _counts_of(route)
    if counts is None:
        if len(_routes) >= MOST_ROUTES:
            _drop_old()
        if len(_routes) >= MOST_ROUTES:
            return {"failed": 1, "succeeded": 0}
        counts = _routes[route] = _Counts()
    counts.failed += 1
    request.__dict__["_upright_counted"] = True
    return {"failed": counts.failed, "succeeded": counts.succeeded}


def succeeded(request: HttpRequest) -> None:
    """Count a request that ended otherwise."""
    if request.__dict__.get("_upright_counted") or request.resolver_match is None:
        return
    counts = _counts_of(_route(request))
    if counts is not None:
        counts.succeeded += 1


def forget() -> None:
    _routes.clear()


def _route(request: HttpRequest) -> str:
    return request.resolver_match.route if request.resolver_match is not None else ""


def _counts_of(route: str) -> _Counts | None:
    counts = _routes.get(route)
    if counts is not None and time.monotonic() - counts.began > WINDOW_S:
        _routes.pop(route, None)
        return None
    return counts


def _drop_old() -> None:
    now = time.monotonic()
    for route in [route for route, one in list(_routes.items()) if now - one.began > WINDOW_S]:
        _routes.pop(route, None)


process.after_fork(forget)
