"""Route watches: how the requests of a route end while a repair of it is verified. Without one, nothing is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.http import HttpRequest

from error_logging import classification, process

MOST = 20
LONGEST_S = 900.0


@dataclass
class _Watch:
    method: str
    route: str
    types: frozenset[str]
    """Qualified names of the exception that is watched for."""
    until: float
    began: float = field(default_factory=time.monotonic)
    counts: dict[str, int] = field(default_factory=lambda: {"succeeded": 0, "failed": 0, "failed_otherwise": 0})


_watches: dict[str, _Watch] = {}
_lock = threading.Lock()


def watching() -> bool:
    return bool(_watches)


def count(wanted: Mapping[str, Any], types: list[str]) -> dict[str, int]:
    """What was counted by now for a watch, which begins when it is first asked for. Raises ValueError."""
    name, now = str(wanted.get("watch") or ""), time.monotonic()
    with _lock:
        for old in [one for one, watch in _watches.items() if watch.until <= now]:
            del _watches[old]
        watch = _watches.get(name)
        if watch is None:
            if not name or len(_watches) >= MOST:
                raise ValueError("no more routes can be watched")
            keep_s = min(float(wanted.get("keep_s") or 0), LONGEST_S)
            watch = _Watch(
                str(wanted.get("method")), str(wanted.get("route")), frozenset(types), now + keep_s, began=now
            )
            _watches[name] = watch
        return dict(watch.counts)


def answered(request: HttpRequest, status: int) -> None:
    """Count a request that was answered. An error is counted where it is caught; a redirect or a client's own mistake
    shows nothing."""
    if status < 300 and "_upright_mark" not in request.__dict__:
        _add(request, "succeeded", None)


def failed(request: HttpRequest, exc: BaseException) -> None:
    _add(request, "failed", exc)


def forget() -> None:
    global _lock
    _lock = threading.Lock()
    _watches.clear()


def _add(request: HttpRequest, what: str, exc: BaseException | None) -> None:
    match = request.resolver_match
    if match is None:
        return
    began, now = request.__dict__.get("_upright_began", 0.0), time.monotonic()
    with _lock:
        for watch in _watches.values():
            # What began before it says nothing about what has changed since.
            if watch.route != match.route or watch.method != request.method or not watch.began <= began or (
                watch.until <= now
            ):  # fmt: skip
                continue
            same = exc is None or bool(watch.types & set(classification.classes_of(exc)[0][:1]))
            watch.counts[what if same else "failed_otherwise"] += 1


process.after_fork(forget)
