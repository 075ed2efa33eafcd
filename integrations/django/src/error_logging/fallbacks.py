"""Fallbacks: what answers a route's GET and HEAD requests while a fallback directive is in force.

`full`: an alternative service. `degraded`: the last good response of the address, else a fallback view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from django.utils.module_loading import import_string

from error_logging import last_good, routes
from error_logging.conf import current
from error_logging.last_good import keep_last_good

__all__ = ["FULL", "Fallback", "active", "fallback_for", "get", "keep_last_good", "put", "remove", "view_of"]

View = TypeVar("View", bound=Callable[..., Any])
HEADER = "X-Upright-Fallback"
FULL, DEGRADED = "full", "degraded"
MODES = (FULL, DEGRADED)


@dataclass(frozen=True)
class Fallback:
    route: str
    mode: str
    service: str = ""


_fallbacks: dict[str, Fallback] = {}
_views: dict[str, Any] = {}


def fallback_for(route: str) -> Callable[[View], View]:
    """Register a view that answers for a route, in degraded mode where it has no last good response. `route` is the URL
    pattern as Django shows it (`request.resolver_match.route`); the view is called as the route's own one is."""

    def register(view: View) -> View:
        _views[route] = view
        return view

    return register


def view_of(route: str) -> Any:
    """The fallback view of a route, or None. Raises ImportError."""
    dotted: Mapping[str, str] = current().fallback_views
    if route in dotted:
        return import_string(dotted[route])
    return _views.get(route)


def active() -> bool:
    return bool(_fallbacks)


def get(route: str) -> Fallback | None:
    return _fallbacks.get(route)


def put(fallback: Fallback) -> Fallback | None:
    """The one that it replaces."""
    replaced = _fallbacks.get(fallback.route)
    _fallbacks[fallback.route] = fallback
    return replaced


def remove(route: str) -> Fallback | None:
    return _fallbacks.pop(route, None)


def degradable() -> list[str]:
    """Routes for which something is there to answer, as far as they are known by now."""
    conf = current()
    kept = [route for route, view in routes.views() if last_good.wanted(route, view)] if _marked() else []
    return sorted({*kept, *conf.last_good, *_views, *conf.fallback_views})


def may_degrade(route: str) -> bool:
    """A process that has not loaded its views can't tell yet."""
    return not routes.loaded() or route in degradable()


def _marked() -> bool:
    return last_good.used() and routes.loaded()
