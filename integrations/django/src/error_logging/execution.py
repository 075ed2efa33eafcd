"""Execution: every directive goes through the application's executor, its own strategies within a time limit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from typing import Any

from django.db import connections
from django.utils.module_loading import import_string

from error_logging import actuators
from error_logging.actuators.base import Change, NotSupported
from error_logging.ai_error_recovery import AutoRecoveryExecutor, RecoveryStrategy
from error_logging.conf import current

logger = logging.getLogger("error_logging")

Action = Mapping[str, Any]
LONGEST_S = 30.0
"""What a strategy of the application's gets where nobody sets it a shorter time."""

_made: tuple[str | None, AutoRecoveryExecutor] | None = None
_running: dict[str, Future[Any]] = {}
_lock = threading.Lock()


class ActionFailed(Exception):
    """The executor did not act; the message says why."""


def load(name: str | None) -> AutoRecoveryExecutor:
    """An executor of the named class. Raises ImportError or TypeError."""
    if name is None:
        return AutoRecoveryExecutor()
    made = import_string(name)
    if not (isinstance(made, type) and issubclass(made, AutoRecoveryExecutor)):
        raise TypeError(f"{name} is not a subclass of AutoRecoveryExecutor")
    return made()


def executor() -> AutoRecoveryExecutor:
    """The application's, or where that can't be made, the one that ships."""
    global _made
    name = current().executor
    if _made is None or _made[0] != name:
        try:
            _made = (name, load(name))
        except Exception:
            logger.exception("UPRIGHT_EXECUTOR %s can't be used; see `manage.py check`", name)
            _made = (name, AutoRecoveryExecutor())
    return _made[1]


def custom() -> dict[str, bool]:
    """Strategies that this application adds, and whether each can be taken back."""
    here = executor()
    names = RecoveryStrategy.declared() - set(RecoveryStrategy.names())
    return {
        name: callable(getattr(here, f"_revert_{name}", None))
        for name in sorted(names)
        if callable(getattr(here, f"_execute_{name}", None))
    }


def carry_out(action: Action, *, revert: bool = False, deadline: float | None = None) -> Change:
    """What came of it, measured where the executor measures. `deadline` is on time.monotonic(). Raises NotSupported,
    ActionFailed, and what a built-in actuator raises."""
    strategy, here = str(action.get("strategy")), executor()
    kind = "revert" if revert else "execute"
    method: Callable[[Action], Any] | None = getattr(here, f"_{kind}_{strategy}", None)
    if strategy not in actuators.REGISTRY and strategy not in custom():
        raise NotSupported(f"this application has no {strategy}")
    if method is None:
        raise NotSupported(f"{type(here).__name__} has no _{kind}_{strategy}")
    if getattr(type(here), f"_{kind}_{strategy}", None) is getattr(AutoRecoveryExecutor, f"_{kind}_{strategy}", method):
        return _change(method(action), strategy, kind)
    return _change(_within(method, action, strategy, kind, deadline), strategy, kind)


def _within(method: Callable[[Action], Any], action: Action, strategy: str, kind: str, deadline: float | None) -> Any:
    """The application's own method, in a thread of its own. It can't be ended from outside, so it is not begun again
    before it has ended."""
    patience_s = LONGEST_S if deadline is None else min(LONGEST_S, deadline - time.monotonic())
    ended: Future[Any] = Future()
    with _lock:
        if strategy in _running and not _running[strategy].done():
            raise ActionFailed(f"an earlier {strategy} has not ended yet")
        _running[strategy] = ended

    def run() -> None:
        try:
            ended.set_result(method(action))
        except BaseException as error:
            ended.set_exception(error)
        finally:
            connections.close_all()

    threading.Thread(target=run, name=f"upright-{strategy}", daemon=True).start()
    try:
        return ended.result(max(0.0, patience_s))
    except NotInTime:
        if ended.done():
            raise
        raise ActionFailed(f"_{kind}_{strategy} took longer than {max(0.0, patience_s):.3g} s, and may go on") from None


def _change(told: Any, strategy: str, kind: str) -> Change:
    if not isinstance(told, Mapping) or not isinstance(told.get("success"), bool):
        raise ActionFailed(f"_{kind}_{strategy} returned {told!r:.200}, not {{'success': True or False, …}}")
    message = str(told.get("message") or "")[:500]
    if not told["success"]:
        raise ActionFailed(message or f"_{kind}_{strategy} says that it did not succeed")
    before, after = told.get("before"), told.get("after")
    return Change(before if isinstance(before, Mapping) else {}, after if isinstance(after, Mapping) else {}, message)
