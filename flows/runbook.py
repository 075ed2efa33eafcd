"""One flow for each runbook of the project.

Score, then a task for each strategy that is tried, named after it, with a verification after what was carried out; the
caller has its answer then, and what does not apply, alert, escalation and the report follow. What the tasks do is in
`upright.services`; here is what runs, in what order, with which retries and timeouts.

State of the run: Completed where the recovery succeeded, Failed named NotRecovered or NotVerified otherwise, Cancelled.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import Flow, Task, flow, get_run_logger, task
from prefect.artifacts import MarkdownArtifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import AsyncClientContext, FlowRunContext, get_run_context
from prefect.exceptions import Abort
from prefect.states import Cancelled, Completed, Failed
from prefect.utilities.urls import url_for

from upright import bootstrap
from upright.adapters import runbook_files
from upright.adapters.runner.approval import decided
from upright.adapters.runner.execution import aside, attach
from upright.adapters.runner.naming import run_name, run_tags
from upright.domain.runbook import Runbook, Step
from upright.domain.verdict import Status, Verdict
from upright.errors import ConfigurationError, StaleEpoch, Unavailable
from upright.services import alerts, asking, reporting
from upright.services.acting import Acted
from upright.services.dependencies import Dependencies
from upright.services.guardrails import Approval
from upright.services.ports import ActionRecord, AlertRecord
from upright.services.recovery import Recovery
from upright.services.scoring import Choice, Ranking

PROJECT = Path(__file__).resolve().parent.parent
# Nothing is persisted: the store remembers what was done. Naming a place saves asking the server for its default one.
NO_RESULTS: dict[str, Any] = {"persist_result": False, "result_storage": Path(tempfile.gettempdir())}
DATABASE_PATIENCE_S = 60.0
NOT_RECOVERED, NOT_VERIFIED = "NotRecovered", "NotVerified"
# The parameter is checked by the server against the schema of the deployment, and by the store.
FLOW: dict[str, Any] = {**NO_RESULTS, "retries": 0, "validate_parameters": False}
UNCACHED: dict[str, Any] = {**NO_RESULTS, "cache_policy": NO_CACHE}

_recovery: ContextVar[Recovery] = ContextVar("recovery")
_acted: ContextVar[dict[str, Acted]] = ContextVar("acted")


@task(name="score", task_run_name="score", retries=1, timeout_seconds=10, **UNCACHED)
async def score() -> State[Any]:
    ranking = await _recovery.get().score()
    order = ", ".join(choice.strategy for choice in ranking.tried) or "nothing applies"
    return Completed(message=f"Order: {order}")


def strategy_task(step: Step) -> Task[..., Any]:
    """The task of one step: its strategy carried out. Its retries are for our failures to act, never for a verdict."""

    @task(
        name=step.strategy,
        task_run_name=step.strategy,
        retries=step.retries,
        retry_delay_seconds=step.retry_delay_s,
        timeout_seconds=step.timeout_s,
        **UNCACHED,
    )
    async def act(index: int) -> State[Any]:
        recovery = _recovery.get()
        ranking = recovery.ranking
        if ranking is None:
            raise RuntimeError("scoring comes first")
        acted = await recovery.act(ranking.tried[index])
        _acted.get()[step.strategy] = acted
        if acted.settled is None:
            return Completed(name="CarriedOut", message=acted.plan.why if acted.plan else "")
        if acted.settled is Verdict.SKIPPED:
            return Completed(name="Skipped", message=acted.reason)
        name = "".join(part.title() for part in acted.settled.value.split("_"))
        return (
            Failed(name=name, message=acted.reason)
            if acted.settled is Verdict.FAILED
            else Completed(name=name, message=acted.reason)
        )

    return act


def noted_task(strategy: str) -> Task[..., Any]:
    """Shows a strategy that was not carried out in this run, under its own name."""

    @task(name=strategy, task_run_name=strategy, **UNCACHED)
    async def note(name: str, reason: str) -> State[Any]:
        return Completed(name=name, message=reason)

    return note


def _no_verdict(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether it failed on our side: a verdict is never repeated."""
    return state.name not in (NOT_RECOVERED, NOT_VERIFIED)


@task(
    name="verify",
    task_run_name="verify {strategy}",
    retries=1,
    retry_condition_fn=_no_verdict,
    timeout_seconds=600,
    **UNCACHED,
)
async def verify(strategy: str) -> State[Any]:
    action = await _recovery.get().verify(_acted.get()[strategy])
    message = f"{reporting.VERDICTS[action.verdict]}: {action.reason}"
    if action.verdict is Verdict.RECOVERED:
        return Completed(name="Recovered", message=message)
    return Failed(name=NOT_VERIFIED if action.verdict is Verdict.UNKNOWN else NOT_RECOVERED, message=message)


@task(name="alert", task_run_name="alert", timeout_seconds=60, **UNCACHED)
async def alert() -> State[Any]:
    return await _send("alert")


@task(name="escalate", task_run_name="escalate", timeout_seconds=60, **UNCACHED)
async def escalate() -> State[Any]:
    return await _send("escalation")


@task(name="ask", task_run_name="ask {strategy}", timeout_seconds=60, **UNCACHED)
async def ask(strategy: str, question: Approval) -> State[Any]:
    link = url_for("flow-run", obj_id=_run_id())
    sent = await asking.ask(_recovery.get(), question, [link] if link else [])
    message = "; ".join(f"{one.channel} {one.status} {one.detail}".strip() for one in sent)
    return Completed(name="Asked", message=f"{question.plan}: {message}")


@task(name="relapse", task_run_name="relapse", timeout_seconds=60, **UNCACHED)
async def relapse() -> State[Any]:
    """Those who were told that it had recovered hear that it came back."""
    link = url_for("flow-run", obj_id=_run_id())
    sent = await alerts.follow_up(_recovery.get(), [link] if link else [])
    message = "; ".join(f"{one.channel} {one.status} {one.detail}".strip() for one in sent)
    if _failed(sent):
        return Failed(message=message)
    return Completed(name="Sent" if sent else "Skipped", message=message or "nobody was told that it had recovered")


async def _send(kind: alerts.Kind) -> State[Any]:
    recovery = _recovery.get()
    because = alerts.due(kind, recovery)
    if because is not None:
        return Completed(name="Skipped", message=because)
    link = url_for("flow-run", obj_id=_run_id())
    sent = await alerts.send(kind, recovery, [link] if link else [])
    message = "; ".join(f"{one.channel} {one.status} {one.detail}".strip() for one in sent)
    if _failed(sent):
        return Failed(message=message)
    name = "Sent" if any(one.status == "sent" for one in sent) else "Skipped"
    return Completed(name="Held" if any(one.status == "held" for one in sent) else name, message=message)


def _failed(sent: Sequence[AlertRecord]) -> bool:
    """Whether nobody has been reached. A channel that failed where another one took it is told in the message."""
    return any(one.status == "failed" for one in sent) and not any(one.status == "sent" for one in sent)


def make(runbook: Runbook) -> Flow[..., Any]:
    """The flow of a runbook."""
    acting = {step.strategy: strategy_task(step) for step in runbook.steps}
    noting = {step.strategy: noted_task(step.strategy) for step in runbook.steps}

    @flow(name=runbook.name, description=runbook.description or None, **FLOW)
    async def run(error_id: str) -> State[Any]:
        """Recover an error, or recover it again.

        Args:
            error_id: id of the error, as ErrorLog and the service know it
        """
        async with bootstrap.current() as dependencies:
            return await _run(dependencies, runbook, error_id, acting, noting)

    return run


async def _run(
    dependencies: Dependencies,
    runbook: Runbook,
    error_id: str,
    acting: dict[str, Task[..., Any]],
    noting: dict[str, Task[..., Any]],
) -> State[Any]:
    context = get_run_context()
    assert isinstance(context, FlowRunContext) and context.flow_run is not None  # noqa: S101, PT018 (a flow runs)
    recovery = await _begun(dependencies, runbook, error_id, context.flow_run)
    _recovery.set(recovery)
    _acted.set({})
    closes_itself = not attach(recovery)
    try:
        async with recovery.leased():
            try:
                state = await _recover(recovery, acting, noting)
            except (StaleEpoch, Unavailable):
                raise
            except Exception as error:
                # An error of ours must not leave the caller waiting, nor be read as a verdict on the application.
                if not recovery.record.status.final:
                    await recovery.abandon(f"Upright failed: {type(error).__name__}: {error}")
                    await _tell()
                raise
        if closes_itself:
            await recovery.close()
    except (StaleEpoch, Unavailable) as error:
        # Another process goes on with this very run, or whoever takes it up when the database is back and the lease
        # has run out: leave its state alone.
        raise Abort(str(error)) from error
    return state


async def _begun(dependencies: Dependencies, runbook: Runbook, error_id: str, run: FlowRun) -> Recovery:
    """Waits for the database, since nothing is known of a run that has not begun."""
    patience = time.monotonic() + DATABASE_PATIENCE_S
    while True:
        try:
            return await Recovery.begin(
                dependencies, error_id, runbook=runbook.name, flow_run_id=run.id, attempt=run.run_count
            )
        except Unavailable:
            if time.monotonic() > patience:
                raise
            await asyncio.sleep(0.5)


async def _recover(
    recovery: Recovery, acting: dict[str, Task[..., Any]], noting: dict[str, Task[..., Any]]
) -> State[Any]:
    resumed = list(recovery.actions)
    ranking: Ranking | None = None
    if not recovery.record.status.final:
        await score()
        ranking = recovery.ranking
        tried = list(ranking.tried) if ranking is not None else []
        if not any(action.verdict is Verdict.RECOVERED for action in resumed):
            for index, choice in enumerate(tried):
                action = await _attempt(recovery, acting[choice.strategy], index, choice)
                if action is not None and action.verdict is Verdict.RECOVERED:
                    break
        await recovery.conclude()
    record = recovery.record

    # The caller has its answer. The rest is for the people who read this run.
    for action in resumed:
        verdict = reporting.VERDICTS[action.verdict]
        await noting[action.strategy]("Cached", f"{verdict}, before the run was taken up again")
    for choice in ranking.skipped if ranking is not None else []:
        name = "Refused" if recovery.record.withheld else "Skipped"
        await noting[choice.strategy](name, choice.unmet or "")
    await recovery.converge()
    await _tell()
    try:
        await _describe(recovery)
    except Exception as error:
        # What is known of the application doesn't depend on whether Prefect takes the report.
        get_run_logger().warning("The report could not be kept: %r", error)
    if record.status is Status.RECOVERED:
        return Completed(message=record.message)
    if record.status is Status.CANCELLED:
        return Cancelled(message=record.message)
    return Failed(name=NOT_VERIFIED if record.status is Status.UNKNOWN else NOT_RECOVERED, message=record.message)


async def _tell() -> None:
    # A mail server or a chat that hangs keeps no other error from being recovered.
    async with aside():
        if _recovery.get().relapsed is not None:
            await relapse(return_state=True)
        await alert(return_state=True)
        await escalate(return_state=True)


async def _attempt(recovery: Recovery, act: Task[..., Any], index: int, choice: Choice) -> ActionRecord | None:
    _acted.get().pop(choice.strategy, None)
    question = await recovery.question(choice)
    if question is not None:
        async with aside():
            await ask(choice.strategy, question, return_state=True)
        await decided(recovery.dependencies.store, question)
    state: State[Any] = await act(index, return_state=True)
    acted = _acted.get().get(choice.strategy)
    if acted is None:
        return await recovery.give_up(choice, state.message or state.name or "failed")
    if acted.settled is not None:
        return None
    state = await verify(choice.strategy, return_state=True)
    action = recovery.finished(choice.strategy)
    return action or await recovery.give_up(choice, state.message or state.name or "failed")


def _run_id() -> str:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context is not None and context.flow_run is not None else ""


async def _describe(recovery: Recovery) -> None:
    """The report as an artifact; name and tags for a run that was made in the UI, which lacks them."""
    artifact = MarkdownArtifact(
        key=f"error-{recovery.record.error_id}", markdown=recovery.report(), description=recovery.record.message
    )
    async with AsyncClientContext.get_or_create() as context:
        await artifact.acreate(context.client)
        name, tags = run_name(recovery.event), run_tags(recovery.event, recovery.record.severity)
        run = FlowRunContext.get()
        if run is not None and run.flow_run is not None and not set(tags) <= set(run.flow_run.tags):
            await context.client.update_flow_run(run.flow_run.id, name=name, tags=sorted({*run.flow_run.tags, *tags}))


for _one in runbook_files.load(PROJECT):
    _name = _one.name.replace("-", "_")
    if _name in globals():
        raise ConfigurationError(f"The runbook {_one.name!r} needs another name: flows/runbook.py has this one itself.")
    globals()[_name] = make(_one)
