"""Who may call the endpoints."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from error_logging import signatures
from error_logging.conf import current


class Denied(Exception):
    """The caller may not; says what is needed."""


def admit(request: HttpRequest, permission: str) -> None:
    """Let a signed request through, or a user who is staff or has `permission`. Raises Denied.

    Whoever comes with a session and changes something needs the CSRF token as well; a signature can't be forged from
    another site.
    """
    if request.headers.get(signatures.SIGNATURE):
        _check_signature(request)
        return
    user: Any = getattr(request, "user", None)
    if user is None or not user.is_authenticated or not user.is_active:
        raise Denied("log in as staff, or sign the request with UPRIGHT_SECRET")
    if not (user.is_staff or user.has_perm(permission)):
        raise Denied(f"staff only, or users with the permission {permission}")
    reason = _Csrf(lambda _: HttpResponse()).reason_to_reject(request)
    if reason:
        raise Denied(f"CSRF: {reason}")


def _check_signature(request: HttpRequest) -> None:
    received = {name.lower(): given for name, given in request.headers.items()}
    try:
        signatures.verify(current().secrets, received, request.body)
    except signatures.SignatureInvalid as invalid:
        raise Denied(f"signature: {invalid}") from None
    except RequestDataTooBig:
        raise Denied("signature: the body is too large") from None


class _Csrf(CsrfViewMiddleware):
    """Django's own check, whose verdict is a reason instead of a page."""

    def reason_to_reject(self, request: HttpRequest) -> str | None:
        self.process_request(request)
        return self.process_view(request, _demanding, (), {})  # type: ignore[return-value]

    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def _demanding(request: HttpRequest) -> HttpResponse:
    """A view that is not exempt."""
    return HttpResponse()
