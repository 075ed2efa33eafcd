"""Handling a failed request: record it, wait where that is allowed, and answer.

The middleware and the decorator share this; each knows where it stands.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, RequestAborted, SuspiciousOperation
from django.core.signals import got_request_exception
from django.http import Http404, HttpRequest, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase
from django.utils.log import log_response

from error_logging import circuits, events, exchange, gate, recording, replay, route_outcomes, route_watch, waiting
from error_logging.record import Record

logger = logging.getLogger("error_logging")

Result = TypeVar("Result")

LEFT_ALONE = (
    Http404, PermissionDenied, SuspiciousOperation, BadRequest, MultiPartParserError, RequestAborted,
    UnreadablePostError, SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError,
)  # fmt: skip
"""Not errors of the application: Django answers these itself, the client went away, or they end something."""
RECOVERED_HEADER = "X-Upright-Recovered"
ERROR_HEADER = "X-Upright-Error"


def is_error(exc: BaseException) -> bool:
    return not isinstance(exc, LEFT_ALONE) and circuits.open_in(exc) is None


def seen(request: HttpRequest, exc: BaseException) -> bool:
    """Whether this exception of this request was recorded already; from now on it counts as recorded."""
    # The mark is on the exception: its id() may be another exception's as soon as it is gone. And it names the request,
    # since there are exceptions that are made once and raised again and again.
    mark = request.__dict__.setdefault("_upright_mark", object())
    if exc.__dict__.get("_upright_mark") is mark:
        return True
    exc.__dict__["_upright_mark"] = mark
    return False


def began_at(request: HttpRequest) -> float:
    return request.__dict__.get("_upright_began", time.monotonic())


def capture(request: HttpRequest, exc: BaseException) -> Record:
    """Spool the error of a request."""
    gate.failed(request)
    began = began_at(request)
    service = getattr(request, "upright_service", None)
    event = events.build(exc, request=request, service=service, began=began)
    event["measurements"] = {**event["measurements"], "route": route_outcomes.failed(request)}
    if route_watch.watching():
        route_watch.failed(request, exc)
    return recording.capture(event, began=began)


def prefers_html(request: HttpRequest) -> bool:
    """Whether Django's own page is the better answer. `*/*` and no preference get JSON."""
    return request.get_preferred_type(["application/json", "text/html"]) == "text/html"


def own_page(request: HttpRequest) -> bool:
    """Whether Django is to answer as it would without us."""
    return bool(settings.DEBUG or settings.DEBUG_PROPAGATE_EXCEPTIONS) or prefers_html(request)


def serves_recovered(request: HttpRequest) -> bool:
    """Whether the user gets the real response, if a replay brings one: worth waiting for, also for a browser."""
    match = request.resolver_match
    wanted = match is not None and bool(getattr(match.func, "upright_serve_recovered", False))
    # What is not safe has been done then, and who is told otherwise does it once more.
    wanted = wanted or request.method not in replay.SAFE_METHODS
    return wanted and not (settings.DEBUG or settings.DEBUG_PROPAGATE_EXCEPTIONS) and replay.allowed(request)


def tell_others(request: HttpRequest) -> None:
    """Answering suppresses Django's signal, which error trackers live on: send it on, but for the test client's
    receiver, which would raise the exception again. Called while the exception is being handled."""
    receivers, asynchronous = got_request_exception._live_receivers(None)
    for receiver in [*receivers, *(async_to_sync(one) for one in asynchronous)]:
        if _is_test_client(receiver) or getattr(receiver, "__module__", "") == "error_logging.middleware":
            continue
        try:
            receiver(signal=got_request_exception, sender=None, request=request)
        except Exception:
            logger.exception("A receiver of got_request_exception failed")


async def atell_others(request: HttpRequest, exc: BaseException) -> None:
    """The same from an event loop: receivers may block."""
    await sync_to_async(while_handled, thread_sensitive=True)(exc, lambda: tell_others(request))


def while_handled(exc: BaseException, call: Callable[[], Result]) -> Result:
    """Call with the exception as the one that is being handled, as receivers and Django's own page expect."""
    traceback = exc.__traceback__
    try:
        raise exc
    except BaseException:
        exc.__traceback__ = traceback
        return call()
    finally:
        exc.__traceback__ = traceback


@contextlib.contextmanager
def kept(record: Record) -> Iterator[None]:
    """Whatever ends the handling of an error early (a client that went away, a worker that is told to stop, a fault of
    our own), its record goes to the drainer."""
    try:
        yield
    except BaseException:
        recording.finish_later(record)
        raise


@contextlib.asynccontextmanager
async def akept(record: Record) -> AsyncIterator[None]:
    """The same in an event loop."""
    try:
        yield
    except Exception:
        await sync_to_async(recording.finish_later, thread_sensitive=True)(record)
        raise
    except BaseException:
        # Cancelled: there is nothing to await any more. This does not wait.
        recording.finish_later(record)
        raise


def recover(request: HttpRequest, record: Record) -> tuple[dict[str, Any], bool, HttpResponseBase | None]:
    """Wait for a recovery if there is a place to: the answer, whether the service has the error, and the response of
    the replay that passed."""
    with waiting.place() as place:
        if not place:
            return not_waited(record), False, None
        last = _LastReplay()

        def again() -> dict[str, Any]:
            return last.is_now(*replay.request(request))

        waiting.give_back_connections()
        ended = exchange.run(record, replay=again if replay.allowed(request) else None, probe=None)
    return ended.answer, ended.delivered, last.response


async def arecover(request: HttpRequest, record: Record) -> tuple[dict[str, Any], bool, HttpResponseBase | None]:
    """The same from an event loop."""
    with waiting.place() as place:
        if not place:
            return not_waited(record), False, None
        last = _LastReplay()
        # They belong to the thread of the request's synchronous code.
        await sync_to_async(waiting.give_back_connections, thread_sensitive=True)()

        async def again() -> dict[str, Any]:
            return last.is_now(*await replay.arequest(request))

        ended = await exchange.arun(record, replay=again if replay.allowed(request) else None, probe=None)
    return ended.answer, ended.delivered, last.response


class _LastReplay:
    """What the last replay of a request answered, if it passed; of the others nothing is left open."""

    def __init__(self) -> None:
        self.response: HttpResponseBase | None = None

    def is_now(self, evidence: dict[str, Any], response: HttpResponseBase | None) -> dict[str, Any]:
        for unwanted in (self.response, response if evidence["outcome"] != "passed" else None):
            if unwanted is not None:
                replay.discard(unwanted)
        self.response = response if evidence["outcome"] == "passed" else None
        return evidence


def respond(
    request: HttpRequest,
    exc: BaseException,
    record: Record,
    answer: dict[str, Any],
    replayed: HttpResponseBase | None,
) -> HttpResponseBase | None:
    """The guide's JSON; or the real response, where a replay recovered it and the view has opted in. None where Django
    is to answer."""
    report = answer["recovery"]
    known = bool(report.get("success")) or request.method not in replay.SAFE_METHODS
    if replayed is not None and known and serves_recovered(request):
        logger.warning("%s recovered: %s", request.path, record.error_id, exc_info=exc, extra={"request": request})
        replay.keep_session(request)
        replayed.headers[RECOVERED_HEADER] = record.error_id
        return replayed
    if replayed is not None:
        replay.discard(replayed)
    if own_page(request):
        return None
    error = record.event["error"]
    response = JsonResponse(
        {
            "error": {
                "type": error["type"],
                "message": error["message"],
                "error_id": record.error_id,
                "severity": answer.get("severity") or record.severity,
            },
            "recovery": report,
        },
        status=record.http_status,
        headers={ERROR_HEADER: record.error_id, "Cache-Control": "no-store"},
    )
    # Django logs an answer without its exception, and a 400 as a warning; this is the line that it logs without us.
    log_response(
        "%s: %s",
        "Internal Server Error",
        request.path,
        response=response,
        request=request,
        exception=exc,
        level="error",
    )
    return response


def not_waited(record: Record) -> dict[str, Any]:
    return {"error_id": record.error_id, "severity": record.severity, "recovery": recording.unreported()}


def _is_test_client(receiver: Any) -> bool:
    # The method's own module: clients are subclassed, by REST framework among others.
    return getattr(getattr(receiver, "func", receiver), "__module__", "") == "django.test.client"


def handling_now() -> BaseException | None:
    return sys.exc_info()[1]
