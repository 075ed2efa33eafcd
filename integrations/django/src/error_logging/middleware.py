"""AIErrorRecoveryMiddleware: catches what a view raises, recovers it where that can be done, and answers."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.signals import got_request_exception
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponse, HttpResponseBase

from error_logging import actuators, agent, handling, recording
from error_logging.record import Record

logger = logging.getLogger("error_logging")


class AIErrorRecoveryMiddleware:
    """For WSGI and ASGI. A healthy request pays one attribute and one comparison.

    Under WSGI the failing request itself waits, in `process_exception`. Under ASGI that runs in a thread that other
    requests need, so the error is only recorded there, and the waiting is done in the event loop.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
        _guarded(agent.start)

    def __call__(self, request: HttpRequest) -> Any:
        if self.is_async:
            return self._acall(request)
        request.__dict__["_upright_began"] = time.monotonic()
        if actuators.needs_requests():
            _guarded(actuators.prepare_thread)
        response: Any = self.get_response(request)
        if response.streaming:
            _watch_stream(request, response)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        request.__dict__["_upright_began"] = time.monotonic()
        request.__dict__["_upright_async"] = True
        response: Any = await self.get_response(request)
        record: Record | None = request.__dict__.pop("_upright_waiting", None)
        if record is not None:
            response = await self._afinish(request, record, response)
        if response.streaming:
            _watch_stream(request, response)
        return response

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        # Under ASGI the view's thread is only known here.
        if self.is_async and actuators.needs_requests():
            _guarded(actuators.prepare_thread)

    def process_exception(self, request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
        if not handling.is_error(exc):
            return None
        try:
            return self._process(request, exc)
        except Exception:
            logger.exception("Upright failed while it handled an error; Django goes on")
            return None

    def _process(self, request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
        if handling.seen(request, exc):
            return None
        record = handling.capture(request, exc)
        if handling.own_page(request):
            recording.finish(record, answer=None, delivered=False)
            return None
        handling.tell_others(self.__class__, request)
        if self.is_async:
            request.__dict__["_upright_waiting"] = record
            # Replaced in __call__ once the recovery is known.
            return HttpResponse(status=record.http_status)
        answer, delivered, replayed = handling.recover(request, record)
        response = handling.respond(request, record, answer, replayed)
        recording.finish(record, answer=answer, delivered=delivered)
        return response

    async def _afinish(self, request: HttpRequest, record: Record, otherwise: HttpResponseBase) -> HttpResponseBase:
        try:
            answer, delivered, replayed = await handling.arecover(request, record)
            response = handling.respond(request, record, answer, replayed)
            await sync_to_async(recording.finish, thread_sensitive=True)(record, answer=answer, delivered=delivered)
            return response
        except Exception:
            logger.exception("Upright failed while it handled an error; the error is answered as it is")
            return otherwise


def _watch_stream(request: HttpRequest, response: StreamingHttpResponse) -> None:
    """Errors in the body of a streaming response reach neither the middleware nor the signal."""
    content: Any = response.streaming_content
    response.streaming_content = _awatched(request, content) if response.is_async else _watched(request, content)


def _watched(request: HttpRequest, content: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from content
    except Exception as error:
        _guarded(_record, request, error)
        raise


async def _awatched(request: HttpRequest, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for part in content:
            yield part
    except Exception as error:
        record: Callable[..., Awaitable[None]] = sync_to_async(_guarded, thread_sensitive=True)
        await record(_record, request, error)
        raise


def _record(request: HttpRequest, exc: BaseException) -> None:
    """Record an error that can't be answered any more."""
    if handling.is_error(exc) and not handling.seen(request, exc):
        recording.finish(handling.capture(request, exc), answer=None, delivered=False)


def _on_signal(sender: Any, request: HttpRequest | None = None, **_: Any) -> None:
    """Errors of other middleware reach only the signal."""
    exc = handling.handling_now()
    if exc is not None and request is not None and "_upright_began" in request.__dict__:
        _guarded(_record, request, exc)


def _guarded(call: Callable[..., Any], *args: Any) -> None:
    """What fails in us is logged, and the request goes on as it would without us."""
    try:
        call(*args)
    except Exception:
        logger.exception("Upright failed; the request goes on")


got_request_exception.connect(_on_signal, dispatch_uid="error_logging.middleware")
