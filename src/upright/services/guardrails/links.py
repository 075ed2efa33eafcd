"""Signed links to an approval: whoever has one may decide it, once, until it expires."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from uuid import UUID

from upright.errors import NotFound
from upright.services.guardrails.ports import Approval

_CONTEXT = b"upright approval "


def address(public_url: str, secret: str, question: Approval) -> str:
    return f"{public_url.rstrip('/')}/approve/{token(secret, question.id, question.expires_at.timestamp())}"


def token(secret: str, approval_id: UUID, expires_at: float) -> str:
    said = f"{approval_id.hex}.{int(expires_at)}"
    return f"{said}.{_signature(secret, said)}"


def opened(secret: str, given: str) -> UUID:
    """The approval that a link is for. Raises NotFound, whatever is wrong with it: the reason would help a forger."""
    said, _, signature = given.rpartition(".")
    if not said or not hmac.compare_digest(signature.encode(), _signature(secret, said).encode()):
        raise NotFound("This link is not valid.")
    approval_id, _, expires_at = said.partition(".")
    if int(expires_at) < time.time():
        raise NotFound("This link has expired.")
    return UUID(hex=approval_id)


def _signature(secret: str, said: str) -> str:
    digest = hmac.digest(secret.encode(), _CONTEXT + said.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
