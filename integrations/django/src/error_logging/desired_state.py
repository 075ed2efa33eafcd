"""Desired state: the directives that this process holds, until they expire or the service takes them back.

Expiry runs on the monotonic clock in this process, so that a service that is gone changes nothing for ever.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from typing import Any

from error_logging import actuators, kill_file, measurements, process

logger = logging.getLogger("error_logging")

Directive = Mapping[str, Any]
Acknowledgement = dict[str, Any]
REMEMBERED = 100
"""One-time directives whose acknowledgement is kept, so that none is carried out twice."""


@dataclass
class _Held:
    directive: Directive
    expires_at: float
    acknowledgement: Acknowledgement


class _State:
    """Of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.version = 0
        """Of the last complete list."""
        self.newest = 0
        """Of the newest directive, which a waiter's command may have brought before the list did."""
        self.held: dict[tuple[str, str], _Held] = {}
        self.done: dict[str, Future[Acknowledgement]] = {}
        self.reverted: list[Acknowledgement] = []
        self.killed = False
        """Whether the kill file has kept something from this process."""
        self.changed = threading.Condition(threading.RLock())
        self.clock: threading.Thread | None = None


_state = _State()


def version() -> int:
    """Version of the newest directive that this process has dealt with: what an event says."""
    return max(_state.version, _state.newest)


def complete_version() -> int:
    """Version of the last complete list that this process has dealt with: what a sync says."""
    with _state.changed:
        if _state.killed and not kill_file.exists():
            # What was refused or reverted for it may be due again.
            _state.killed, _state.version = False, 0
        return _state.version


def held() -> list[Directive]:
    """The directives in force."""
    with _state.changed:
        return [one.directive for one in _state.held.values()]


def apply_one(directive: Directive, deadline: float | None = None) -> Acknowledgement:
    """Apply a directive that came in a command. Brought twice, it is done once. `deadline` is on time.monotonic():
    whoever has none left does not wait for what another thread applies."""
    left_s = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
    if directive.get("scope") == "once":
        told = _once(directive, deadline)
    elif _state.changed.acquire(timeout=left_s):
        try:
            told = _apply(directive, deadline)
        finally:
            _state.changed.release()
    else:
        return _not_in_time(directive)
    with _state.changed:
        if told["status"] == "applied":
            _state.newest = max(_state.newest, _version(directive))
    return told


def apply_desired(at: int, directives: Iterable[Directive]) -> list[Acknowledgement]:
    """Make this process be as the complete list says: what is absent ended, and is reverted."""
    with _state.changed:
        wanted = {_key(one): one for one in directives}
        # A waiter's command may have been faster than this list, which does not know of it then.
        known = {key for key, one in _state.held.items() if _version(one.directive) > at}
        told = [_revert(key) for key in list(_state.held) if key not in wanted and key not in known]
        told += [_apply(one) for key, one in wanted.items() if key not in known]
        _state.version = at
        return told


def take_reverted() -> list[Acknowledgement]:
    """What expired since the last call."""
    with _state.changed:
        told, _state.reverted = _state.reverted, []
        return told


def reset() -> None:
    """Revert everything; for tests."""
    with _state.changed:
        for key in list(_state.held):
            _revert(key)
        _state.version = _state.newest = 0
        _state.done.clear()
        _state.reverted.clear()


def _once(directive: Directive, deadline: float | None) -> Acknowledgement:
    """Carried out by the first thread that brings it, without holding up what others apply."""
    identity, ended = str(directive.get("id")), Future[Acknowledgement]()
    with _state.changed:
        known = _state.done.get(identity)
        if known is None:
            while len(_state.done) >= REMEMBERED:
                _state.done.pop(next(iter(_state.done)))
            _state.done[identity] = ended
    if known is None:
        ended.set_result(actuators.acknowledgement(directive, deadline=deadline))
        return ended.result()
    try:
        return known.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except NotInTime:
        return _not_in_time(directive)


def _not_in_time(directive: Directive) -> Acknowledgement:
    return {
        "directive_id": directive.get("id"), "version": directive.get("version", 1), "status": "failed",
        "reason": "something else is still being applied in this process", "before": {}, "after": {},
        "duration_ms": 0.0,
    }  # fmt: skip


def _apply(directive: Directive, deadline: float | None = None) -> Acknowledgement:
    if kill_file.exists():
        _state.killed = True
        return actuators.acknowledgement(directive, deadline=deadline)
    if directive.get("scope") == "once":
        return _once(directive, deadline)
    key = _key(directive)
    expires_at = time.monotonic() + float(directive.get("ttl_s") or 0)
    known = _state.held.get(key)
    if known is not None and known.directive.get("version") == directive.get("version"):
        known.expires_at = min(known.expires_at, expires_at)
        return known.acknowledgement
    if known is not None and known.directive.get("id") == directive.get("id") and (
        known.directive.get("values") == directive.get("values")
    ):  # fmt: skip
        # The same change, which is for more processes now: it is in force here already.
        kept = min(known.expires_at, expires_at)
        told = {**known.acknowledgement, "version": directive.get("version", 1)}
        _state.held[key] = _Held(directive, kept, told)
        return told
    told = actuators.acknowledgement(directive, deadline=deadline)
    if told["status"] == "applied":
        _state.held[key] = _Held(directive, expires_at, told)
        _wind_clock()
    return told


def _revert(key: tuple[str, str]) -> Acknowledgement:
    ended = _state.held.pop(key)
    return actuators.acknowledgement(ended.directive, revert=True)


def _give_up(state: _State) -> None:
    """Revert everything; it comes back with the next list, once the file is gone."""
    for key in list(state.held):
        told = _revert(key)
        if told["status"] != "reverted":
            logger.error("Upright could not revert %s of %s: %s", *key, told["reason"])
        state.reverted.append({**told, "reason": told["reason"] or kill_file.REASON})
    logger.warning("Upright reverted everything: %s", kill_file.REASON)
    state.killed = True


def _version(directive: Directive) -> int:
    return int(directive.get("version") or 0)


def _key(directive: Directive) -> tuple[str, str]:
    return str(directive.get("strategy")), str(directive.get("target"))


def _wind_clock() -> None:
    if _state.clock is None or not _state.clock.is_alive():
        _state.clock = threading.Thread(target=_watch_expiry, args=(_state,), name="upright-expiry", daemon=True)
        _state.clock.start()
    with _state.changed:
        _state.changed.notify_all()


def _watch_expiry(state: _State) -> None:
    with state.changed:
        while state.held:
            now = time.monotonic()
            for key in [key for key, one in state.held.items() if one.expires_at <= now]:
                told = _revert(key)
                if told["status"] != "reverted":
                    logger.error("Upright could not revert %s of %s: %s", *key, told["reason"])
                state.reverted.append({**told, "reason": told["reason"] or "expired"})
            if state.held:
                soonest_s = min(one.expires_at for one in state.held.values()) - time.monotonic()
                if kill_file.configured():
                    soonest_s = min(soonest_s, kill_file.LOOK_EVERY_S)
                state.changed.wait(max(0.01, soonest_s))
                if state.held and kill_file.exists():
                    _give_up(state)
        state.clock = None


def _after_fork() -> None:
    # What the parent held, the child's own actuators hold too: it reverts it when the list or the clock says so. Not so
    # for pools that are new in the child: it asks for the whole list again.
    global _state
    inherited, _state = _state, _State()
    new = {("pool_increase", alias) for alias in measurements.leave_pools_behind()}
    _state.held = {key: one for key, one in inherited.held.items() if key not in new}
    if len(_state.held) == len(inherited.held):
        _state.version, _state.newest = inherited.version, inherited.newest
    if _state.held:
        _wind_clock()


process.after_fork(_after_fork)
