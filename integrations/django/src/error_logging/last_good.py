"""Last good responses: of routes that opt in, what anybody got at an address when it last worked.

Only responses that are the same for everyone are kept: of GET requests without session, authorization or cookies of
Django's, answered 200, without Set-Cookie, `private`, `no-store` or `Vary: Cookie`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_cache_key, learn_cache_key
from django.utils.functional import SimpleLazyObject

from error_logging.conf import current

logger = logging.getLogger("error_logging")

View = TypeVar("View", bound=Callable[..., Any])
PREFIX = "upright-last-good"
MOST_BYTES = 1 << 20
MOST_ENTRIES = 400
"""In this process, where no cache is named. Each response takes two."""
REFRESH_S = 5.0
"""A response is kept again after this long."""
_PRIVATE = frozenset(("private", "no-store"))
_DROPPED = frozenset(("set-cookie", "date", "connection", "transfer-encoding", "content-length", "server"))


def keep_last_good(view: View) -> View:
    """Opt a view in: its last good response is served while a fallback is in force. UPRIGHT_LAST_GOOD does it for
    routes."""
    view.upright_last_good = True  # type: ignore[attr-defined]
    _Used.by_decorator = True
    return view


class _Used:
    by_decorator = False


def used() -> bool:
    """Whether any route has opted in."""
    return _Used.by_decorator or bool(current().last_good)


def wanted(route: str, view: Any) -> bool:
    return route in current().last_good or getattr(view, "upright_last_good", False) is True


def keep(request: HttpRequest, response: HttpResponseBase) -> None:
    """Keep it, if its route has opted in and it is anybody's."""
    match = request.resolver_match
    if match is None or not wanted(match.route, match.func) or not _anybodys(request, response):
        return
    if not isinstance(response, HttpResponse) or len(response.content) > MOST_BYTES:
        return
    if not _due(request.build_absolute_uri()):
        return
    age = current().last_good_max_age_s
    cache = _cache()
    headers = [(name, text) for name, text in response.items() if name.lower() not in _DROPPED]
    key = learn_cache_key(request, response, age, PREFIX, cache)
    cache.set(key, (time.time(), headers, response.content), age)


async def akeep(request: HttpRequest, response: HttpResponseBase) -> None:
    """The same from an event loop. Never raises."""
    try:
        match = request.resolver_match
        if match is not None and wanted(match.route, match.func) and _anybodys(request, response):
            await sync_to_async(keep, thread_sensitive=True)(request, response)
    except Exception:
        logger.exception("Upright could not keep a response")


def find(request: HttpRequest) -> HttpResponse | None:
    """The last good response of this request's address, marked as such. For logged-in users too: it is anybody's."""
    cache = _cache()
    key = get_cache_key(request, PREFIX, "GET", cache)
    kept = cache.get(key) if key is not None else None
    if kept is None:
        return None
    at, headers, content = kept
    response = HttpResponse(b"" if request.method == "HEAD" else content)
    for name, text in headers:
        response.headers[name] = text
    response.headers["Content-Length"] = str(len(content))
    response.headers["Age"] = str(max(0, round(time.time() - at)))
    response.headers["Warning"] = '110 - "Response is Stale"'
    response.headers["Cache-Control"] = "no-store"
    return response


def forget() -> None:
    """For tests."""
    _local.clear()
    _kept_at.clear()


def _anybodys(request: HttpRequest, response: HttpResponseBase) -> bool:
    if request.method != "GET" or response.status_code != 200 or response.streaming:
        return False
    if "HTTP_AUTHORIZATION" in request.META or settings.SESSION_COOKIE_NAME in request.COOKIES:
        return False
    user: Any = getattr(request, "user", None)
    # A lazy user is of the session, which the next lines look at.
    if user is not None and not isinstance(user, SimpleLazyObject) and getattr(user, "is_authenticated", False):
        return False
    session: Any = getattr(request, "session", None)
    # Django's middleware adds `Vary: Cookie` for these only later.
    if getattr(session, "accessed", False) or request.META.get("CSRF_COOKIE_NEEDS_UPDATE"):
        return False
    if response.cookies or response.has_header("Set-Cookie"):
        return False
    # A mark of ours: a fallback's answer, or one that a replay brought.
    if response.has_header("X-Upright-Fallback") or response.has_header("X-Upright-Recovered"):
        return False
    if _words(response, "Cache-Control") & _PRIVATE:
        return False
    return not _words(response, "Vary") & {"cookie", "authorization", "*"}


def _words(response: HttpResponseBase, header: str) -> set[str]:
    return {part.partition("=")[0].strip().lower() for part in response.headers.get(header, "").split(",")}


_local = LocMemCache(PREFIX, {"OPTIONS": {"MAX_ENTRIES": MOST_ENTRIES}})
_kept_at: OrderedDict[str, float] = OrderedDict()
_lock = threading.Lock()


def _cache() -> Any:
    alias = current().last_good_cache
    return _local if alias is None else caches[alias]


def _due(address: str) -> bool:
    now = time.monotonic()
    with _lock:
        if now - _kept_at.get(address, float("-inf")) < REFRESH_S:
            return False
        _kept_at[address] = now
        _kept_at.move_to_end(address)
        while len(_kept_at) > MOST_ENTRIES:
            _kept_at.popitem(last=False)
        return True
