"""Throttles: how many requests a minute this process lets through while a request_throttle directive is in force.

`limits` counts, in a moving window: in a shared storage where UPRIGHT_RATE_LIMIT_STORAGE names one, else in this
process, which then has its share of the rate. A storage that fails is left alone for a while, and the counting goes on
here.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import zlib
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest

from error_logging import client_address, process
from error_logging.conf import current

logger = logging.getLogger("error_logging")

SERVICE, CLIENT = "service", "client"
STORAGE_TIMEOUT_S = 0.1
STORAGE_PAUSE_S = 5.0
MOST_CLIENTS = 2_000
SHARED_BUCKETS = 256


@dataclass(frozen=True)
class Limited:
    """A request that is one too many."""

    target: str
    limit: int
    retry_after_s: int


@dataclass(frozen=True)
class Throttle:
    target: str
    requests_per_minute: int
    burst_size: int
    processes: int

    @property
    def share(self) -> tuple[int, int]:
        """Requests a minute and a second of this process alone."""
        minute = max(1, math.ceil(self.requests_per_minute / self.processes))
        return minute, max(1, math.ceil(self.burst_size / self.processes))


_throttles: dict[str, Throttle] = {}
_clients: dict[str, None] = {}


def active() -> bool:
    return bool(_throttles)


def get(target: str) -> Throttle | None:
    return _throttles.get(target)


def put(throttle: Throttle) -> Throttle | None:
    """The one that it replaces. Counting starts anew."""
    replaced = _throttles.get(throttle.target)
    _throttles[throttle.target] = throttle
    _clients.clear()
    _counting.reset()
    return replaced


def remove(target: str) -> Throttle | None:
    return _throttles.pop(target, None)


def shared() -> bool:
    """Whether counting means a round trip."""
    return current().rate_limit_storage is not None and not _counting.paused()


def count(request: HttpRequest, route: str | None) -> Limited | None:
    """Count a request; what it exceeds, or None."""
    for throttle in list(_throttles.values()):
        if throttle.target == SERVICE:
            key = ""
        elif throttle.target == CLIENT:
            key = _bucket(client_address.of(request))
        elif route is not None and throttle.target == f"route:{route}":
            key = ""
        else:
            continue
        limited = _counting.hit(throttle, key)
        if limited is not None:
            return limited
    return None


def exempt_path(request: HttpRequest) -> bool:
    return request.path_info in current().health_paths


def _bucket(address: str) -> str:
    """The first addresses are counted one by one; after that, they share, so that a flood of addresses can't fill the
    memory."""
    if address in _clients:
        return address
    if len(_clients) < MOST_CLIENTS:
        _clients[address] = None
        return address
    return f"#{zlib.crc32(address.encode()) % SHARED_BUCKETS}"


class _Counting:
    """With `limits`, which is imported only where there is something to count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._local: Any = None
        self._shared: tuple[str, Any] | None = None
        self._paused_until = 0.0

    def reset(self) -> None:
        with self._lock:
            self._local = None

    def paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def hit(self, throttle: Throttle, key: str) -> Limited | None:
        address = current().rate_limit_storage
        if address is not None and not self.paused():
            try:
                return _hit(self._in_storage(address), throttle, key, throttle.requests_per_minute, throttle.burst_size)
            except Exception as error:
                # One thread finds out, the others count here meanwhile.
                self._paused_until = time.monotonic() + STORAGE_PAUSE_S
                logger.warning("Requests are counted in this process: the storage of rate limits fails (%s)", error)
        return _hit(self._here(), throttle, key, *throttle.share)

    def _here(self) -> Any:
        with self._lock:
            if self._local is None:
                from limits.storage import MemoryStorage
                from limits.strategies import MovingWindowRateLimiter

                self._local = MovingWindowRateLimiter(MemoryStorage())
            return self._local

    def _in_storage(self, address: str) -> Any:
        with self._lock:
            if self._shared is None or self._shared[0] != address:
                from limits.storage import storage_from_string
                from limits.strategies import MovingWindowRateLimiter
                from redis.backoff import NoBackoff
                from redis.retry import Retry

                storage: Any = storage_from_string(
                    address,
                    socket_timeout=STORAGE_TIMEOUT_S,
                    socket_connect_timeout=STORAGE_TIMEOUT_S,
                    retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]
                )
                self._shared = address, MovingWindowRateLimiter(storage)
            return self._shared[1]


_counting = _Counting()


def _hit(limiter: Any, throttle: Throttle, key: str, per_minute: int, burst: int) -> Limited | None:
    from limits import RateLimitItemPerMinute, RateLimitItemPerSecond

    # The narrow window first: what the wide one then refuses has cost a second's place only.
    for item in (RateLimitItemPerSecond(burst), RateLimitItemPerMinute(per_minute)):
        names = ("upright", current().service, throttle.target, key)
        if not limiter.hit(item, *names):
            reset_at = limiter.get_window_stats(item, *names).reset_time
            return Limited(throttle.target, item.amount, max(1, math.ceil(reset_at - time.time())))
    return None


def _after_fork() -> None:
    global _counting
    _counting = _Counting()


process.after_fork(_after_fork)
