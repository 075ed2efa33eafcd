"""The waiting caller's exchange with the service: docs/protocol.md, "The waiting caller".

`steps` is the conversation without any I/O: it yields what is to be done and is sent what came of it, so that the same
conversation runs in a thread and in an event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import random
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any

from error_logging import client, desired_state, kill_file, process, retry_budget
from error_logging.conf import current
from error_logging.record import Record
from error_logging.recording import local_report

logger = logging.getLogger("error_logging")

Evidence = dict[str, Any]
MARGIN_S = 0.05
"""Kept for writing the row and the answer."""
GRACE_S = 0.2
"""How much longer than it asked the service to wait the caller listens, within its time."""
LAST_WORD_S = 0.3
"""What it takes to tell the result of a command that outlasted the caller's time."""


@dataclass(frozen=True)
class Post:
    path: str
    body: dict[str, Any]
    delivery_id: str
    wait_ms: int
    timeout_s: float


@dataclass(frozen=True)
class Apply:
    directive: dict[str, Any]
    deadline: float
    """On time.monotonic()."""


@dataclass(frozen=True)
class Replay:
    """The failed operation once more, in its own process."""


@dataclass(frozen=True)
class Probe:
    """Something smaller that shows whether what failed works again."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


Step = Post | Apply | Replay | Probe | Sleep


@dataclass(frozen=True)
class Abilities:
    """What the caller can do by itself."""

    replay: bool
    probe: bool

    @property
    def commands(self) -> list[str]:
        return ["apply", *(["replay", "retry"] if self.replay else []), *(["probe"] if self.probe else [])]


@dataclass
class Ended:
    """What came of the exchange."""

    answer: dict[str, Any]
    delivered: bool


def steps(
    record: Record, abilities: Abilities, deadline: float, *, path: str = "/v1/errors", retry_after_s: float = 0.0
) -> Generator[Step, Any, Ended]:
    """`deadline` is on time.monotonic()."""
    delivered = False
    answer: dict[str, Any] | None = None
    body = {
        **record.event,
        "age_ms": record.age_ms(),
        "waiter": {"budget_ms": _left_ms(deadline), "can": abilities.commands},
    }
    delivery_id = record.error_id if path == "/v1/errors" else f"{record.error_id}:{time.time_ns()}"
    try:
        while True:
            left_ms = _left_ms(deadline)
            if left_ms <= 0:
                break
            wait_ms = max(left_ms // 2, left_ms - round(GRACE_S * 1000))
            heard: dict[str, Any] = yield Post(path, body, delivery_id, wait_ms, left_ms / 1000)
            answer, delivered = heard, True
            command = heard.get("command")
            if not isinstance(command, dict):
                break
            result = yield from _carry_out(command, abilities, deadline, retry_after_s)
            path = f"/v1/errors/{record.error_id}/results"
            delivery_id = f"{command.get('id')}:result"
            body = {
                "schema_version": 1,
                "instance": process.instance(),
                "remaining_ms": max(0, _left_ms(deadline)),
                "results": [result],
            }
            if _left_ms(deadline) <= 0:
                # The time is up, but what was done must be known: it decides what is withdrawn.
                answer = yield Post(path, body, delivery_id, 0, LAST_WORD_S)
                break
    except client.Refused as error:
        logger.error("Upright's service refused %s: %s", record.error_id, error)  # noqa: TRY400 (it says why)
        if isinstance(error, client.NotAdmitted):
            message, status = f"Recovery pending: the service does not admit this application ({error})", "pending"
        else:
            message, status = f"Recovery not attempted: {error}", "not_attempted"
        settled = status != "pending" and 400 <= error.status < 500
        return Ended(_local(record, message, status=status), delivered=delivered or settled)
    except client.Unreachable as error:
        logger.warning("Upright's service can't be reached: %s", error)
    if answer is None:
        return Ended(_local(record, "Recovery pending: the service can't be reached"), delivered=False)
    return Ended(_whole(record, answer), delivered=delivered)


def _carry_out(
    command: dict[str, Any], abilities: Abilities, deadline: float, retry_after_s: float
) -> Generator[Step, Any, dict[str, Any]]:
    """The CommandResult of one command."""
    began = time.monotonic()
    deadline = min(deadline, began + float(command.get("deadline_ms") or 0) / 1000)
    kind = command.get("kind")
    result: dict[str, Any] = {"command_id": command.get("id"), "status": "done", "reason": "", "acknowledgements": []}
    if kind not in abilities.commands:
        result |= {"status": "unsupported", "reason": f"this caller can't {kind}"}
    elif kind == "retry" and kill_file.exists():
        result |= {"status": "refused", "reason": kill_file.REASON}
    elif time.monotonic() >= deadline:
        result |= {"status": "too_late", "reason": "the caller's time is up"}
    elif kind == "apply":
        # A block's probe did not see the failure itself: it counts only if it fails before the action.
        before = (yield Probe()) if abilities.probe and not abilities.replay and command.get("verify", True) else None
        acknowledgements: list[dict[str, Any]] = []
        for directive in command.get("directives") or []:
            acknowledgements.append((yield Apply(directive, deadline)))
        result["acknowledgements"] = acknowledgements
        applied = all(one["status"] == "applied" for one in acknowledgements)
        if applied and command.get("verify", True):
            result["evidence"] = yield from _evidence(abilities, before)
    elif kind == "replay":
        # What repaired another's error may not have reached this process yet.
        for directive in command.get("directives") or []:
            result["acknowledgements"].append((yield Apply(directive, deadline)))
        result["evidence"] = yield Replay()
    elif kind == "probe":
        result["evidence"] = yield Probe()
    elif kind == "retry":
        result["evidence"] = yield from _retry(command.get("retry") or {}, deadline, retry_after_s)
        if result["evidence"].get("refused"):
            result |= {"status": "refused", "reason": result["evidence"]["refused"], "evidence": None}
        elif result["evidence"]["attempts"] == 0:
            result |= {"status": "too_late", "reason": "the first retry would come after the caller's time is up"}
            result["evidence"] = None
    result["duration_ms"] = round((time.monotonic() - began) * 1000, 1)
    return result


def _evidence(abilities: Abilities, before: Evidence | None) -> Generator[Step, Any, Evidence | None]:
    if abilities.replay:
        return (yield Replay())
    if not abilities.probe:
        return None
    after: Evidence = yield Probe()
    if before is None or before["outcome"] != "failed":
        return {**after, "outcome": "inconclusive", "detail": "the probe worked before the action too"}
    return {**after, "kind": "caller_probe"}


def _retry(policy: dict[str, Any], deadline: float, retry_after_s: float) -> Generator[Step, Any, Evidence]:
    """Replays with exponential backoff. Jitter takes up to half of a delay off, so that callers don't come back
    together."""
    retries, spent = int(policy.get("max_retries", 3)), False
    retry_after_s = max(retry_after_s, float(policy.get("retry_after_ms") or 0) / 1000)
    delay_s = float(policy.get("retry_delay_ms", 1000)) / 1000
    attempts, evidence = 0, Evidence()
    began = time.monotonic()
    for _ in range(retries):
        pause_s = max(delay_s * random.uniform(0.5, 1.0), retry_after_s)  # noqa: S311
        if time.monotonic() + pause_s >= deadline:
            break
        yield Sleep(pause_s)
        if not retry_budget.budget.take():
            spent = True
            break
        evidence = yield Replay()
        attempts += 1
        # What it asks for now takes the place of what it asked for before.
        retry_after_s = float(evidence.pop("retry_after_s", 0.0))
        if evidence["outcome"] == "passed":
            break
        if policy.get("exponential_backoff", True):
            delay_s *= 2
    took_ms = round((time.monotonic() - began) * 1000, 1)
    if not attempts:
        refused = {"refused": "the retry budget of this process is used up"} if spent else {}
        return {"kind": "retry", "outcome": "inconclusive", "attempts": 0, "duration_ms": took_ms, **refused}
    return {**evidence, "kind": "retry", "attempts": attempts, "duration_ms": took_ms}


def retry_now(policy: dict[str, Any], deadline: float, replay: Callable[[], Evidence]) -> Evidence:
    """The same retries in this thread, for whoever has no caller."""
    conversation = _retry(policy, deadline, 0.0)
    reply: Any = None
    while True:
        try:
            step = conversation.send(reply)
        except StopIteration as ended:
            return ended.value
        reply = None
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
        else:
            reply = replay()


def run(
    record: Record,
    *,
    replay: Callable[[], Evidence] | None,
    probe: Callable[[], Evidence] | None,
    path: str = "/v1/errors",
) -> Ended:
    """The exchange in this thread. `replay` and `probe` give evidence; None where the caller can't."""
    conversation = steps(
        record, Abilities(replay is not None, probe is not None), _deadline(record), path=path,
        retry_after_s=_retry_after(record),
    )  # fmt: skip
    reply: Any = None
    failure: Exception | None = None
    while True:
        try:
            step = conversation.throw(failure) if failure is not None else conversation.send(reply)
        except StopIteration as ended:
            return ended.value
        reply, failure = None, None
        try:
            if isinstance(step, Sleep):
                time.sleep(step.seconds)
            elif isinstance(step, Replay):
                reply = replay() if replay is not None else None
            else:
                reply = _do(step, probe)
        except (client.Unreachable, client.Refused) as error:
            failure = error


async def arun(
    record: Record,
    *,
    replay: Callable[[], Awaitable[Evidence]] | None,
    probe: Callable[[], Evidence] | None,
) -> Ended:
    """The exchange in an event loop: HTTP and actuators in threads, the replay in the loop."""
    conversation = steps(
        record, Abilities(replay is not None, probe is not None), _deadline(record), retry_after_s=_retry_after(record)
    )
    loop = asyncio.get_running_loop()
    reply: Any = None
    failure: Exception | None = None
    while True:
        try:
            step = conversation.throw(failure) if failure is not None else conversation.send(reply)
        except StopIteration as ended:
            return ended.value
        reply, failure = None, None
        try:
            if isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Replay):
                reply = await replay() if replay is not None else None
            else:
                reply = await loop.run_in_executor(_threads(), _do_in, contextvars.copy_context(), step, probe)
        except (client.Unreachable, client.Refused) as error:
            failure = error


def _do(step: Step, probe: Callable[[], Evidence] | None) -> Any:
    if isinstance(step, Post):
        return client.post(
            step.path, step.body, delivery_id=step.delivery_id, wait_ms=step.wait_ms, timeout_s=step.timeout_s
        )
    if isinstance(step, Apply):
        return desired_state.apply_one(step.directive, step.deadline)
    return probe() if probe is not None else None


def _do_in(context: contextvars.Context, step: Step, probe: Callable[[], Evidence] | None) -> Any:
    return context.run(_do, step, probe)


_pool: tuple[int, concurrent.futures.ThreadPoolExecutor] | None = None


def _threads() -> concurrent.futures.ThreadPoolExecutor:
    """As many as may wait."""
    global _pool
    wanted = max(1, current().max_waiters)
    if _pool is None or _pool[0] != wanted:
        if _pool is not None:
            _pool[1].shutdown(wait=False)
        _pool = wanted, concurrent.futures.ThreadPoolExecutor(wanted, "upright-waiter")
    return _pool[1]


def _forget_threads() -> None:
    """Those of the parent are not the child's."""
    global _pool
    _pool = None


process.after_fork(_forget_threads)


def _deadline(record: Record) -> float:
    return time.monotonic() + current().recovery_timeout_ms / 1000 - MARGIN_S


def _left_ms(deadline: float) -> int:
    return round((deadline - time.monotonic()) * 1000)


def _retry_after(record: Record) -> float:
    value = (record.event.get("measurements") or {}).get("retry_after_s")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _whole(record: Record, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without its command, and with a report that has all that the guide promises, whatever the service
    left out."""
    told = answer.get("recovery")
    complete = _local(record, "Recovery pending")
    if not isinstance(told, dict):
        return complete
    return {**complete, **answer, "command": None, "recovery": {**complete["recovery"], **told}}


def _local(record: Record, message: str, *, status: str = "pending") -> dict[str, Any]:
    report = local_report(message, status=status)
    return {"error_id": record.error_id, "severity": record.severity, "recovery": report}
