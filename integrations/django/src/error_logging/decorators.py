"""ai_error_handler: the middleware's work for one view, and the place where a view says what may be done with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from error_logging import handling, recording

logger = logging.getLogger("error_logging")

View = TypeVar("View", bound=Callable[..., Any])


@overload
def ai_error_handler(view: View) -> View: ...
@overload
def ai_error_handler(
    *, replay: bool = True, serve_recovered: bool = False, service: str | None = None
) -> Callable[[View], View]: ...
def ai_error_handler(
    view: Any = None, *, replay: bool = True, serve_recovered: bool = False, service: str | None = None
) -> Any:
    """Recover errors of this view, with or without the middleware. For function views, synchronous or not, and for
    classes through `method_decorator(ai_error_handler, name="dispatch")`.

    Args:
        replay: whether a failed GET or HEAD of it may be done again, as evidence
        serve_recovered: whether the user gets the response of a replay that worked, marked by `X-Upright-Recovered`
        service: name of the service, where it is not UPRIGHT_SERVICE
    """

    def decorate(inner: Callable[..., Any]) -> Callable[..., Any]:
        if iscoroutinefunction(inner):

            @wraps(inner)
            async def awrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                began = time.monotonic()
                try:
                    return await inner(request, *args, **kwargs)
                except Exception as exc:
                    _enter(request, began, service)
                    answer = await _ahandled(request, exc)
                    if answer is None:
                        raise
                    return answer

            wrapper: Any = awrapper
        else:

            @wraps(inner)
            def swrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                began = time.monotonic()
                try:
                    return inner(request, *args, **kwargs)
                except Exception as exc:
                    _enter(request, began, service)
                    answer = _handled(request, exc)
                    if answer is None:
                        raise
                    return answer

            wrapper = swrapper
        wrapper.upright_replay = replay
        wrapper.upright_serve_recovered = serve_recovered
        return wrapper

    return decorate if view is None else decorate(view)


def _enter(request: HttpRequest, began: float, service: str | None) -> None:
    request.__dict__.setdefault("_upright_began", began)
    if service is not None:
        request.__dict__.setdefault("upright_service", service)


def _handled(request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
    """The answer, or None where the exception is to go on."""
    if not handling.is_error(exc) or request.__dict__.get("_upright_replaying"):
        return None
    try:
        broken = _broken_blocks()
        if handling.seen(request, exc):
            return None
        record = handling.capture(request, exc)
        if handling.own_page(request):
            recording.finish_later(record)
            return None
        handling.tell_others(None, request)
        if broken:
            # The transaction can't be used any more, and what was written in it must not be committed half.
            for connection in broken:
                connection.set_rollback(True)
            answer, delivered, replayed = handling.not_waited(record), False, None
            response = handling.respond(request, record, answer, replayed)
            recording.finish_later(record, answer=None, delivered=False)
        else:
            request.__dict__["_upright_replaying"] = True
            try:
                answer, delivered, replayed = handling.recover(request, record)
            finally:
                request.__dict__.pop("_upright_replaying", None)
            response = handling.respond(request, record, answer, replayed)
            recording.finish(record, answer=answer, delivered=delivered)
        return response
    except Exception:
        logger.exception("Upright failed while it handled an error; the exception goes on")
        return None


async def _ahandled(request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
    if not handling.is_error(exc) or request.__dict__.get("_upright_replaying"):
        return None
    try:
        if handling.seen(request, exc):
            return None
        capture: Any = sync_to_async(handling.capture, thread_sensitive=True)
        finish: Any = sync_to_async(recording.finish, thread_sensitive=True)
        record = await capture(request, exc)
        if handling.own_page(request):
            await finish(record, answer=None, delivered=False)
            return None
        handling.tell_others(None, request)
        request.__dict__["_upright_replaying"] = True
        try:
            answer, delivered, replayed = await handling.arecover(request, record)
        finally:
            request.__dict__.pop("_upright_replaying", None)
        response = handling.respond(request, record, answer, replayed)
        await finish(record, answer=answer, delivered=delivered)
        return response
    except Exception:
        logger.exception("Upright failed while it handled an error; the exception goes on")
        return None


def _broken_blocks() -> list[Any]:
    """Connections of this thread inside an atomic block of the application's."""
    return [
        connection
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block and not getattr((connection.atomic_blocks or [None])[-1], "_from_testcase", False)
    ]
