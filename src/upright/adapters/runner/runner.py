"""The runner: starts flow runs for accepted errors, picks up those made in the UI, takes over those left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Pending

from upright.adapters.runner import pickup, takeover
from upright.adapters.runner.admission import Admission
from upright.adapters.runner.deployments import Deployed, register
from upright.adapters.runner.execution import Execution, execute
from upright.adapters.runner.naming import run_name, run_tags
from upright.domain.verdict import Status
from upright.errors import StaleEpoch, Unavailable, UprightError
from upright.services import alerts
from upright.services.dependencies import Dependencies, provide
from upright.services.ports import RecoveryRecord
from upright.services.recovery import Recovery, leased

logger = logging.getLogger("upright.runner")
Answer = TypeVar("Answer")

HEARTBEAT_S = 15.0
RETRY_S = 1.0
"""Before starting a run is tried again, when Prefect's API does not answer."""
MAX_EPOCH = 6
"""A recovery that has been taken over this often takes its processes down with it."""
GRACE_S = 5.0
"""What running recoveries get to end by themselves when the service stops."""


class PrefectRunner:
    """A Launcher. `async with runner.running():` for the life of the service, on one event loop, which must not be the
    main thread's: there, Prefect's engine would put its own SIGTERM handler in place during each run."""

    def __init__(self, dependencies: Dependencies, project: Path) -> None:
        self._dependencies = dependencies
        self._store = dependencies.store
        self._settings = dependencies.settings
        self._project = project
        self._admission = Admission(dependencies.settings.max_concurrent_recoveries)
        self._executions: dict[UUID, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._deployed: dict[str, Deployed] = {}
        self._flows: dict[UUID, Flow[..., Any]] = {}
        self.registered = asyncio.Event()
        """Whether flows and deployments are known to Prefect."""
        self._admit, self._poll = asyncio.Event(), asyncio.Event()
        self._client: PrefectClient | None = None
        self._stopping = False
        self._passed_over: set[UUID] = set()
        self._overdue = False
        """Whether runs from the UI wait for room."""

    # What the intake and the flows call

    def submit(self, recovery: RecoveryRecord) -> None:
        """Start the recovery's flow run as soon as there is room; never blocks."""
        self._admission.add(recovery)
        self._admit.set()

    @property
    def has_room(self) -> bool:
        """Whether a recovery that is submitted now starts at once."""
        return self._admission.room > self._admission.waiting

    @property
    def problem(self) -> str:
        """What keeps it from running recoveries, or ""."""
        if self._stopping:
            return "stopping"
        return "" if self.registered.is_set() else "Prefect's API has not answered yet"

    @property
    def deployed(self) -> dict[str, Deployed]:
        return self._deployed

    # Life

    @contextlib.asynccontextmanager
    async def running(self, *, wait: bool = True) -> AsyncGenerator[asyncio.Task[None]]:
        """Registers the project with Prefect, then works until the block ends. Enters when that is done, or at once
        if not `wait`. Gives the runner's task, which only ends by itself if it fails."""
        main = asyncio.create_task(self._main(), name="upright-runner")
        try:
            if wait:
                registered = asyncio.create_task(self.registered.wait())
                await asyncio.wait({main, registered}, return_when=asyncio.FIRST_COMPLETED)
                registered.cancel()
                if main.done():
                    await main
            yield main
        finally:
            main.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await main

    async def _main(self) -> None:
        # One client for all runs: each new one would build an SSL context. The engine finds it in the context of this
        # task, from which every run's task descends.
        provide(self._dependencies)
        async with AsyncClientContext.get_or_create() as shared:
            with SyncClientContext.get_or_create():
                self._client = client = shared.client
                await self._register(client)
                self.registered.set()
                loops = [
                    self._admitting(),
                    self._picking_up(client),
                    self._repeat(self._settings.reconcile_s, self._reconcile),
                    self._repeat(HEARTBEAT_S, self._heartbeat),
                    pickup.listen(self._poll.set, self._cancel),
                ]
                tasks = [asyncio.create_task(one) for one in loops]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    self._stopping = True
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    await self._drain()

    async def _register(self, client: PrefectClient) -> None:
        while True:
            try:
                book, pool = self._dependencies.book, self._settings.work_pool
                self._deployed = await register(client, self._project, book, pool)
                self._flows = {one.deployment_id: one.flow for one in self._deployed.values()}
                return
            except UprightError:
                raise
            except Exception as error:
                logger.warning("Prefect's API does not answer yet: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _drain(self) -> None:
        """Let running recoveries end; hand on those that don't."""
        idle = [one for one in self._executions.values() if one.waiting and one.task is not None]
        if busy := self._tasks - {one.task for one in idle}:
            await asyncio.wait(busy, timeout=GRACE_S)
        left = [one.recovery_id for one in self._executions.values() if one.recovery_id is not None]
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if left:
            with contextlib.suppress(Exception):
                await self._store.renew(self._dependencies.runner, left, 0)

    async def _repeat(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                logger.warning("%s failed, trying again in %g s: %r", work.__name__, interval_s, error)
            await asyncio.sleep(interval_s)

    async def _heartbeat(self) -> None:
        assert self._client is not None  # noqa: S101 (set before any loop starts)
        await self._client.send_worker_heartbeat(
            self._settings.work_pool, self._dependencies.runner, heartbeat_interval_seconds=HEARTBEAT_S
        )

    # Accepted errors

    async def _admitting(self) -> None:
        while True:
            await self._admit.wait()
            self._admit.clear()
            while (recovery := self._admission.next()) is not None:
                self._spawn(self._launch(recovery), recovery.id)

    def _spawn(self, work: Any, recovery_id: UUID | None) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def finished(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._admission.release(recovery_id)
            self._room_for_others()
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("A run failed outside its flow: %r", error, exc_info=error)

        task.add_done_callback(finished)

    async def _launch(self, recovery: RecoveryRecord) -> None:
        """Create the flow run under its deployment, already Pending, so that nobody else picks it up; then run it."""
        assert self._client is not None  # noqa: S101 (set before any loop starts)
        recovery = await self._store.recovery(recovery.id)
        if recovery.status.final or recovery.flow_run_id is not None:
            return  # another replica was faster
        event = await self._store.event_of(recovery.error_id, recovery.tenant)
        if recovery.runbook not in self._deployed:
            await self._end(recovery, Status.NOT_RECOVERED, f"There is no runbook named {recovery.runbook!r} any more")
            return

        async def create(client: PrefectClient) -> FlowRun:
            return await client.create_flow_run_from_deployment(
                self._deployed[recovery.runbook].deployment_id,
                parameters={"error_id": str(recovery.error_id)},
                state=Pending(message="Taken by Upright's runner"),
                name=run_name(event),
                tags=run_tags(event, recovery.severity),
            )

        async def again(client: PrefectClient) -> FlowRun:
            try:
                return await create(client)
            except PrefectHTTPStatusError as error:
                if error.response.status_code != HTTPStatus.NOT_FOUND:
                    raise
                logger.warning("The deployment of %s is gone from Prefect; registering again", recovery.runbook)
                await self._register(client)
                return await create(client)

        flow_run = await self._patiently(again)
        try:
            bound = await self._bind(recovery, flow_run)
        except StaleEpoch as error:
            await self._client.set_flow_run_state(flow_run.id, Cancelled(message=f"Not needed: {error}"), force=True)
            return
        await self._run(self._deployed[recovery.runbook].flow, flow_run, bound.id)

    async def _bind(self, recovery: RecoveryRecord, flow_run: FlowRun) -> RecoveryRecord:
        """Tried until the database answers: whether a binding that got no answer holds can't be known."""
        runner, lease_s = self._dependencies.runner, self._settings.lease_s
        while True:
            try:
                return await self._store.bind(recovery.id, flow_run_id=flow_run.id, runner=runner, lease_s=lease_s)
            except Unavailable as error:
                logger.warning("A run could not be bound, trying again in %g s: %s", RETRY_S, error)
                await asyncio.sleep(RETRY_S)

    async def _patiently(self, call: Callable[[PrefectClient], Awaitable[Answer]]) -> Answer:
        """Until Prefect's API answers."""
        assert self._client is not None  # noqa: S101 (set before any loop starts)
        while True:
            try:
                return await call(self._client)
            except takeover.Ended:
                raise
            except Exception as error:
                logger.warning("Prefect's API took no run, trying again in %g s: %s", RETRY_S, error)
                await asyncio.sleep(RETRY_S)

    async def _run(self, flow: Flow[..., Any], flow_run: FlowRun, recovery_id: UUID | None) -> None:
        assert self._client is not None  # noqa: S101 (set before any loop starts)
        execution = Execution(flow_run.id, asyncio.current_task(), recovery_id=recovery_id, step_out=self._stepping_out)
        self._executions[flow_run.id] = execution
        try:
            state = await execute(self._client, flow, flow_run, execution)
            recovery = execution.recovery
            if recovery is not None and (state is not None or execution.cancelling):
                await recovery.close()
        except Exception as error:
            logger.warning("Flow run %s failed: %r", flow_run.id, error)
        finally:
            if self._executions.get(flow_run.id) is execution:
                del self._executions[flow_run.id]

    @contextlib.asynccontextmanager
    async def _stepping_out(self) -> AsyncGenerator[None]:
        self._admission.step_out()
        self._room_for_others()
        try:
            yield
        finally:
            await self._admission.return_()

    def _room_for_others(self) -> None:
        self._admit.set()
        if self._overdue:
            self._poll.set()

    def _cancel(self, flow_run_id: UUID) -> None:
        execution = self._executions.get(flow_run_id)
        if execution is not None:
            execution.cancel()

    # Runs made in the UI

    async def _picking_up(self, client: PrefectClient) -> None:
        while True:
            self._poll.clear()
            pause_s = pickup.POLL_S
            try:
                for flow_run_id in await pickup.cancelled(client, list(self._executions)):
                    self._cancel(flow_run_id)
                due, pause_s = await pickup.waiting(client, self._settings.work_pool)
                self._overdue = False
                for run in due:
                    flow = self._flows.get(run.deployment_id) if run.deployment_id is not None else None
                    if flow is None:
                        continue
                    if not self._admission.take():
                        self._overdue = True
                        break
                    self._spawn(self._claim_and_run(client, flow, run.id), None)
            except Exception as error:
                logger.warning("Polling for runs failed, trying again in %g s: %s", pause_s, error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poll.wait(), pause_s)

    async def _claim_and_run(self, client: PrefectClient, flow: Flow[..., Any], flow_run_id: UUID) -> None:
        run = await pickup.claim(client, flow_run_id)
        if run is not None:
            await self._run(flow, run, None)

    # What others have left

    async def _reconcile(self) -> None:
        """Take over what a dead process left, and queued errors that nobody has told us of."""
        room = self._admission.room
        if not room:
            return
        runner, lease_s = self._dependencies.runner, self._settings.lease_s
        for recovery in await self._store.take_expired(runner, lease_s, room):
            await self._forget_own(recovery.id)
            if self._admission.knows(recovery.id):
                continue  # it waits in our own queue
            if self._admission.take(recovery.id):
                self._spawn(self._resume(recovery), recovery.id)
        # A queued one belongs to the replica that accepted it, until it has let a turn pass.
        queued = await self._store.queued(self._admission.room)
        for recovery in queued:
            if recovery.id in self._passed_over:
                self._admission.add(recovery)
        self._passed_over = {recovery.id for recovery in queued}
        if self._admission.waiting:
            self._admit.set()

    async def _forget_own(self, recovery_id: UUID) -> None:
        """Our own lease ran out (this process was stopped for a while): end that run before it is taken up again."""
        for execution in list(self._executions.values()):
            if execution.recovery_id == recovery_id and execution.task is not None:
                execution.task.cancel()
                await asyncio.wait({execution.task})

    async def _resume(self, recovery: RecoveryRecord) -> None:
        assert self._client is not None  # noqa: S101 (set before any loop starts)
        deployed = self._deployed.get(recovery.runbook)
        if recovery.epoch > MAX_EPOCH or deployed is None:
            why = "its runbook is gone" if deployed is None else "its processes died again and again"
            await self._end(recovery, Status.UNKNOWN, f"Given up: {why}")
            return
        try:
            # That the API is away is no reason to take it over again and again.
            async with leased(self._dependencies, recovery.id):
                run = await self._patiently(lambda client: takeover.reopen(client, recovery))
        except takeover.Ended as ended:
            await self._end(recovery, Status.CANCELLED if ended.cancelled else Status.UNKNOWN, str(ended))
            return
        if run is not None:
            await self._run(deployed.flow, run, recovery.id)
        elif recovery.flow_run_id is None:
            await self._launch(recovery)

    async def _end(self, recovery: RecoveryRecord, status: Status, why: str) -> None:
        """Conclude a recovery that no flow run will, and tell people; whatever its predecessors put in force expires by
        itself."""
        try:
            if not recovery.status.final:
                recovery = await self._store.conclude(
                    recovery.id, epoch=recovery.epoch, status=status, message=why, explanation={}
                )
        except StaleEpoch:
            return
        if recovery.runbook in self._deployed:
            event = await self._store.event_of(recovery.error_id, recovery.tenant)
            book = self._dependencies.book
            ended = Recovery(self._dependencies, recovery, event, book.runbook(recovery.runbook))
            await alerts.send("alert", ended)
            await alerts.send("escalation", ended)
        await self._store.close(recovery.id, epoch=recovery.epoch)
