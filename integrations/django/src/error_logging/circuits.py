"""Circuits: the breakers of this process, one for each target of a circuit_break directive.

The directive is the state that the processes share: each opens its circuit when it applies it. pybreaker counts and
keeps the state; when an open circuit is tried again is decided here, on the monotonic clock, since one process of the
service (the directive's `prober`) is to try first. Requests never hold a lock while they are made.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Literal

from error_logging import process

Outcome = Literal["passed", "failed"]
GRACE = 0.5
"""How much longer the other processes wait than the prober, as a share of the open time; within the bounds below."""
LEAST_GRACE_S, MOST_GRACE_S = 3.0, 30.0
BUSY_S = 1.0
"""When to come back while a half-open circuit is being tried."""
_OPEN, _CLOSED = "open", "closed"
_NEVER_S = timedelta(days=365).total_seconds()


class CircuitOpen(ConnectionError):
    """The circuit is open: the call was not made."""

    def __init__(self, target: str = "", retry_after_s: float = BUSY_S) -> None:
        super().__init__(f"The circuit of {target} is open" if target else "The circuit is open")
        self.target = target
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.target, self.retry_after_s)


def open_in(exc: BaseException) -> CircuitOpen | None:
    """The open circuit that an exception says it comes from: it is no new incident."""
    at: BaseException | None = exc
    for _ in range(20):
        if at is None or isinstance(at, CircuitOpen):
            return at
        # Not what was merely being handled: code that deals with an open circuit has errors of its own.
        at = at.__cause__
    return None


class _Failed(Exception):
    """What a failed call is told to pybreaker as."""


class Circuit:
    """Open from the start: a directive says so."""

    def __init__(
        self, target: str, *, failure_threshold: int, timeout_s: float, half_open_requests: int, prober: str
    ) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self.half_open_requests = half_open_requests
        self.probe: Outcome | None = None
        """How the latest half-open call of a real request ended."""
        self._grace_s = 0.0
        if prober and prober != process.instance():
            self._grace_s = min(MOST_GRACE_S, max(LEAST_GRACE_S, timeout_s * GRACE))
        # Not above: it brings the client of Redis with it, and few processes ever come here.
        import pybreaker

        self._breaker = pybreaker.CircuitBreaker(
            fail_max=failure_threshold,
            reset_timeout=_NEVER_S,
            success_threshold=half_open_requests,
            throw_new_error_on_trip=False,
            name=target,
        )
        self._lock = threading.Lock()
        self._trying = 0
        self._period = 0
        """Grows with each change of state: what a call that began in an earlier one brings counts no more."""
        self._breaker.open()
        self._opened_at = time.monotonic()

    @property
    def state(self) -> str:
        return self._breaker.current_state.replace("-", "_")

    def opens_in_s(self) -> float:
        """Until an open circuit may be tried; 0 for one that may be."""
        if self._breaker.current_state != _OPEN:
            return 0.0
        return max(0.0, self._opened_at + self.timeout_s + self._grace_s - time.monotonic())

    def admit(self) -> Permit:
        """Let a call through. Raises CircuitOpen."""
        if self._breaker.current_state == _CLOSED:
            return Permit(self, self._period, probe=False)
        with self._lock:
            state = self._breaker.current_state
            if state == _CLOSED:
                return Permit(self, self._period, probe=False)
            if state == _OPEN:
                left_s = self.opens_in_s()
                if left_s > 0:
                    raise CircuitOpen(self.target, left_s)
                self._breaker.half_open()
                self._trying = 0
                self._period += 1
            if self._trying >= self.half_open_requests:
                raise CircuitOpen(self.target, BUSY_S)
            self._trying += 1
            return Permit(self, self._period, probe=True)

    def record(self, permit: Permit, outcome: Outcome | None) -> None:
        with self._lock:
            if permit.period != self._period:
                return
            if outcome is None:
                self._trying -= permit.probe
                return
            before = self._breaker.current_state
            if permit.probe and not permit.anonymous:
                self.probe = outcome
            with contextlib.suppress(_Failed):
                self._breaker.call(_fail if outcome == "failed" else _succeed)
            after = self._breaker.current_state
            if after != before:
                self._period += 1
                self._opened_at = time.monotonic()

    def measured(self) -> dict[str, Any]:
        return {"state": self.state, "probe": self.probe, "opens_in_s": round(self.opens_in_s(), 3)}


class Permit:
    """One call that was let through. Its outcome counts once."""

    __slots__ = ("_circuit", "_done", "anonymous", "period", "probe")

    def __init__(self, circuit: Circuit, period: int, *, probe: bool) -> None:
        self._circuit = circuit
        self._done = False
        self.period = period
        self.probe = probe
        self.anonymous = _anonymous.get()

    def passed(self) -> None:
        self._end("passed")

    def failed(self) -> None:
        self._end("failed")

    def release(self) -> None:
        """It ended without telling anything."""
        self._end(None)

    def _end(self, outcome: Outcome | None) -> None:
        if not self._done:
            self._done = True
            self._circuit.record(self, outcome)


_circuits: dict[str, Circuit] = {}
_anonymous: ContextVar[bool] = ContextVar("upright_anonymous", default=False)


@contextlib.contextmanager
def anonymously() -> Iterator[None]:
    """Calls made in here are nobody's: they close a circuit like any other, and are no evidence of what users see."""
    token = _anonymous.set(True)
    try:
        yield
    finally:
        _anonymous.reset(token)


def active() -> bool:
    return bool(_circuits)


def get(target: str) -> Circuit | None:
    return _circuits.get(target)


def put(circuit: Circuit) -> Circuit | None:
    """The one that it replaces."""
    replaced = _circuits.get(circuit.target)
    _circuits[circuit.target] = circuit
    return replaced


def remove(target: str) -> Circuit | None:
    return _circuits.pop(target, None)


def measured() -> Mapping[str, Mapping[str, Any]]:
    return {target: circuit.measured() for target, circuit in list(_circuits.items())}


def news_in_s() -> float | None:
    """When there may be something to tell of a circuit; None while there is none."""
    return min((one.opens_in_s() for one in list(_circuits.values())), default=None)


def _succeed() -> None:
    pass


def _fail() -> None:
    raise _Failed


def _after_fork() -> None:
    # Whoever held a lock is not here; the child's own desired state says when the circuits end.
    for circuit in _circuits.values():
        circuit._lock = threading.Lock()  # pyright: ignore[reportPrivateUsage]


process.after_fork(_after_fork)
