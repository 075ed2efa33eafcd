"""Alternative services: where GET and HEAD requests of a failing route go under a `full` fallback.

Their addresses are in UPRIGHT_FALLBACK_SERVICES only. Nothing that identifies a user goes there unless
UPRIGHT_FALLBACK_FORWARD names it, and no cookie comes back.
"""

from __future__ import annotations

import logging
import time
from urllib.parse import urlsplit

import urllib3
from django.http import HttpRequest, HttpResponse
from urllib3.exceptions import HTTPError

from error_logging import process
from error_logging.conf import current

logger = logging.getLogger("error_logging")

HOP = "X-Upright-Hop"
MOST_BYTES = 5 << 20
CONNECT_TIMEOUT_S = 1.0
PAUSE_S = 5.0
"""An alternative that failed is left alone for this long: nobody waits for it meanwhile."""
_FORWARDED = ("Accept", "Accept-Language", "User-Agent", "If-None-Match", "If-Modified-Since")
_HOP_BY_HOP = frozenset(
    (
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "trailers", "transfer-encoding", "upgrade",
    )
)  # fmt: skip
_DROPPED = _HOP_BY_HOP | {
    "content-length", "date", "server", "set-cookie", "set-cookie2", "alt-svc", "strict-transport-security",
    "www-authenticate", "clear-site-data",
}  # fmt: skip

_pool: urllib3.PoolManager | None = None
_paused_until: dict[str, float] = {}


def looping(request: HttpRequest) -> bool:
    """Whether another application's fallback sent it here."""
    return HOP in request.headers


def ask(name: str, request: HttpRequest) -> HttpResponse | None:
    """The alternative's answer; None where it has no good one."""
    conf = current()
    base = conf.fallback_services.get(name)
    if base is None or looping(request) or time.monotonic() < _paused_until.get(name, 0.0):
        return None
    try:
        return _asked(base, request)
    except (HTTPError, _Unusable) as error:
        _paused_until[name] = time.monotonic() + PAUSE_S
        logger.warning("The fallback service %s can't answer: %s", name, f"{type(error).__name__}: {error}"[:300])
        return None


def reset() -> None:
    """Forget connections and failures. For tests, and after a fork."""
    global _pool
    _pool = None
    _paused_until.clear()


class _Unusable(Exception):
    """An answer that is no better than the failure."""


def _asked(base: str, request: HttpRequest) -> HttpResponse:
    timeout_s = current().fallback_timeout_ms / 1000
    deadline = time.monotonic() + timeout_s
    response = _manager().request(
        request.method or "GET",
        base + request.get_full_path(),
        headers=_outgoing(request),
        retries=False,
        redirect=False,
        preload_content=False,
        decode_content=False,
        timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), total=timeout_s),
    )
    try:
        if response.status >= 500:
            raise _Unusable(f"it answered {response.status}")
        received = bytearray()
        for piece in response.stream(64 * 1024, decode_content=False):
            received += piece
            if len(received) > MOST_BYTES:
                raise _Unusable(f"its answer is longer than {MOST_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise _Unusable("its answer did not end in time")
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return _incoming(base, request, response, bytes(received))


def _outgoing(request: HttpRequest) -> dict[str, str]:
    names = (*_FORWARDED, *(name for name in current().fallback_forward if name.lower() not in _HOP_BY_HOP))
    sent = {name: request.headers[name] for name in names if name in request.headers}
    return {
        **sent,
        "Accept-Encoding": "identity",
        "X-Forwarded-Host": request.get_host(),
        "X-Forwarded-Proto": request.scheme or "http",
        HOP: "1",
    }


def _incoming(base: str, request: HttpRequest, response: urllib3.BaseHTTPResponse, content: bytes) -> HttpResponse:
    named = {one.strip().lower() for one in response.headers.get("Connection", "").split(",")}
    made = HttpResponse(content, status=response.status, reason=response.reason)
    del made.headers["Content-Type"]
    for name, text in response.headers.items():
        lower = name.lower()
        if lower in _DROPPED or lower in named or lower.startswith("x-upright-"):
            continue
        made.headers[name] = _own_location(base, text) if lower == "location" else text
    if request.method == "HEAD" and "Content-Length" in response.headers:
        made.headers["Content-Length"] = response.headers["Content-Length"]
    return made


def _own_location(base: str, location: str) -> str:
    """A redirect within the alternative stays within us; one that leads elsewhere is the client's to follow."""
    ours, theirs = urlsplit(base), urlsplit(location)
    if (theirs.scheme, theirs.netloc) == (ours.scheme, ours.netloc):
        return location.removeprefix(base) or "/"
    return location


def _manager() -> urllib3.PoolManager:
    global _pool
    if _pool is None:
        _pool = urllib3.PoolManager(num_pools=8, maxsize=8, block=False)
    return _pool


process.after_fork(reset)
