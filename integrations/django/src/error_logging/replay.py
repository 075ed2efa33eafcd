"""Replays: the failed safe request once more, in the process where it failed, as evidence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.core.handlers.base import BaseHandler
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch, Resolver404, resolve

from error_logging import actuators, circuits, classification, fallbacks, gate, measurements
from error_logging.conf import current

logger = logging.getLogger("error_logging")

Evidence = dict[str, Any]
SAFE_METHODS = ("GET", "HEAD")
IDEMPOTENT_METHODS = ("PUT", "DELETE")
"""Where a view may declare that it is; a POST or PATCH needs a key that tells a repetition from a new request."""
NOT_ERRORS = (Http404, PermissionDenied, SuspiciousOperation, BadRequest)


def allowed(request: HttpRequest) -> bool:
    """Whether this request may be done again: its view is known and has not opted out; and it is safe, or the view has
    declared it idempotent, or it carries the idempotency key that the view declares."""
    match = request.resolver_match
    if not current().replay or match is None or _opted_out(match.func):
        return False
    return request.method in SAFE_METHODS or (_idempotent(request, match.func) and _body_kept(request))


def replaying(failed: HttpRequest) -> bool:
    """Whether this request is being done again: what it raises now is evidence, not another error."""
    return bool(failed.__dict__.get("_upright_replaying"))


def request(failed: HttpRequest) -> tuple[Evidence, HttpResponseBase | None]:
    """Do it again in this thread."""
    began = time.monotonic()
    actuators.prepare_thread()
    view, args, kwargs = _view(failed)
    if iscoroutinefunction(view):
        view = async_to_sync(view)
    response: HttpResponseBase | None = None
    attempt = _Attempt(failed)
    passage: gate.Passage | None = None
    try:
        passage = gate.enter(failed, again=True) if gate.active() else gate.Passage()
        response = passage.response or _rendered(view(failed, *args, **kwargs))
    except Exception as error:
        evidence = _of_exception(error, passage)
    else:
        evidence = _of_response(response, passage)
    finally:
        attempt.end()
        if passage is not None:
            passage.left()
    return {**evidence, "kind": "replay", "attempts": 1, "duration_ms": _ms(began)}, response


async def arequest(failed: HttpRequest) -> tuple[Evidence, HttpResponseBase | None]:
    """Do it again from an event loop; a view that is not asynchronous runs where such views do."""
    view, args, kwargs = _view(failed)
    if not iscoroutinefunction(view):
        return await sync_to_async(request, thread_sensitive=True)(failed)
    began = time.monotonic()
    response: HttpResponseBase | None = None
    attempt = _Attempt(failed)
    passage: gate.Passage | None = None
    try:
        passage = await gate.aenter(failed, again=True) if gate.active() else gate.Passage()
        # A view in the event loop can't load it by itself, where it relied on a middleware that did.
        await sync_to_async(attempt.load_session, thread_sensitive=True)()
        response = passage.response
        if response is None:
            made = await view(failed, *args, **kwargs)
            response = await sync_to_async(_rendered, thread_sensitive=True)(made)
    except Exception as error:
        evidence = _of_exception(error, passage)
    else:
        evidence = _of_response(response, passage)
    finally:
        attempt.end()
        if passage is not None:
            passage.left()
    return {**evidence, "kind": "replay", "attempts": 1, "duration_ms": _ms(began)}, response


def anonymous(detail: Mapping[str, Any], error_types: list[str]) -> Evidence:
    """Request a path without user or session, for a caller that has gone. It counts as failed only if it fails as the
    error did, and as passed only if it succeeds: anything else may be another matter."""
    began = time.monotonic()
    with circuits.anonymously():
        evidence = _anonymous(detail, error_types)
    return {**evidence, "kind": "anonymous_replay", "attempts": 1, "duration_ms": _ms(began)}


def _anonymous(detail: Mapping[str, Any], error_types: list[str]) -> Evidence:
    method, path = str(detail.get("method") or "GET"), str(detail.get("path") or "")
    if not current().replay or method not in SAFE_METHODS or not detail.get("path_intact", True) or not path:
        return _evidence("inconclusive", "the request can't be repeated")
    # Not above: it brings unittest with it, and few processes ever come here.
    from django.test.client import RequestFactory

    made = RequestFactory(SERVER_NAME=_host()).generic(method, path)
    try:
        made.resolver_match = match = resolve(urlsplit(path).path)
    except Resolver404:
        return _evidence("inconclusive", "the path leads nowhere")
    if _opted_out(match.func):
        return _evidence("inconclusive", "the view does not allow replays")
    _as_nobody(made)
    actuators.prepare_thread()
    view: Callable[..., Any] = BaseHandler().make_view_atomic(match.func)
    if iscoroutinefunction(view):
        view = async_to_sync(view)
    passage = gate.enter(made, again=True) if gate.active() else gate.Passage()
    try:
        response = passage.response or _rendered(view(made, *match.args, **match.kwargs))
        if passage.by == "circuit_break":
            return _refused(response, passage)
        passage.ended(response)
    except NOT_ERRORS as error:
        passage.passed()
        return _evidence("inconclusive", type(error).__name__)
    except Exception as error:
        if circuits.open_in(error) is not None:
            return _evidence("inconclusive", str(circuits.open_in(error)))
        passage.failed()
        names = {name.rpartition(".")[2] for chain in classification.classes_of(error) for name in chain[:1]}
        wanted = {name.rpartition(".")[2] for name in error_types}
        outcome = "failed" if names & wanted else "inconclusive"
        return _evidence(outcome, f"{type(error).__name__} was raised")
    finally:
        passage.left()
    status = response.status_code
    discard(response)
    return _evidence("passed" if 200 <= status < 300 else "inconclusive", _answered(response, passage), status)


def _idempotent(request: HttpRequest, view: Any) -> bool:
    if request.method in IDEMPOTENT_METHODS and _declared(view, "upright_idempotent"):
        return True
    header = _declared(view, "upright_idempotency_key")
    return bool(header) and bool(request.headers.get(str(header), "").strip())


def _declared(view: Any, name: str) -> Any:
    return getattr(view, name, None) or getattr(getattr(view, "view_class", None), name, None)


def _body_kept(request: HttpRequest) -> bool:
    """Whether the view can read the body a second time."""
    state = request.__dict__
    if not getattr(request, "_read_started", False) or "_body" in state:
        return True
    # A form with files is read once, into these. They are empty where somebody else has read it.
    return request.content_type == "multipart/form-data" and bool(state.get("_post") or state.get("_files"))


def _rewind(request: HttpRequest) -> None:
    files: Any = request.__dict__.get("_files")
    for _, uploaded in files.lists() if files else ():
        for file in uploaded:
            file.seek(0)


def _opted_out(view: Any) -> bool:
    return any(getattr(of, "upright_replay", True) is False for of in (view, getattr(view, "view_class", None)))


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


def _of_exception(error: Exception, passage: gate.Passage | None) -> Evidence:
    opened = circuits.open_in(error)
    if opened is not None:
        return _evidence("inconclusive", str(opened))
    if passage is not None:
        passage.passed() if isinstance(error, NOT_ERRORS) else passage.failed()
    if isinstance(error, NOT_ERRORS):
        return _evidence("inconclusive", f"{type(error).__name__} was raised")
    asked_for_s = measurements.retry_after(error)
    evidence = _evidence("failed", f"{type(error).__name__} was raised again")
    return evidence if asked_for_s is None else {**evidence, "retry_after_s": asked_for_s}


def _of_response(response: HttpResponseBase, passage: gate.Passage) -> Evidence:
    if passage.by == "circuit_break":
        return _refused(response, passage)
    passage.ended(response)
    status, detail = response.status_code, _answered(response, passage)
    if status >= 500:
        return _evidence("failed", detail, status)
    # A client's error (a throttle, a login that ran out) says nothing of what failed.
    if status >= 400 or _to_login(response):
        return _evidence("inconclusive", detail, status)
    return _evidence("passed", detail, status)


def _refused(response: HttpResponseBase, passage: gate.Passage) -> Evidence:
    return _evidence("inconclusive", "the circuit is open", response.status_code)


def _answered(response: HttpResponseBase, passage: gate.Passage) -> str:
    if passage.by != "fallback":
        return f"answered {response.status_code}"
    return f"answered {response.status_code} by the fallback: {response.headers.get(fallbacks.HEADER, '')}"


def _to_login(response: HttpResponseBase) -> bool:
    if not 300 <= response.status_code < 400:
        return False
    location = urlsplit(response.headers.get("Location", ""))
    if REDIRECT_FIELD_NAME in parse_qs(location.query, keep_blank_values=True):
        return True
    try:
        login = urlsplit(resolve_url(settings.LOGIN_URL or "")).path
    except NoReverseMatch:
        return False
    return bool(login) and location.path.rstrip("/") == login.rstrip("/")


def _evidence(outcome: str, detail: str, status: int | None = None) -> Evidence:
    return {"outcome": outcome, "detail": detail, "status_code": status}


_FRESH: tuple[tuple[str, tuple[tuple[str, Callable[[], Any]], ...]], ...] = (
    ("session", (("modified", bool), ("accessed", bool))),
    ("_messages", (("_queued_messages", list), ("added_new", bool), ("used", bool))),
)
"""What a request begins with."""


class _Attempt:
    """One replay's own session and messages: it begins with what is stored, as a new request does, and what it leaves
    takes the place of what the failed attempt left only if its response is served. So it happens once, or not at
    all."""

    def __init__(self, failed: HttpRequest) -> None:
        self._failed = failed
        self._session: Any = getattr(failed, "session", None)
        self._key = getattr(self._session, "session_key", None)
        self._before = _left_by(failed)
        failed.__dict__["_upright_replaying"] = True
        _rewind(failed)
        for name, attributes in _FRESH:
            holder: Any = getattr(failed, name, None)
            for attribute, fresh in attributes:
                if hasattr(holder, attribute):
                    setattr(holder, attribute, fresh())
        getattr(self._session, "__dict__", {}).pop("_session_cache", None)

    def load_session(self) -> None:
        """Load it, if it was loaded when the request failed."""
        if "_session_cache" in self._before.get("session", {}):
            self._session._get_session()

    def end(self) -> None:
        self._failed.__dict__.pop("_upright_replaying", None)
        if getattr(self._session, "session_key", None) != self._key:
            # It logged in or out: the old session is gone from the store, and must not come back.
            return
        self._failed.__dict__["_upright_left"] = _left_by(self._failed)
        _leave(self._failed, self._before)


def keep_session(request: HttpRequest) -> None:
    """Keep what the last replay did to session and messages, since its response is served."""
    left = request.__dict__.pop("_upright_left", None)
    if left is not None:
        _leave(request, left)


def discard(response: HttpResponseBase) -> None:
    """Close what a response holds, without `close()`, whose signal would tell everyone that the request is over."""
    closers: list[Callable[[], Any]] = getattr(response, "_resource_closers", [])
    while closers:
        try:
            closers.pop()()
        except Exception:
            logger.debug("A replay's response could not be closed", exc_info=True)


def _left_by(request: HttpRequest) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, attributes in _FRESH:
        state: dict[str, Any] = getattr(getattr(request, name, None), "__dict__", {})
        wanted = [attribute for attribute, _ in attributes] + ["_session_cache"]
        found[name] = {attribute: state[attribute] for attribute in wanted if attribute in state}
    return found


def _leave(request: HttpRequest, left: dict[str, dict[str, Any]]) -> None:
    for name, attributes in left.items():
        state: dict[str, Any] = getattr(getattr(request, name, None), "__dict__", {})
        state.pop("_session_cache", None)
        state.update(attributes)


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
