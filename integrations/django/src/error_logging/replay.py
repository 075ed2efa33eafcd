"""Replays: the failed safe request once more, in the process where it failed, as evidence."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.core.handlers.base import BaseHandler
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.test import RequestFactory
from django.urls import Resolver404, resolve

from error_logging import actuators, classification
from error_logging.conf import current

logger = logging.getLogger("error_logging")

Evidence = dict[str, Any]
SAFE_METHODS = ("GET", "HEAD")
NOT_ERRORS = (Http404, PermissionDenied, SuspiciousOperation, BadRequest)


def allowed(request: HttpRequest) -> bool:
    """Whether this request may be done again: it is safe, its view is known and has not opted out."""
    match = request.resolver_match
    return (
        current().replay
        and request.method in SAFE_METHODS
        and match is not None
        and getattr(match.func, "upright_replay", True) is not False
    )


def request(failed: HttpRequest) -> tuple[Evidence, HttpResponseBase | None]:
    """Do it again in this thread."""
    began = time.monotonic()
    actuators.prepare_thread()
    session = _session_of(failed)
    view, args, kwargs = _view(failed)
    if iscoroutinefunction(view):
        view = async_to_sync(view)
    response: HttpResponseBase | None = None
    try:
        response = _rendered(view(failed, *args, **kwargs))
    except Exception as error:
        evidence = _of_exception(error)
    else:
        evidence = _of_response(response)
    _restore_session(failed, session)
    return {**evidence, "kind": "replay", "attempts": 1, "duration_ms": _ms(began)}, response


async def arequest(failed: HttpRequest) -> tuple[Evidence, HttpResponseBase | None]:
    """Do it again from an event loop; a view that is not asynchronous runs where such views do."""
    view, args, kwargs = _view(failed)
    if not iscoroutinefunction(view):
        return await sync_to_async(request, thread_sensitive=True)(failed)
    began = time.monotonic()
    session = _session_of(failed)
    response: HttpResponseBase | None = None
    try:
        response = await view(failed, *args, **kwargs)
        response = await sync_to_async(_rendered, thread_sensitive=True)(response)
    except Exception as error:
        evidence = _of_exception(error)
    else:
        evidence = _of_response(response)
    _restore_session(failed, session)
    return {**evidence, "kind": "replay", "attempts": 1, "duration_ms": _ms(began)}, response


def anonymous(detail: Mapping[str, Any], error_types: list[str]) -> Evidence:
    """Request a path without user or session, for a caller that has gone. It counts as failed only if it fails as the
    error did, and as passed only if it succeeds: anything else may be another matter."""
    began = time.monotonic()
    evidence = _anonymous(detail, error_types)
    return {**evidence, "kind": "anonymous_replay", "attempts": 1, "duration_ms": _ms(began)}


def _anonymous(detail: Mapping[str, Any], error_types: list[str]) -> Evidence:
    method, path = str(detail.get("method") or "GET"), str(detail.get("path") or "")
    if not current().replay or method not in SAFE_METHODS or not detail.get("path_intact", True) or not path:
        return _evidence("inconclusive", "the request can't be repeated")
    made = RequestFactory(SERVER_NAME=_host()).generic(method, path)
    try:
        made.resolver_match = match = resolve(urlsplit(path).path)
    except Resolver404:
        return _evidence("inconclusive", "the path leads nowhere")
    if getattr(match.func, "upright_replay", True) is False:
        return _evidence("inconclusive", "the view does not allow replays")
    _as_nobody(made)
    actuators.prepare_thread()
    view: Callable[..., Any] = BaseHandler().make_view_atomic(match.func)
    if iscoroutinefunction(view):
        view = async_to_sync(view)
    try:
        response = _rendered(view(made, *match.args, **match.kwargs))
    except NOT_ERRORS as error:
        return _evidence("inconclusive", type(error).__name__)
    except Exception as error:
        names = {name.rpartition(".")[2] for chain in classification.classes_of(error) for name in chain[:1]}
        wanted = {name.rpartition(".")[2] for name in error_types}
        outcome = "failed" if names & wanted else "inconclusive"
        return _evidence(outcome, f"{type(error).__name__} was raised")
    status = response.status_code
    response.close()
    return _evidence("passed" if 200 <= status < 300 else "inconclusive", f"answered {status}", status)


def _view(failed: HttpRequest) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    match = failed.resolver_match
    if match is None:
        raise LookupError("the request was not resolved")
    # ATOMIC_REQUESTS applies to the replay as it did to the request.
    return BaseHandler().make_view_atomic(match.func), match.args, match.kwargs


def _rendered(response: Any) -> HttpResponseBase:
    if not isinstance(response, HttpResponseBase):
        raise TypeError("the view returned no response")
    render = getattr(response, "render", None)
    if callable(render) and not getattr(response, "is_rendered", True):
        response = render()
    return response


def _of_exception(error: Exception) -> Evidence:
    if isinstance(error, NOT_ERRORS):
        return _evidence("inconclusive", f"{type(error).__name__} was raised")
    return _evidence("failed", f"{type(error).__name__} was raised again")


def _of_response(response: HttpResponseBase) -> Evidence:
    status = response.status_code
    if status >= 500:
        return _evidence("failed", f"answered {status}", status)
    if status in (401, 403, 404) or _to_login(response):
        return _evidence("inconclusive", f"answered {status}", status)
    return _evidence("passed", f"answered {status}", status)


def _to_login(response: HttpResponseBase) -> bool:
    if not 300 <= response.status_code < 400:
        return False
    login = str(getattr(settings, "LOGIN_URL", "") or "")
    return bool(login) and urlsplit(response.headers.get("Location", "")).path.rstrip("/") == login.rstrip("/")


def _evidence(outcome: str, detail: str, status: int | None = None) -> Evidence:
    return {"outcome": outcome, "detail": detail, "status_code": status}


def _session_of(failed: HttpRequest) -> dict[str, Any] | None:
    session: Any = getattr(failed, "session", None)
    cached = getattr(session, "_session_cache", None)
    if cached is None:
        return None
    return {"cache": copy.deepcopy(cached), "modified": session.modified, "accessed": session.accessed}


def _restore_session(failed: HttpRequest, kept: dict[str, Any] | None) -> None:
    """What a replay did to the session is undone, so that it happens once, or not at all."""
    session = getattr(failed, "session", None)
    if session is None or kept is None:
        return
    session._session_cache = kept["cache"]
    session.modified = kept["modified"]
    session.accessed = kept["accessed"]


def _as_nobody(made: HttpRequest) -> None:
    if "django.contrib.auth" in settings.INSTALLED_APPS:
        from django.contrib.auth.models import AnonymousUser

        made.user = AnonymousUser()
    if "django.contrib.sessions" in settings.INSTALLED_APPS:
        from importlib import import_module

        made.session = import_module(settings.SESSION_ENGINE).SessionStore()


def _host() -> str:
    hosts = [one for one in settings.ALLOWED_HOSTS if one and "*" not in one]
    return hosts[0].lstrip(".") if hosts else "localhost"


def _ms(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)
