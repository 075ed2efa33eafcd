"""The agent: one thread for each process that says what is so, and does what the service asks of this process.

The thread itself does HTTP only; whatever can block runs in a few threads beside it.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from django.db import connections

from error_logging import (
    actuators,
    celery,
    circuits,
    client,
    desired_state,
    exchange,
    execution,
    kill_file,
    mail,
    measurements,
    probes,
    process,
    recording,
    replay,
    route_watch,
    runbook_checks,
)
from error_logging.conf import current

logger = logging.getLogger("error_logging")

HOLD_S = 20.0
GRACE_S = 5.0
CIRCUIT_NEWS_S = 0.5
COMMANDS = ("apply", "replay", "retry", "probe", "send_email", "check", "traffic")
SIDE_THREADS = 2
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 30.0
READ_WAIT_S = 5.0
MEASURE_EVERY_S = 10.0

Told = dict[str, Any]


class Agent:
    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._acknowledgements: list[Told] = []
        self._results: list[Told] = []
        self._received: list[str] = []
        self._measured_at = float("-inf")
        self._side = concurrent.futures.ThreadPoolExecutor(SIDE_THREADS, "upright-side")
        self._thread = threading.Thread(target=self._run, name="upright-agent", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._side.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        delay_s = FIRST_DELAY_S
        while not self._stopped.is_set():
            if client.gone():
                # It wants no more from this sender, so what is held here runs out by itself.
                self._stopped.wait(LAST_DELAY_S)
                continue
            try:
                self._sync()
                delay_s = FIRST_DELAY_S
            except client.Unreachable as error:
                logger.debug("Upright's agent can't reach the service: %s", error)
                self._stopped.wait(max(error.retry_after_s or 0.0, delay_s * random.uniform(0.5, 1.0)))  # noqa: S311
                delay_s = min(LAST_DELAY_S, delay_s * 2)
            except client.Refused as error:
                logger.error("Upright's agent was refused: %s", error)  # noqa: TRY400 (the reason tells it all)
                self._stopped.wait(LAST_DELAY_S)
            except Exception:
                logger.exception("Upright's agent failed")
                self._stopped.wait(LAST_DELAY_S)

    def _sync(self) -> None:
        self._measure()
        told = [*self._acknowledgements, *desired_state.take_reverted()]
        results, received = list(self._results), list(self._received)
        self._acknowledgements = told
        answer = client.post("/v1/sync", self._request(told, results, received), timeout_s=HOLD_S + GRACE_S)
        # Only what has been answered is known to have arrived.
        self._acknowledgements = self._acknowledgements[len(told) :]
        self._results = self._results[len(results) :]
        self._received = self._received[len(received) :]
        self._obey(answer)

    def _request(self, told: list[Told], results: list[Told], received: list[str]) -> dict[str, Any]:
        conf = current()
        strategies: dict[str, dict[str, Any]] = {
            name: {"targets": targets, "limits": {key: list(pair) for key, pair in conf.limits.get(name, {}).items()}}
            for name in actuators.REGISTRY
            if (conf.allowed_strategies is None or name in conf.allowed_strategies)
            and (targets := actuators.targets(name))
        }
        strategies |= {
            name: {"targets": [""], "custom": True, "revertible": revertible}
            for name, revertible in execution.custom().items()
            if conf.allowed_strategies is None or name in conf.allowed_strategies
        }
        return {
            "schema_version": 1,
            "service": conf.service,
            "environment": conf.environment,
            "instance": process.instance(),
            "hold_ms": round(_hold_s() * 1000),
            "desired_version": desired_state.complete_version(),
            "acknowledgements": told,
            "results": results,
            "outcomes_received": received,
            "measurements": measurements.of_process(),
            "capabilities": {
                "strategies": strategies,
                "commands": list(COMMANDS),
                "checks": sorted(probes.registered()),
            },
            "settings": {
                "alert_recipients": list(conf.alert_recipients),
                "escalation_recipients": list(conf.escalation_recipients),
                "alerts_by_severity": (
                    {name: list(who) for name, who in conf.alerts_by_severity.items()}
                    if conf.alerts_by_severity is not None
                    else None
                ),
                "auto_scale_on_error": conf.auto_scale_on_error,
                "max_scale_factor": conf.max_scale_factor,
            },
        }

    def _obey(self, answer: Mapping[str, Any]) -> None:
        version, desired = int(answer.get("version") or 0), list(answer.get("desired") or [])
        if version != desired_state.complete_version():
            self._acknowledgements += self._beside(lambda: desired_state.apply_desired(version, desired), 30.0) or []
        self._take_all(list(answer.get("outcomes") or []))
        for command in answer.get("commands") or []:
            self._results.append(self._carry_out(command))

    def _take_all(self, outcomes: list[Mapping[str, Any]]) -> None:
        missed = {str(one.get("recovery_id")) for one in outcomes if not self._take(one)}
        # Receipt is said of a whole recovery, and so only where each error that it answers has its outcome.
        received = dict.fromkeys(str(one.get("recovery_id")) for one in outcomes)
        self._received += [one for one in received if one not in missed]
        if missed:
            # They come again at once.
            self._stopped.wait(FIRST_DELAY_S)

    def _take(self, outcome: Mapping[str, Any]) -> bool:
        """Whether it is dealt with."""
        try:
            return recording.apply_outcome(dict(outcome))
        except Exception:
            logger.exception("Upright could not write the outcome of recovery %s", outcome.get("recovery_id"))
            return False

    def _carry_out(self, command: Mapping[str, Any]) -> Told:
        began = time.monotonic()
        wait_s = float(command.get("deadline_ms") or 0) / 1000
        result: Told = {"command_id": command.get("id"), "status": "done", "reason": "", "acknowledgements": []}
        if command.get("kind") not in COMMANDS or not current().enabled:
            return {**result, "status": "unsupported", "reason": f"this process can't {command.get('kind')}"}
        if command.get("kind") == "retry" and kill_file.exists():
            return {**result, "status": "refused", "reason": kill_file.REASON}
        done = self._beside(lambda: _do(command, began + wait_s), wait_s)
        result |= done if done is not None else {"status": "failed", "reason": f"not done within {wait_s:g} s"}
        return {**result, "duration_ms": round((time.monotonic() - began) * 1000, 1)}

    def _measure(self) -> None:
        celery.watch()
        if time.monotonic() - self._measured_at > MEASURE_EVERY_S:
            self._measured_at = time.monotonic()
            self._beside(measurements.read_databases, READ_WAIT_S)

    def _beside(self, work: Callable[[], Any], wait_s: float) -> Any:
        """Do it in a side thread; None if it takes too long or fails."""

        def run() -> Any:
            try:
                with measurements.opening_pools():
                    return work()
            finally:
                connections.close_all()

        try:
            return self._side.submit(run).result(wait_s)
        except concurrent.futures.TimeoutError:
            logger.warning("Upright's agent: something took more than %g s", wait_s)
        except RuntimeError:
            if not self._stopped.is_set():
                raise
        except Exception:
            logger.exception("Upright's agent could not do what it was asked")
        return None


def _hold_s() -> float:
    """How long a sync may be held: what becomes of an open circuit is told soon after it may be tried."""
    news_s = circuits.news_in_s()
    return HOLD_S if news_s is None else min(HOLD_S, max(CIRCUIT_NEWS_S, news_s))


def _do(command: Mapping[str, Any], deadline: float) -> Told:
    kind = command["kind"]
    if kind == "apply":
        told = [desired_state.apply_one(one, deadline) for one in command.get("directives") or []]
        return {"acknowledgements": told}
    if kind == "send_email":
        try:
            mail.send(command.get("email") or {})
        except Exception as error:
            logger.exception("Upright could not send an alert")
            return {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
        return {}
    types = [str(one) for one in command.get("error_types") or []]
    if kind == "probe":
        probe = probes.default(types, {})
        if probe is None:
            return {"status": "unsupported", "reason": "there is no default probe for this error"}
        return {"evidence": probes.run(probe)}
    if kind in ("check", "traffic"):
        return _verify(kind, command.get("check") or {}, types)
    detail = command.get("request")
    if not isinstance(detail, Mapping):
        return {"status": "unsupported", "reason": "there is no request to repeat"}
    if kind == "replay":
        return {"evidence": replay.anonymous(detail, types)}
    evidence = exchange.retry_now(command.get("retry") or {}, deadline, lambda: replay.anonymous(detail, types))
    if evidence.get("refused"):
        return {"status": "refused", "reason": evidence["refused"]}
    return {"evidence": evidence}


def _verify(kind: str, wanted: Mapping[str, Any], types: list[str]) -> Told:
    try:
        if kind == "traffic":
            return {"counts": route_watch.count(wanted, types)}
        return {"evidence": runbook_checks.carry_out(wanted)}
    except (runbook_checks.Refused, ValueError) as refused:
        return {"status": "refused", "reason": str(refused)}


_process: tuple[int, Agent] | None = None
_making = threading.Lock()
_wanted = False


def start() -> None:
    """Start this process's agent, where there is a service to talk to; again after a fork."""
    global _process, _wanted
    conf = current()
    if not (conf.delivers and conf.agent):
        return
    _wanted = True
    if _process is None or _process[0] != os.getpid():
        with _making:
            if _process is None or _process[0] != os.getpid():
                _process = (os.getpid(), Agent())


def running() -> bool:
    return _process is not None and _process[0] == os.getpid()


@atexit.register
def _stop() -> None:
    if _process is not None and _process[0] == os.getpid():
        _process[1].stop()


def _after_fork() -> None:
    global _process, _making
    _making = threading.Lock()
    _process = None
    if _wanted:
        start()


process.after_fork(_after_fork)
