"""Fingerprint: which errors are the same incident.

As issue trackers of the field group: an explicit fingerprint first, then the in-app frames with the exception's
classes, then the message with its variable parts taken out.
"""

from __future__ import annotations

import hashlib
import re

from upright.domain.event import Event, RequestDetail

_VARIABLE = re.compile(
    r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?"
)


def template(message: str) -> str:
    """The message with numbers, ids and quoted values replaced."""
    return _VARIABLE.sub("<*>", message.splitlines()[0] if message else "")


def fingerprint(event: Event) -> str:
    """32 hex digits, equal for errors that one recovery can answer."""
    error = event.error
    parts = [event.service, event.environment]
    if error.fingerprint:
        parts += ["explicit", *error.fingerprint]
    else:
        parts += [chain[0] for chain in error.classes if chain] or [error.type]
        parts.append(_operation(event.request) if event.request else "")
        in_app = [f"{frame.module}:{frame.function}" for frame in error.frames if frame.in_app]
        parts += in_app or [template(error.message)]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def _operation(request: RequestDetail) -> str:
    """What was asked for: a POST is another operation than a GET of the same route, and may not be repeated."""
    return request.route if request.method in ("GET", "HEAD") else f"{request.method} {request.route}"
