"""A run waits for a person. Question and answer are in the store: whichever way an answer comes, the first one stands.

While it waits, the run is Paused in Prefect, with a form for its answer. An answer that came another way (command line,
link, or none in time) resumes the run on that person's behalf. A run that is taken up again asks the store first, then
looks for an answer to the form that nobody was there to read.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Literal
from uuid import UUID, uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import AsyncClientContext, FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from pydantic import Field, ValidationError

from upright.adapters.runner.execution import waiting
from upright.services.guardrails import Approval, GuardStore

logger = logging.getLogger("upright.runner")

POLL_S = 1.0
_MARGIN_S = 600
"""Prefect's own time-out is never the first."""
_INPUTS = 1000


class Decision(RunInput):
    """The form in the Prefect UI."""

    decision: Literal["approve", "reject"]
    by: Annotated[str, Field(min_length=1, max_length=200, title="Your name")]
    why: Annotated[str, Field(max_length=2000, title="Why")] = ""


async def decided(store: GuardStore, question: Approval) -> Approval:
    """What a person said, or that nobody did in time. The run's place is given to others meanwhile."""
    context = FlowRunContext.get()
    run_id = context.flow_run.id if context is not None and context.flow_run is not None else None
    if run_id is None:
        raise RuntimeError("only a flow run waits for approval")
    async with AsyncClientContext.get_or_create() as shared, waiting():
        await _take_form(store, shared.client, run_id, question)
        resuming = asyncio.create_task(_resume_when_decided(store, shared.client, run_id, question.id))
        try:
            given = await _paused(question)
            if given is not None:
                await _decide(store, question, given)
        except Exception as error:
            # Prefect is away; the store takes answers all the same, and Prefect's form is read when it is back.
            logger.warning("Run %s waits for approval outside Prefect's pause: %r", run_id, error)
        finally:
            resuming.cancel()
            await asyncio.gather(resuming, return_exceptions=True)
        while (answer := await store.approval(question.id)).status == "waiting":
            await asyncio.sleep(POLL_S)
            await _take_form(store, shared.client, run_id, question)
        return answer


async def _paused(question: Approval) -> Decision | None:
    form = Decision.with_initial_data(description=described(question))
    return await apause_flow_run(
        wait_for_input=form,
        timeout=round(max(1.0, question.expires_in_s) + _MARGIN_S),
        poll_interval=round(POLL_S),
        # Prefect takes each key once, and a run that is taken up again asks anew.
        key=f"{_key(question)}-{uuid4().hex[:8]}",
    )


def described(question: Approval) -> str:
    values = ", ".join(f"`{name}` = `{value}`" for name, value in question.values.items())
    return (
        f"**{question.strategy}** in `{question.service}` (runbook `{question.runbook}`): {question.plan}\n\n"
        f"{values}\n\nExpires at {question.expires_at:%Y-%m-%d %H:%M:%S %Z}."
    )


async def _resume_when_decided(store: GuardStore, client: PrefectClient, run_id: UUID, approval_id: UUID) -> None:
    while True:
        await asyncio.sleep(POLL_S)
        try:
            answer = await store.approval(approval_id)
            if answer.status != "waiting" and await _resume(client, run_id, answer):
                return
        except ObjectNotFound:
            return
        except Exception as error:
            logger.warning("Run %s can't be resumed yet: %r", run_id, error)


async def _resume(client: PrefectClient, run_id: UUID, answer: Approval) -> bool:
    run = await client.read_flow_run(run_id)
    if run.state is None or not run.state.is_paused():
        return False
    decision = "approve" if answer.status == "approved" else "reject"
    given = {"decision": decision, "by": answer.decided_by or "nobody", "why": answer.why or answer.status}
    response = await client.resume_flow_run(run_id, run_input=given)
    return response.status is SetStateStatus.ACCEPT


async def _take_form(store: GuardStore, client: PrefectClient, run_id: UUID, question: Approval) -> None:
    """An answer to the form that no process was there to read."""
    try:
        inputs = await client.filter_flow_run_input(
            run_id, key_prefix=f"paused-{_key(question)}-", limit=_INPUTS, exclude_keys=set()
        )
    except Exception as error:
        logger.warning("Prefect does not say whether run %s was answered: %r", run_id, error)
        return
    for one in inputs:
        if one.key.endswith("-response"):
            try:
                await _decide(store, question, Decision.model_validate_json(one.value))
            except ValidationError:
                logger.warning("An answer to run %s can't be read", run_id)


async def _decide(store: GuardStore, question: Approval, given: Decision) -> None:
    # What was resumed on someone's behalf is decided already, and stays as it is.
    await store.decide(question.id, approve=given.decision == "approve", by=given.by, via="prefect", why=given.why)


def _key(question: Approval) -> str:
    return f"approval-{question.id.hex}"
