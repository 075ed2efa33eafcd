"""ai_error_handler: the middleware's work for one view, and the place where a view says what may be done with it."""

from __future__ import annotations

import logging
import sys
import time
from asyncio import iscoroutine
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from error_logging import circuits, gate, handling, recording
from error_logging.replay import replaying

logger = logging.getLogger("error_logging")

View = TypeVar("View", bound=Callable[..., Any])


@overload
def ai_error_handler(view: View) -> View: ...
@overload
def ai_error_handler(
    *,
    replay: bool = True,
    serve_recovered: bool = False,
    idempotent: bool = False,
    idempotency_key: str | None = None,
    service: str | None = None,
) -> Callable[[View], View]: ...
def ai_error_handler(
    view: Any = None,
    *,
    replay: bool = True,
    serve_recovered: bool = False,
    idempotent: bool = False,
    idempotency_key: str | None = None,
    service: str | None = None,
) -> Any:
    """Recover errors of this view, with or without the middleware. For function views, synchronous or not, and for
    classes through `method_decorator(ai_error_handler, name="dispatch")`.

    Args:
        replay: whether a failed GET or HEAD of it may be done again, as evidence
        serve_recovered: whether the user gets the response of a replay that worked, marked by `X-Upright-Recovered`
        idempotent: whether a failed PUT or DELETE of it may be done again too. The caller gets what came of it
        idempotency_key: name of the header by which the view knows a repetition, such as `Idempotency-Key`: a failed
            request of any method that carries it may be done again. The caller gets what came of it
        service: name of the service, where it is not UPRIGHT_SERVICE
    """

    def decorate(inner: Callable[..., Any]) -> Callable[..., Any]:
        if iscoroutinefunction(inner):

            @wraps(inner)
            async def awrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                return await _awaited(inner(request, *args, **kwargs), request, service)

            wrapper: Any = awrapper
        else:

            @wraps(inner)
            def swrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                began = time.monotonic()
                try:
                    result = inner(request, *args, **kwargs)
                except Exception as exc:
                    answer = _handled(_entered(request, began, service), exc) if _ours(request, exc) else None
                    if answer is None:
                        raise
                    return answer
                # `dispatch` of an asynchronous class-based view is a plain function that returns a coroutine.
                return _awaited(result, request, service) if iscoroutine(result) else result

            wrapper = swrapper
        # Only what differs from the default: method_decorator copies the attributes of a base class's method over
        # these, and what a view opted out of must stay so.
        if not replay:
            wrapper.upright_replay = False
        if idempotent:
            wrapper.upright_idempotent = True
        if idempotency_key:
            wrapper.upright_idempotency_key = idempotency_key
        if serve_recovered:
            wrapper.upright_serve_recovered = True
        return wrapper

    return decorate if view is None else decorate(view)


async def _awaited(result: Awaitable[Any], request: HttpRequest, service: str | None) -> Any:
    began = time.monotonic()
    try:
        return await result
    except Exception as exc:
        answer = await _ahandled(_entered(request, began, service), exc) if _ours(request, exc) else None
        if answer is None:
            raise
        return answer


def _ours(request: Any, exc: Exception) -> bool:
    """Whether nobody else answers it, as REST framework does inside of its views."""
    rest: Any = sys.modules.get("rest_framework.exceptions")
    return isinstance(request, HttpRequest) or rest is None or not isinstance(exc, rest.APIException)


def _entered(request: Any, began: float, service: str | None) -> HttpRequest:
    """Django's own request, which REST framework's stands in for inside of its views."""
    plain: HttpRequest = request if isinstance(request, HttpRequest) else getattr(request, "_request", request)
    plain.__dict__.setdefault("_upright_began", began)
    if service is not None:
        plain.__dict__.setdefault("upright_service", service)
    return plain


def _unavailable(request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
    """The answer to a call that an open circuit has kept from being made."""
    opened = circuits.open_in(exc)
    return None if opened is None or settings.DEBUG or replaying(request) else gate.unavailable(opened)


def _handled(request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
    """The answer, or None where the exception is to go on."""
    unavailable = _unavailable(request, exc)
    if unavailable is not None:
        return unavailable
    if not handling.is_error(exc) or replaying(request):
        return None
    try:
        broken = _broken_blocks()
        if handling.seen(request, exc):
            return None
        record = handling.capture(request, exc)
        with handling.kept(record):
            own_page = handling.own_page(request)
            if own_page and (broken or not handling.serves_recovered(request)):
                recording.finish_later(record)
                return None
            if not own_page:
                handling.tell_others(request)
            if broken:
                # The transaction can't be used any more, and what was written in it must not be committed half.
                for connection in broken:
                    connection.set_rollback(True)
                response = handling.respond(request, exc, record, handling.not_waited(record), None)
                recording.finish_later(record)
                return response
            answer, delivered, replayed = handling.recover(request, record)
            response = handling.respond(request, exc, record, answer, replayed)
            if own_page and response is not None:
                handling.tell_others(request)
            recording.finish(record, answer=answer, delivered=delivered)
            return response
    except Exception:
        logger.exception("Upright failed while it handled an error; the exception goes on")
        return None


async def _ahandled(request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
    unavailable = _unavailable(request, exc)
    if unavailable is not None:
        return unavailable
    if not handling.is_error(exc) or replaying(request):
        return None
    try:
        if handling.seen(request, exc):
            return None
        finish: Any = sync_to_async(recording.finish, thread_sensitive=True)
        record = await sync_to_async(handling.capture, thread_sensitive=True)(request, exc)
        async with handling.akept(record):
            own_page = handling.own_page(request)
            if own_page and not handling.serves_recovered(request):
                await finish(record, answer=None, delivered=False)
                return None
            if not own_page:
                await handling.atell_others(request, exc)
            answer, delivered, replayed = await handling.arecover(request, record)
            response = handling.respond(request, exc, record, answer, replayed)
            if own_page and response is not None:
                await handling.atell_others(request, exc)
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
