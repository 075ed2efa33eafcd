"""A run whose process died goes on in another: the same flow run, so that its history stays in one place.

Its finished actions are in the store and are not done again (upright.services.recovery).
"""

from __future__ import annotations

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed, Scheduled

from upright.adapters.runner import pickup
from upright.services.ports import RecoveryRecord

_LEFT_OPEN = (StateType.RUNNING, StateType.PENDING, StateType.CRASHED, StateType.SCHEDULED, StateType.PAUSED)


class Ended(Exception):
    """The flow run has ended without its recovery having been concluded."""

    def __init__(self, state: str, *, cancelled: bool) -> None:
        super().__init__(f"Its flow run ended as {state} before there was a verdict")
        self.cancelled = cancelled


async def reopen(client: PrefectClient, recovery: RecoveryRecord) -> FlowRun | None:
    """The recovery's flow run, claimed for this process. None if it has none or another process claimed it first.

    Raises Ended.
    """
    if recovery.flow_run_id is None:
        return None
    try:
        run = await client.read_flow_run(recovery.flow_run_id)
    except ObjectNotFound:
        raise Ended("deleted", cancelled=False) from None
    kind = run.state.type if run.state is not None else StateType.PENDING
    if kind is StateType.CANCELLING:
        await client.set_flow_run_state(
            run.id, Cancelled(message="Its process died while it was being cancelled"), force=True
        )
        raise Ended("Cancelled", cancelled=True)
    if kind not in _LEFT_OPEN:
        name = run.state.name if run.state is not None else None
        raise Ended(name or kind.value, cancelled=kind is StateType.CANCELLED)
    if kind in (StateType.RUNNING, StateType.PENDING):
        await client.set_flow_run_state(run.id, Crashed(message="Its process gave no sign of life"), force=True)
    if kind is not StateType.SCHEDULED:
        await client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message="Taken up again"), force=True)
    return await pickup.claim(client, run.id)
