"""Routes: the URL patterns of the application, as ResolverMatch and directives name them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.http import HttpRequest
from django.urls import ResolverMatch, URLPattern, URLResolver, get_resolver, resolve
from django.urls.exceptions import Resolver404

ROUTE = "route:"
ANY_ROUTE = "route:*"
"""What an actuator announces that can act on each of them."""


def match_of(request: HttpRequest) -> ResolverMatch | None:
    """The route of a request, also before Django has resolved it."""
    if request.resolver_match is not None:
        return request.resolver_match
    try:
        return resolve(request.path_info, getattr(request, "urlconf", None))
    except Resolver404:
        return None


def loaded() -> bool:
    """Whether the project's routes are known by now. To ask for them would import its views, which is for the thread of
    a request to do."""
    return "url_patterns" in get_resolver().__dict__


def views() -> Iterator[tuple[str, Any]]:
    """Each route of the project, with its view."""
    yield from _views(get_resolver(), "")


def _views(resolver: URLResolver, prefix: str) -> Iterator[tuple[str, Any]]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            yield _joined(prefix, pattern), pattern.callback
        elif isinstance(pattern, URLResolver):
            yield from _views(pattern, _joined(prefix, pattern))


def _joined(prefix: str, pattern: Any) -> str:
    # As Django's own resolver joins them.
    own = str(pattern.pattern)
    return prefix + own.removeprefix("^") if prefix else own
