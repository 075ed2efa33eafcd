"""One flow run, executed in this process.

Prefect's engine is called as its own workers call it, with two differences. The `FlowRun` that it is given carries no
deployment, since for one that does the engine starts a thread with an event loop and a websocket of its own, which
costs a quarter of a second; the server's record keeps its deployment. And a cancelled run returns a Cancelled state,
where the engine by itself would call it crashed.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import run_flow_async
from prefect.states import Cancelled

from upright.services.recovery import Recovery

CANCELLED = "Cancelled in Prefect"

_current: ContextVar[Execution | None] = ContextVar("execution", default=None)


@dataclass
class Execution:
    """A flow run in progress."""

    flow_run_id: UUID
    task: asyncio.Task[None] | None = None
    recovery: Recovery | None = None
    """Known once the flow has begun it."""
    recovery_id: UUID | None = None
    cancelling: bool = False
    step_out: Callable[[], AbstractAsyncContextManager[None]] | None = None
    """Gives the place of this run to others while it only waits."""
    waiting: bool = False
    """Whether it does."""
    settled: bool = field(default=False)
    """Whether a cancellation has become a Cancelled state."""

    def cancel(self) -> None:
        """Stop it, as its user asked. Once: the engine's own Cancelling state comes back as an event."""
        if not self.cancelling and self.task is not None:
            self.cancelling = True
            self.task.cancel()


def attach(recovery: Recovery) -> bool:
    """Called by a flow that has begun its recovery: what a cancellation is to clean up, and the runner to close once
    the run has its final state. False in a stock worker, where cancelling ends the process and the lease brings the
    recovery to an end."""
    execution = _current.get()
    if execution is not None:
        execution.recovery, execution.recovery_id = recovery, recovery.record.id
    return execution is not None


@contextlib.asynccontextmanager
async def waiting() -> AsyncGenerator[None]:
    """While the block runs, this run only waits for a person, and others may have its place."""
    execution = _current.get()
    if execution is None or execution.step_out is None:
        yield
        return
    async with execution.step_out():
        execution.waiting = True
        try:
            yield
        finally:
            execution.waiting = False


@contextlib.asynccontextmanager
async def aside() -> AsyncGenerator[None]:
    """While the block runs, others may have the place of this run: its recovery has its verdict, or waits for people
    to hear of it. Unlike a run that waits for an answer, it is let end when the service stops."""
    execution = _current.get()
    if execution is None or execution.step_out is None:
        yield
        return
    async with execution.step_out():
        yield


async def execute(
    client: PrefectClient, flow: Flow[..., Any], flow_run: FlowRun, execution: Execution
) -> State[Any] | None:
    """Run it to its end, inside the client contexts of the caller. None where the server told us to leave it alone."""
    own = flow_run.model_copy(update={"deployment_id": None})
    _current.set(execution)
    try:
        return await run_flow_async(
            cancellable(flow, execution), flow_run=own, parameters=flow_run.parameters, return_type="state"
        )
    except (Abort, Pause):
        return None
    except asyncio.CancelledError:
        if not execution.cancelling:
            raise
        _absorb()
        if not execution.settled:
            await client.set_flow_run_state(flow_run.id, await _cancelled(execution), force=True)
        return None


def cancellable(flow: Flow[..., Any], execution: Execution) -> Flow[..., Any]:
    """A copy of the flow that turns a wanted cancellation into a Cancelled state."""
    body: Callable[..., Awaitable[Any]] = flow.fn

    @functools.wraps(body)
    async def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return await body(*args, **kwargs)
        except asyncio.CancelledError:
            if not execution.cancelling:
                raise
            _absorb()
            return await _cancelled(execution)

    clone = copy.copy(flow)
    clone.fn = run
    return clone


async def _cancelled(execution: Execution) -> State[Any]:
    execution.settled = True
    recovery = execution.recovery
    if recovery is not None and not recovery.record.status.final:
        with contextlib.suppress(Exception):
            await recovery.cancel(CANCELLED)
    return Cancelled(message=CANCELLED)


def _absorb() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
