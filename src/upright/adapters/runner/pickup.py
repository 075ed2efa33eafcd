"""Runs that were made elsewhere: in the Prefect UI, on its command line, by its API.

Events are the wake-up, a poll is the truth: events may be dropped, and don't announce future runs. First to set a run
to Pending has it, which Prefect's server arbitrates among all replicas and stock workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Pending

logger = logging.getLogger("upright.runner")

POLL_S = 4.0
"""Between polls when no event comes."""
RECONNECT_S = 2.0
PREFIX = "prefect.flow-run."
CANCELLING = f"{PREFIX}Cancelling"
WAKING = tuple(f"{PREFIX}{name}" for name in ("Scheduled", "AwaitingRetry", "Resuming", "Late"))


async def listen(wake: Callable[[], None], cancel: Callable[[UUID], None]) -> None:
    """Call `wake` when a run may be waiting, `cancel` when one is to stop. Runs until it is cancelled."""
    wanted = EventFilter(event=EventNameFilter(name=[*WAKING, CANCELLING]))
    while True:
        try:
            async with get_events_subscriber(filter=wanted) as events:
                wake()
                async for event in events:
                    if event.event == CANCELLING:
                        cancel(UUID(event.resource.id.removeprefix(PREFIX)))
                    else:
                        wake()
        except Exception as error:
            logger.info("Prefect's events are away, polling meanwhile: %s", error)
        await asyncio.sleep(RECONNECT_S)


async def waiting(client: PrefectClient, work_pool: str) -> tuple[list[FlowRun], float]:
    """Runs that are due now, earliest first, and the seconds until it makes sense to ask again."""
    now = datetime.now(UTC)
    soon = now + timedelta(seconds=POLL_S)
    found = await client.get_scheduled_flow_runs_for_work_pool(work_pool, scheduled_before=soon)
    due: list[FlowRun] = []
    pause_s = POLL_S
    for response in found:
        run = response.flow_run
        start = run.next_scheduled_start_time
        wait_s = start.timestamp() - now.timestamp() if start is not None else 0.0
        if wait_s <= 0:
            due.append(run)
        else:
            pause_s = min(pause_s, wait_s)
    return due, pause_s


async def claim(client: PrefectClient, flow_run_id: UUID) -> FlowRun | None:
    """The run, if it is ours now; None if someone else was faster, or it is gone."""
    try:
        answer = await client.set_flow_run_state(flow_run_id, Pending(message="Taken by Upright's runner"))
        if answer.status is not SetStateStatus.ACCEPT or answer.state is None or not answer.state.is_pending():
            return None
        return await client.read_flow_run(flow_run_id)
    except ObjectNotFound:
        return None


async def cancelled(client: PrefectClient, running: Iterable[UUID]) -> list[UUID]:
    """Those of our runs that are to stop: what the events would have told."""
    ids = list(running)
    if not ids:
        return []
    found = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            id=FlowRunFilterId(any_=ids),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLING])),
        )
    )
    return [run.id for run in found]
