"""Signed requests to the service, and its answers, verified."""

from __future__ import annotations

import json
import logging
import time
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import urllib3
from urllib3.exceptions import HTTPError

from error_logging import counters, process, signatures
from error_logging.breaker import Breaker
from error_logging.conf import Conf, current

logger = logging.getLogger("error_logging")

CONNECT_TIMEOUT_S = 1.0
MAX_ANSWER_BYTES = 1 << 20
_RETRYABLE_STATUS = frozenset((408, 425, 429))
_BEFORE_IT_KNOWS_US = frozenset((401, 413))
"""Answers that the service can't sign: the signature doesn't hold, or the body is too large to look at."""


class ClientError(Exception):
    """The exchange with the service did not succeed."""


class Unreachable(ClientError):
    """No answer that can be trusted; the message may be sent again."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(ClientError):
    """The service will not take this message; sending it again is of no use."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class NotAdmitted(Refused):
    """The service does not take anything from this sender (401, 403): secrets or tenants differ. People mend that, and
    then the message is welcome."""


class Gone(Refused):
    """The service wants no more from this sender (410)."""


_breaker = Breaker()
_pool: urllib3.PoolManager | None = None
_gone: str | None = None
_inherited: list[object] = []


def available() -> bool:
    """Whether a request may wait for the service: it is set, wants our messages, and did not fail last time."""
    return current().delivers and not gone() and _breaker.closed


def gone() -> bool:
    """Whether the service has answered 410; until a restart, or another address."""
    return _gone is not None and _gone == current().url


def probe_due() -> bool:
    """Whether nobody knows if a service that failed is back."""
    return current().delivers and not gone() and not _breaker.closed


def probe(timeout_s: float = 2.0) -> bool:
    """Ask a service that failed whether it is back, with nothing to send. Only background threads do."""
    conf = current()
    try:
        response = _manager().request(
            "GET", f"{conf.url}/healthz", retries=False, redirect=False, timeout=_timeout(timeout_s)
        )
    except HTTPError:
        return False
    if response.status == HTTPStatus.OK:
        _breaker.succeeded()
        return True
    return False


def post(
    path: str, body: dict[str, Any], *, delivery_id: str | None = None, wait_ms: int = 0, timeout_s: float
) -> dict[str, Any]:
    """POST `body` to `path` and return the answer's JSON.

    `delivery_id` is the webhook-id, the same for every attempt of one delivery. `wait_ms` asks the service to hold its
    answer for so long; `timeout_s` ends the whole exchange. Raises Unreachable or Refused (Gone).
    """
    global _gone
    conf = current()
    if not conf.delivers:
        raise Unreachable("UPRIGHT_URL and UPRIGHT_SECRET are not set, or UPRIGHT_ENABLED is False")
    message_id = delivery_id or str(uuid4())
    raw = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    try:
        status, headers, answer = _exchange(conf, path, raw, message_id, wait_ms, timeout_s)
        parsed = _parsed(conf, status, headers, answer, message_id)
    except Unreachable:
        _breaker.failed()
        counters.add("service_unreachable")
        raise
    except Gone:
        _gone = conf.url
        logger.error("The service at %s wants no more messages (410): nothing is sent to it any more", conf.url)  # noqa: TRY400
        raise
    except Refused:
        # It answers: only this message is not to its taste.
        _breaker.succeeded()
        raise
    _breaker.succeeded()
    return parsed


def _exchange(
    conf: Conf, path: str, raw: bytes, message_id: str, wait_ms: int, timeout_s: float
) -> tuple[int, dict[str, str], bytes]:
    deadline = time.monotonic() + timeout_s
    headers = {
        **signatures.headers(conf.secrets[0], message_id, raw),
        "content-type": "application/json",
        "upright-tenant": conf.tenant,
        "user-agent": "django-upright",
    }
    target = f"{conf.url}{path}" + (f"?wait_ms={int(wait_ms)}" if wait_ms else "")
    try:
        response = _manager().request(
            "POST",
            target,
            body=raw,
            headers=headers,
            retries=False,
            redirect=False,
            preload_content=False,
            timeout=_timeout(timeout_s),
        )
        try:
            received = _received(response, deadline)
        except BaseException:
            response.close()
            raise
        response.release_conn()
    except HTTPError as error:
        # The text of urllib3's errors names host and port; the address holds no credentials (a check sees to it).
        raise Unreachable(f"{type(error).__name__}: {error}"[:300]) from error
    return response.status, {name.lower(): text for name, text in response.headers.items()}, received


def _received(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """The body, as far as it comes by the deadline. urllib3's own time limit is for each read, so that a body which
    trickles would never run into it."""
    received = bytearray()
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise Unreachable("the answer did not end in time")
        # None once the body has ended: another thread may use the connection by then.
        connection: Any = response.connection
        if connection is not None and connection.sock is not None:
            connection.sock.settimeout(left_s)
        piece = response.read1(64 * 1024, decode_content=True)
        if not piece:
            return bytes(received)
        received += piece
        if len(received) > MAX_ANSWER_BYTES:
            raise Unreachable("the answer is longer than 1 MiB")


def _parsed(conf: Conf, status: int, headers: dict[str, str], raw: bytes, message_id: str) -> dict[str, Any]:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _RETRYABLE_STATUS:
        raise Unreachable(f"the service answered {status}", retry_after_s=_retry_after(headers.get("retry-after")))
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        raise Unreachable(
            f"redirected ({status}); redirects are not followed, so UPRIGHT_URL must be the final address"
        )
    doubt = _doubt(conf, headers, raw, message_id)
    if doubt is not None and status not in _BEFORE_IT_KNOWS_US:
        # A proxy's 404 says nothing of the service: the message is kept, and sent again.
        raise Unreachable(f"an answer ({status}) that can't be trusted: {doubt}")
    if status == HTTPStatus.GONE:
        raise Gone(status, _reason(raw))
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise NotAdmitted(status, _reason(raw))
    if status >= HTTPStatus.BAD_REQUEST:
        raise Refused(status, _reason(raw))
    try:
        parsed = json.loads(raw)
    except ValueError as error:
        raise Unreachable("the answer is no JSON") from error
    if not isinstance(parsed, dict):
        raise Unreachable("the answer is no JSON object")
    return parsed


def _doubt(conf: Conf, headers: dict[str, str], raw: bytes, message_id: str) -> str | None:
    """None, or why the answer isn't proven to be the service's answer to this message."""
    try:
        answered = signatures.verify(conf.secrets, headers, raw)
    except signatures.SignatureInvalid as invalid:
        return str(invalid)
    return None if answered == message_id else "it is signed as the answer to another message"


def _reason(raw: bytes) -> str:
    try:
        error = json.loads(raw)["error"]
        return f"{error.get('field') or ''} {error['message']}".strip()[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        return raw[:200].decode("utf-8", "replace")


def _retry_after(given: str | None) -> float | None:
    """Seconds; a date is no use without an agreed clock, so only numbers count."""
    if given is None or not given.strip().isascii() or not given.strip().isdigit():
        return None
    return float(min(int(given.strip()[:9]), 3600))


def _timeout(timeout_s: float) -> urllib3.Timeout:
    return urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), total=timeout_s)


def _manager() -> urllib3.PoolManager:
    global _pool
    if _pool is None:
        _pool = urllib3.PoolManager(num_pools=2, maxsize=current().max_waiters + 4, block=False)
    return _pool


def reset() -> None:
    """Forget connections, and what is known about the service. For tests, and after a fork."""
    global _pool, _gone
    if _pool is not None:
        # Not closed: a parent's sockets are shared with it, and closing TLS would say so to the peer.
        _inherited.append(_pool)
    _pool, _gone = None, None
    _breaker.succeeded()


process.after_fork(reset)
