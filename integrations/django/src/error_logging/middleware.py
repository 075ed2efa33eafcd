"""AIErrorRecoveryMiddleware: catches what a view raises, recovers it where that can be done, and answers."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.core.handlers.exception import response_for_exception
from django.core.signals import got_request_exception
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponse, HttpResponseBase

from error_logging import (
    actuators,
    agent,
    circuits,
    gate,
    handling,
    last_good,
    recording,
    retry_budget,
    route_outcomes,
    route_watch,
)
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
            self.process_view = self._before_view
        # Here rather than on import: who uses the decorator alone did not ask for the errors of all other views.
        got_request_exception.connect(_on_signal, dispatch_uid="error_logging.middleware")
        _guarded(agent.start)

    def __call__(self, request: HttpRequest) -> Any:
        retry_budget.budget.requests += 1
        if self.is_async:
            return self._acall(request)
        request.__dict__["_upright_began"] = time.monotonic()
        if actuators.needs_requests():
            _guarded(actuators.prepare_thread)
        passage = gate.enter(request) if gate.active() else None
        if passage is not None and passage.response is not None:
            # Not the route's own answer: it says nothing of how that fares.
            return passage.response
        response: Any = self.get_response(request) if passage is None else self._through_gate(request, passage)
        if route_outcomes.watching():
            _guarded(route_outcomes.succeeded, request)
        if route_watch.watching():
            _guarded(route_watch.answered, request, response.status_code)
        if last_good.used():
            _guarded(last_good.keep, request, response)
        if response.streaming:
            _watch_stream(request, response)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        request.__dict__["_upright_began"] = time.monotonic()
        request.__dict__["_upright_async"] = True
        passage = await gate.aenter(request) if gate.active() else None
        if passage is not None and passage.response is not None:
            return passage.response
        response: Any = await (self.get_response(request) if passage is None else self._after_gate(request, passage))
        if route_outcomes.watching():
            _guarded(route_outcomes.succeeded, request)
        if route_watch.watching():
            _guarded(route_watch.answered, request, response.status_code)
        if last_good.used() and "_upright_waiting" not in request.__dict__:
            await last_good.akeep(request, response)
        waiting: tuple[Exception, Record] | None = request.__dict__.pop("_upright_waiting", None)
        if waiting is not None:
            response = await self._afinish(request, *waiting)
        if response.streaming:
            _watch_stream(request, response)
        return response

    def _through_gate(self, request: HttpRequest, passage: gate.Passage) -> Any:
        request.__dict__[gate.MARK] = passage
        try:
            response = self.get_response(request)
            _guarded(passage.ended, response)
            return response
        finally:
            _guarded(passage.left)

    async def _after_gate(self, request: HttpRequest, passage: gate.Passage) -> Any:
        request.__dict__[gate.MARK] = passage
        try:
            response = await self.get_response(request)
            _guarded(passage.ended, response)
            return response
        finally:
            _guarded(passage.left)

    async def _before_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        """`process_view` under ASGI, where the view's thread is known only now. A coroutine: Django would take anything
        else to a thread and back for each request."""
        if actuators.needs_requests():
            await sync_to_async(_guarded, thread_sensitive=True)(actuators.prepare_thread)

    def process_exception(self, request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
        opened = circuits.open_in(exc)
        if opened is not None:
            _guarded(gate.released, request)
            return gate.unavailable(opened) if not settings.DEBUG else None
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
        with handling.kept(record):
            own_page = handling.own_page(request)
            if own_page and not handling.serves_recovered(request):
                recording.finish(record, answer=None, delivered=False)
                return None
            if not own_page:
                handling.tell_others(request)
            if self.is_async:
                request.__dict__["_upright_waiting"] = exc, record
                # Replaced in __call__ once the recovery is known.
                return _placeholder(record)
            answer, delivered, replayed = handling.recover(request, record)
            response = handling.respond(request, exc, record, answer, replayed)
            if own_page and response is not None:
                # Where Django answers, it tells them.
                handling.tell_others(request)
            recording.finish(record, answer=answer, delivered=delivered)
            return response

    async def _afinish(self, request: HttpRequest, exc: Exception, record: Record) -> HttpResponseBase:
        try:
            async with handling.akept(record):
                answer, delivered, replayed = await handling.arecover(request, record)
                response = handling.respond(request, exc, record, answer, replayed)
                if response is None:
                    response = await _django_page(request, exc)
                elif handling.own_page(request):
                    await handling.atell_others(request, exc)
                await sync_to_async(recording.finish, thread_sensitive=True)(record, answer=answer, delivered=delivered)
                return response
        except Exception:
            logger.exception("Upright failed while it handled an error; it is answered as it is")
            return await _django_page(request, exc)


def _placeholder(record: Record) -> HttpResponse:
    response = HttpResponse(status=record.http_status)
    # Not yet: whatever takes its place is logged instead.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


async def _django_page(request: HttpRequest, exc: Exception) -> HttpResponseBase:
    """What Django would have answered, with its signal and its log."""

    def answer() -> HttpResponseBase:
        return handling.while_handled(exc, lambda: response_for_exception(request, exc))

    return await sync_to_async(answer, thread_sensitive=False)()


def _watch_stream(request: HttpRequest, response: StreamingHttpResponse) -> None:
    """Errors in the body of a streaming response reach neither the middleware nor the signal."""
    if getattr(response, "file_to_stream", None) is not None:
        # The server sends the file by itself, and faster; a generator in between would keep it from doing so.
        return
    content: Any = response.streaming_content
    response.streaming_content = _awatched(request, content) if response.is_async else _watched(request, content)


def _watched(request: HttpRequest, content: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from content
    except Exception as error:
        _guarded(_record, request, error)
        raise


async def _awatched(request: HttpRequest, content: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    try:
        async with aclosing(content):
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
    """Errors of other middleware reach only the signal, and those of outer ones come before any of ours."""
    exc = handling.handling_now()
    if exc is not None and request is not None:
        _guarded(_record, request, exc)


def _guarded(call: Callable[..., Any], *args: Any) -> None:
    """What fails in us is logged, and the request goes on as it would without us."""
    try:
        call(*args)
    except Exception:
        logger.exception("Upright failed; the request goes on")
