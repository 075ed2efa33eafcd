"""The one place that wires adapters to ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

from upright.adapters import runbook_files
from upright.adapters.mail import SmtpMailer
from upright.adapters.runner.naming import run_name, run_tags
from upright.config import Settings
from upright.errors import ConfigurationError
from upright.services.dependencies import Dependencies
from upright.services.recovery import Recovery

__all__ = ["Dependencies", "current", "run_name", "run_tags", "unwatch", "use", "watch"]

_current: Dependencies | None = None
_watched: dict[UUID, Recovery] = {}


def use(dependencies: Dependencies | None) -> None:
    """Set what flows in this process work with."""
    global _current  # noqa: PLW0603
    _current = dependencies


async def current() -> Dependencies:
    if _current is None:
        raise ConfigurationError("none")
    return _current


def watch(flow_run_id: UUID, recovery: Recovery) -> None:
    _watched[flow_run_id] = recovery


def unwatch(flow_run_id: UUID) -> None:
    _watched.pop(flow_run_id, None)
