"""Holds: when recoveries have failed so often that people are to look first."""

from __future__ import annotations

from collections.abc import Sequence

from upright.domain.guardrails import FailingService, RepeatedFailures


def repeated_failures(rules: RepeatedFailures, failed: Sequence[bool]) -> str | None:
    """Why recoveries of a fingerprint are held, or None. `failed`: how its recoveries that acted ended, the latest
    first, since they were last held or reset."""
    latest = failed[: rules.failures]
    if len(latest) < rules.failures or not all(latest):
        return None
    return f"the last {rules.failures} recoveries of this error failed" if rules.failures > 1 else "its recovery failed"


def failing_service(rules: FailingService, failed: Sequence[bool]) -> str | None:
    """Why recoveries of a service are held, or None. Likewise over all its recoveries that acted."""
    latest = failed[: rules.window]
    count = sum(latest)
    if len(latest) < rules.at_least or not latest[0] or count <= rules.share * len(latest):
        return None
    return f"{count} of the last {len(latest)} recoveries of this service failed"
