"""The endpoints: a summary of the errors, recovery of a past one, and an error on purpose."""

from __future__ import annotations

import json
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.db.models import Count, Q
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from error_logging.access import Denied, admit
from error_logging.conf import NAME, current
from error_logging.models import ErrorLog

MAX_HOURS = 8760
_MOST_TYPES = 10
_MAX_BODY = 64 * 1024


class DeliberateError(Exception):
    """Raised by `test-error/`, on purpose, to see a recovery at work."""


@never_cache
@require_GET
def summary(request: HttpRequest) -> JsonResponse:
    """Errors of the last `hours` (default 24), of one `service` or of all."""
    try:
        admit(request, "error_logging.view_errorlog")
        hours = _hours(request.GET.get("hours", "24"))
        service = _service(request.GET.get("service"))
    except Denied as denied:
        return _error(HTTPStatus.FORBIDDEN, str(denied))
    except ValueError as wrong:
        return _error(HTTPStatus.BAD_REQUEST, str(wrong))
    rows = ErrorLog.objects.filter(timestamp__gte=timezone.now() - timedelta(hours=hours))
    if service is not None:
        rows = rows.filter(service=service)
    counts = rows.aggregate(
        total_errors=Count("id"),
        critical_errors=Count("id", filter=Q(severity="critical")),
        high_errors=Count("id", filter=Q(severity="high")),
        unresolved_errors=Count("id", filter=Q(resolved=False)),
    )
    types = rows.order_by().values("error_type").annotate(count=Count("id")).order_by("-count", "error_type")
    return JsonResponse({**counts, "error_types": list(types[:_MOST_TYPES])})


@csrf_exempt  # `admit` demands the token itself, of callers that come with a session.
@require_POST
def trigger(request: HttpRequest) -> JsonResponse:
    """Recover a past error, named by `error_id` in a JSON body."""
    try:
        admit(request, "error_logging.change_errorlog")
        error_id = _error_id(request)
    except Denied as denied:
        return _error(HTTPStatus.FORBIDDEN, str(denied))
    except ValueError as wrong:
        return _error(HTTPStatus.BAD_REQUEST, str(wrong))
    if not ErrorLog.objects.filter(error_id=error_id).exists():
        return _error(HTTPStatus.NOT_FOUND, f"there is no error {error_id}")

    from error_logging.manual import trigger_manual_recovery

    return JsonResponse(trigger_manual_recovery(str(error_id)))


@csrf_exempt  # The guide calls it with curl; it changes nothing, and exists only where a setting says so.
@require_http_methods(["GET", "HEAD", "POST"])
def test_error(request: HttpRequest) -> HttpResponse:
    """Fail with a real exception. `X-Service` names the service that it is logged under."""
    if not current().test_error:
        raise Http404
    service = request.headers.get("X-Service")
    if service is not None:
        if not NAME.fullmatch(service):
            return _error(
                HTTPStatus.BAD_REQUEST, "X-Service must be 1 to 100 letters, digits, dots, dashes, underscores"
            )
        request.upright_service = service  # type: ignore[attr-defined]
    raise DeliberateError("This error was asked for, to test recovery")


def _hours(given: str) -> int:
    hours = int(given) if given.isascii() and given.isdigit() and len(given) <= 5 else 0
    if not 1 <= hours <= MAX_HOURS:
        raise ValueError(f"hours must be a whole number from 1 to {MAX_HOURS}")
    return hours


def _service(given: str | None) -> str | None:
    if not given:
        return None
    if len(given) > 200 or "\x00" in given:
        raise ValueError("service must be the name of a service, at most 200 characters")
    return given


def _error_id(request: HttpRequest) -> UUID:
    try:
        body: Any = json.loads(request.body[: _MAX_BODY + 1])
    except (ValueError, RecursionError):
        raise ValueError('the body must be JSON: {"error_id": "…"}') from None
    given = body.get("error_id") if isinstance(body, dict) else None
    if not isinstance(given, str):
        raise ValueError('the body must be {"error_id": "…"}')  # noqa: TRY004 - the caller's mistake, not a type of ours
    try:
        return UUID(given)
    except ValueError:
        raise ValueError("error_id must be a UUID") from None


def _error(status: HTTPStatus, message: str) -> JsonResponse:
    return JsonResponse({"error": {"code": status.phrase.lower().replace(" ", "_"), "message": message}}, status=status)
