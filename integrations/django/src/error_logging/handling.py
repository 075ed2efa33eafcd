"""Handling a failed request: record it, wait where that is allowed, and answer.

The middleware and the decorator share this; each knows where it stands.
"""

from __future__ import annotations

import logging
import sys
import time
from asyncio import CancelledError
from typing import Any

from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.core.signals import got_request_exception
from django.http import Http404, HttpRequest, JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase

from error_logging import events, exchange, recording, replay, waiting
from error_logging.conf import current
from error_logging.record import Record

logger = logging.getLogger("error_logging")

LEFT_ALONE = (
    Http404, PermissionDenied, SuspiciousOperation, BadRequest, MultiPartParserError, SystemExit, KeyboardInterrupt,
    GeneratorExit, CancelledError,
)  # fmt: skip
"""Not errors of the application: Django answers these itself, or they end something."""
RECOVERED_HEADER = "X-Upright-Recovered"
ERROR_HEADER = "X-Upright-Error"


def is_error(exc: BaseException) -> bool:
    return not isinstance(exc, LEFT_ALONE)


def seen(request: HttpRequest, exc: BaseException) -> bool:
    """Whether this exception of this request was recorded already; from now on it counts as recorded."""
    known: list[int] = request.__dict__.setdefault("_upright_seen", [])
    if id(exc) in known:
        return True
    known.append(id(exc))
    return False


def began_at(request: HttpRequest) -> float:
    return request.__dict__.get("_upright_began", time.monotonic())


def capture(request: HttpRequest, exc: BaseException) -> Record:
    """Spool the error of a request."""
    began = began_at(request)
    service = getattr(request, "upright_service", None)
    event = events.build(exc, request=request, service=service, began=began)
    return recording.capture(event, began=began)


def prefers_html(request: HttpRequest) -> bool:
    """Whether Django's own page is the better answer. `*/*` and no preference get JSON."""
    return request.get_preferred_type(["application/json", "text/html"]) == "text/html"


def own_page(request: HttpRequest) -> bool:
    """Whether Django is to answer as it would without us."""
    return bool(settings.DEBUG) or prefers_html(request)


def tell_others(sender: Any, request: HttpRequest) -> None:
    """Answering suppresses Django's signal, which error trackers live on: send it on, but for the test client's
    receiver, which would raise the exception again. Called while the exception is being handled."""
    for receiver in got_request_exception._live_receivers(sender)[0]:
        if _is_test_client(receiver) or getattr(receiver, "__module__", "") == "error_logging.middleware":
            continue
        try:
            receiver(signal=got_request_exception, sender=sender, request=request)
        except Exception:
            logger.exception("A receiver of got_request_exception failed")


def recover(request: HttpRequest, record: Record) -> tuple[dict[str, Any], bool, HttpResponseBase | None]:
    """Wait for a recovery if there is a place to: the answer, whether the service has the error, and the response of
    the replay that passed."""
    with waiting.place() as place:
        if not place:
            return not_waited(record), False, None
        responses: list[HttpResponseBase | None] = []

        def again() -> dict[str, Any]:
            evidence, response = replay.request(request)
            responses.append(response if evidence["outcome"] == "passed" else None)
            return evidence

        waiting.give_back_connections()
        ended = exchange.run(record, replay=again if replay.allowed(request) else None, probe=None)
    return ended.answer, ended.delivered, responses[-1] if responses else None


async def arecover(request: HttpRequest, record: Record) -> tuple[dict[str, Any], bool, HttpResponseBase | None]:
    """The same from an event loop."""
    with waiting.place() as place:
        if not place:
            return not_waited(record), False, None
        responses: list[HttpResponseBase | None] = []

        async def again() -> dict[str, Any]:
            evidence, response = await replay.arequest(request)
            responses.append(response if evidence["outcome"] == "passed" else None)
            return evidence

        ended = await exchange.arun(record, replay=again if replay.allowed(request) else None, probe=None)
    return ended.answer, ended.delivered, responses[-1] if responses else None


def respond(
    request: HttpRequest, record: Record, answer: dict[str, Any], replayed: HttpResponseBase | None
) -> HttpResponseBase:
    """The guide's JSON; or the real response, where a replay recovered it and the view has opted in."""
    report = answer["recovery"]
    match = request.resolver_match
    serve = match is not None and getattr(match.func, "upright_serve_recovered", False)
    if replayed is not None and report.get("success") and serve:
        replayed.headers[RECOVERED_HEADER] = record.error_id
        return replayed
    error = record.event["error"]
    return JsonResponse(
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


def not_waited(record: Record) -> dict[str, Any]:
    message = "Recovery pending" if current().delivers else "Recovery not attempted: no service is configured"
    if not current().enabled:
        message = "Recovery not attempted: it is switched off"
    return {"error_id": record.error_id, "severity": record.severity, "recovery": recording.local_report(message)}


def _is_test_client(receiver: Any) -> bool:
    target = getattr(receiver, "func", receiver)
    return getattr(target, "__self__", None).__class__.__module__ == "django.test.client"


def handling_now() -> BaseException | None:
    return sys.exc_info()[1]
