"""The gate: what directives in force do with a request before its view. Real requests and replays pass it alike, but
for throttles: a request that was let through once is not counted again.

In its order: an open circuit refuses; a throttle refuses what is too much; a fallback answers in the view's place. With
nothing in force a request pays for one look into three empty dicts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch

from error_logging import alternatives, circuits, fallbacks, last_good, routes, throttles
from error_logging.circuits import CircuitOpen, Permit
from error_logging.throttles import Limited

logger = logging.getLogger("error_logging")

SAFE_METHODS = ("GET", "HEAD")
MARK = "_upright_gate"


class Passage:
    """How a request came through: with an answer already, or with a permit that wants to know how it ended."""

    __slots__ = ("by", "permit", "response")

    def __init__(self, response: HttpResponseBase | None = None, *, by: str = "", permit: Permit | None = None) -> None:
        self.response = response
        self.by = by
        self.permit = permit

    def failed(self) -> None:
        if self.permit is not None:
            self.permit.failed()

    def passed(self) -> None:
        if self.permit is not None:
            self.permit.passed()

    def ended(self, response: HttpResponseBase) -> None:
        if self.permit is not None:
            self.permit.failed() if response.status_code >= 500 else self.permit.passed()

    def left(self) -> None:
        """Whatever happened: a permit that nobody has used is given back."""
        if self.permit is not None:
            self.permit.release()


def active() -> bool:
    return circuits.active() or throttles.active() or fallbacks.active()


def enter(request: HttpRequest, *, again: bool = False) -> Passage:
    """`again`: it is a replay. Never raises: where ours fails, the request goes to its view."""
    way = _way(request, again)
    reply: Any = None
    try:
        while True:
            reply = way.send(reply)()
    except StopIteration as ended:
        return ended.value
    except Exception:
        way.close()
        logger.exception("Upright's gate failed; the request goes on")
        return Passage()


async def aenter(request: HttpRequest, *, again: bool = False) -> Passage:
    """The same in an event loop: what may block is done in a thread."""
    way = _way(request, again)
    reply: Any = None
    try:
        while True:
            reply = await sync_to_async(way.send(reply), thread_sensitive=True)()
    except StopIteration as ended:
        return ended.value
    except Exception:
        way.close()
        logger.exception("Upright's gate failed; the request goes on")
        return Passage()


def failed(request: HttpRequest) -> None:
    """The view of a request that came through raised an error."""
    passage: Passage | None = request.__dict__.get(MARK)
    if passage is not None:
        passage.failed()


def released(request: HttpRequest) -> None:
    """It ended for another reason than its view: nothing is known of that."""
    passage: Passage | None = request.__dict__.get(MARK)
    if passage is not None:
        passage.left()


def unavailable(error: CircuitOpen) -> HttpResponseBase:
    """503, in the format of errors."""
    return _refusal(503, "CircuitOpen", str(error), "high", error.retry_after_s)


def _way(request: HttpRequest, again: bool) -> Generator[Callable[[], Any], Any, Passage]:
    """Yields what may block, and is sent its result."""
    match = _Match(request)
    permit: Permit | None = None
    refused: CircuitOpen | None = None
    try:
        if circuits.active() and match.found is not None:
            circuit = circuits.get(f"{routes.ROUTE}{match.found.route}")
            if circuit is not None:
                try:
                    permit = circuit.admit()
                except CircuitOpen as error:
                    refused = error
        if refused is None and not again and throttles.active() and not throttles.exempt_path(request):
            limited: Limited | None
            route = match.found.route if match.found is not None else None
            if throttles.shared():
                limited = yield lambda: throttles.count(request, route)
            else:
                limited = throttles.count(request, route)
            if limited is not None and not (yield lambda: _staff(request)):
                if permit is not None:
                    permit.release()
                return Passage(_too_many(limited), by="request_throttle")
        fallback = None
        if fallbacks.active() and request.method in SAFE_METHODS and match.found is not None:
            fallback = fallbacks.get(match.found.route)
        # A half-open circuit's call goes to the view: it is to find out whether that works again.
        if fallback is not None and match.found is not None and not (permit is not None and permit.probe):
            found = match.found
            response = yield lambda: _answered(request, found, fallback)
            if response is not None:
                if permit is not None:
                    permit.release()
                return Passage(response, by="fallback")
        if refused is not None:
            return Passage(unavailable(refused), by="circuit_break")
    except BaseException:
        if permit is not None:
            permit.release()
        raise
    return Passage(permit=permit)


class _Match:
    """The route of a request, found when it is asked for, and once."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._found: ResolverMatch | None = None
        self._looked = False

    @property
    def found(self) -> ResolverMatch | None:
        if not self._looked:
            self._found, self._looked = routes.match_of(self._request), True
        return self._found


def _answered(request: HttpRequest, match: ResolverMatch, fallback: fallbacks.Fallback) -> HttpResponseBase | None:
    """The fallback's answer, marked as such; None where it has none, and the view is asked after all."""
    if fallback.mode == fallbacks.FULL:
        response: Any = alternatives.ask(fallback.service, request)
        what = f"full; service={fallback.service}"
    else:
        response, what = last_good.find(request), "degraded; last-good"
        if response is None:
            response, what = _from_view(request, match), "degraded; view"
    if response is not None:
        response.headers[fallbacks.HEADER] = what
    return response


def _from_view(request: HttpRequest, match: ResolverMatch) -> HttpResponseBase | None:
    view = fallbacks.view_of(match.route)
    if view is None:
        return None
    if iscoroutinefunction(view):
        view = async_to_sync(view)
    if request.resolver_match is None:
        request.resolver_match = match
    response: Any = view(request, *match.args, **match.kwargs)
    if callable(getattr(response, "render", None)) and not getattr(response, "is_rendered", True):
        response = response.render()
    return response if isinstance(response, HttpResponseBase) and response.status_code < 500 else None


def _staff(request: HttpRequest) -> bool:
    """Whether the request is one of staff's. Without a session's cookie nothing is looked up."""
    if settings.SESSION_COOKIE_NAME not in request.COOKIES:
        return False
    user: Any = getattr(request, "user", None)
    return bool(user is not None and user.is_active and user.is_staff)


def _too_many(limited: Limited) -> HttpResponseBase:
    response = _refusal(429, "TooManyRequests", "Too many requests", "low", limited.retry_after_s)
    response.headers["RateLimit-Limit"] = str(limited.limit)
    response.headers["RateLimit-Remaining"] = "0"
    response.headers["RateLimit-Reset"] = str(limited.retry_after_s)
    return response


def _refusal(status: int, kind: str, message: str, severity: str, retry_after_s: float) -> HttpResponseBase:
    retry = str(max(1, math.ceil(retry_after_s)))
    response = JsonResponse(
        {
            "error": {"type": kind, "message": message, "error_id": None, "severity": severity},
            "recovery": {
                "attempted": False,
                "success": False,
                "status": "pending",
                "message": f"Not handled, to protect the service; try again in {retry} s",
                "actions": [],
            },
        },
        status=status,
        headers={"Retry-After": retry, "Cache-Control": "no-store"},
    )
    # Django would log each as a warning or an error; the directive that caused them is told once.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
