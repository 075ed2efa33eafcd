"""The event that tells the service of one error: what docs/protocol.md calls `Event`, as a plain dict.

No body, cookies, headers or local variables; what remains is scrubbed, and small.
"""

from __future__ import annotations

import json
import logging
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from django.conf import settings
from django.http import HttpRequest

from error_logging import classification, counters, process, replay, scrubbing
from error_logging.conf import NAME, current

if TYPE_CHECKING:
    from error_logging.models import ErrorLog

logger = logging.getLogger("error_logging")

MAX_BYTES = 20_000
MAX_MESSAGE = 4_000
RECOVERY_KEYS = ("recovery_attempted", "recovery_success", "recovery_strategy", "recovery")
"""What ErrorLog.context says about the recovery; the rest is the application's own."""
_FIRST_FRAMES, _LAST_FRAMES = 10, 40
_OWN = str(Path(__file__).resolve().parent)
_LIBRARIES = tuple(
    {entry for name in ("stdlib", "platstdlib", "purelib", "platlib") if (entry := sysconfig.get_path(name))}
)

Event = dict[str, Any]
Result = TypeVar("Result")


def build(
    exc: BaseException,
    *,
    request: HttpRequest | None = None,
    origin: str = "request",
    service: str | None = None,
    context: Mapping[str, object] | None = None,
    began: float | None = None,
) -> Event:
    """The event of an exception that was caught; never raises.

    `origin` is request, block, manual, task or log. `began` is `time.monotonic()` at the start of the failed operation;
    the age that the event states is set again when it is sent.
    """
    conf = current()
    now = time.monotonic()
    classes = _guarded(lambda: classification.classes_of(exc), cast("list[list[str]]", []))
    named = service or getattr(request, "upright_service", None) or conf.service
    event: Event = {
        "schema_version": 1,
        "error_id": str(uuid4()),
        "service": named if isinstance(named, str) and NAME.fullmatch(named) else conf.service,
        "environment": conf.environment,
        "instance": process.instance(),
        "occurred_at": datetime.now(UTC).isoformat(),
        "age_ms": max(0, int((now - began) * 1000)) if began is not None else 0,
        "desired_version": _guarded(_desired_version, 0),
        "origin": origin,
        "error": {
            "type": type(exc).__name__[:200],
            "message": _guarded(lambda: scrubbing.text(str(exc), most=MAX_MESSAGE), ""),
            "classes": classes,
            "severity": classification.classify(classes or [[type(exc).__name__]], conf.environment).severity,
            "frames": _guarded(lambda: frames_of(exc.__traceback__), cast("list[dict[str, Any]]", [])),
        },
        "context": _guarded(lambda: scrubbing.value(dict(context or {})), {}),
        "measurements": _guarded(lambda: scrubbing.value(_measurements(exc)), {}),
    }
    if request is not None:
        event["request"] = _guarded(lambda: describe(request), None)
    return fit(event)


def from_row(row: ErrorLog) -> Event:
    """The event of an ErrorLog row, also of one that someone created by hand."""
    conf = current()
    details = cast("dict[str, Any]", row.details or {})
    known = {key: entry for key, entry in row.told.items() if key not in RECOVERY_KEYS}
    event: Event = {
        "schema_version": 1,
        "error_id": str(row.error_id),
        "service": row.service if NAME.fullmatch(row.service) else conf.service,
        "environment": row.environment or conf.environment,
        "instance": process.instance(),
        "occurred_at": _aware(row.timestamp).isoformat(),
        "age_ms": max(0, int((datetime.now(UTC) - _aware(row.timestamp)).total_seconds() * 1000)),
        "desired_version": _guarded(_desired_version, 0),
        "origin": "manual",
        "error": {
            "type": (row.error_type or "Exception")[:200],
            "message": scrubbing.text(row.message, most=MAX_MESSAGE),
            "classes": details.get("classes") or [[row.error_type or "Exception"]],
            "severity": row.severity,
            "frames": details.get("frames") or [],
        },
        "context": scrubbing.value(known),
        "measurements": details.get("measurements") or {},
    }
    if details.get("request"):
        event["request"] = details["request"]
    return fit(event)


def describe(request: HttpRequest) -> dict[str, Any]:
    """`RequestDetail` of a request: its pattern, its scrubbed path, and whether it may be repeated."""
    match = request.resolver_match
    view: Any = match.func if match is not None else None
    view_class: Any = getattr(view, "view_class", None)
    described: Any = view_class or view
    path, intact = scrubbing.path(request.get_full_path(), match.kwargs if match is not None else None)
    method = request.method or "GET"
    return {
        "method": method,
        "route": (match.route if match is not None else "")[:500],
        "path": path,
        "view": f"{described.__module__}.{getattr(described, '__qualname__', type(described).__name__)}"
        if described
        else "",
        "replayable": replay.allowed(request),
        "path_intact": intact,
    }


def frames_of(at: TracebackType | None) -> list[dict[str, Any]]:
    """Where the exception came from, the innermost frame last; of a deep recursion its beginning and its end."""
    frames = [
        {
            "module": str(frame.f_globals.get("__name__", ""))[:200],
            "function": frame.f_code.co_name[:200],
            "line": line,
            "in_app": _in_app(frame.f_code.co_filename, str(getattr(settings, "BASE_DIR", ""))),
        }
        for frame, line in traceback.walk_tb(at)
    ]
    if len(frames) > _FIRST_FRAMES + _LAST_FRAMES:
        return frames[:_FIRST_FRAMES] + frames[-_LAST_FRAMES:]
    return frames


def fit(event: Event) -> Event:
    """The event within MAX_BYTES: what tells least goes first."""
    if _size(event) <= MAX_BYTES:
        return event
    event = {**event, "error": dict(event["error"])}
    event["context"] = {**_shortened(event["context"]), "truncated": True}
    cuts: tuple[Callable[[], None], ...] = (
        lambda: event["error"].update(
            frames=[f for f in event["error"]["frames"] if f["in_app"]] or event["error"]["frames"][-5:]
        ),
        lambda: event["error"].update(message=event["error"]["message"][:1_000]),
        lambda: event.update(context={"truncated": True}),
        lambda: event["error"].update(frames=event["error"]["frames"][-10:]),
        lambda: event["error"].update(classes=[chain[:5] for chain in event["error"]["classes"][:5]]),
        lambda: event.update(measurements={}),
    )
    for cut in cuts:
        if _size(event) <= MAX_BYTES:
            break
        cut()
    return event


def _shortened(context: Mapping[str, Any]) -> dict[str, Any]:
    shorter: dict[str, Any] = {}
    for key, entry in context.items():
        encoded = json.dumps(entry)
        shorter[key] = entry if len(encoded) <= 500 else encoded[:500] + "…"
        if len(shorter) == 20:
            break
    return shorter


def _size(event: Event) -> int:
    return len(json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode())


@lru_cache(maxsize=2048)
def _in_app(filename: str, base_dir: str) -> bool:
    if filename.startswith("<") or "site-packages" in filename or "dist-packages" in filename:
        return False
    if filename.startswith((_OWN, *_LIBRARIES)):
        return False
    return not base_dir or Path(base_dir).resolve() in Path(filename).resolve().parents


def _aware(at: datetime) -> datetime:
    if at.tzinfo is not None:
        return at
    from django.utils.timezone import make_aware

    return make_aware(at)


def _desired_version() -> int:
    from error_logging import desired_state

    return desired_state.version()


def _measurements(exc: BaseException) -> Mapping[str, object]:
    from error_logging import measurements

    return measurements.of(exc)


def _guarded(produce: Callable[[], Result], otherwise: Result) -> Result:
    """A part of the event, or its absence: an error that can't be told in full is told all the same."""
    try:
        return produce()
    except Exception:
        counters.add("event_parts_failed")
        logger.exception("A part of the event could not be made")
        return otherwise
