"""Train the scoring model anew from what recoveries have taught, and let it act if the gate lets it.

Scheduled in prefect.yaml. What training is, is in `upright.services.learning`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from upright import bootstrap


@task(name="train", retries=1, retry_delay_seconds=10, timeout_seconds=1800, cache_policy=NO_CACHE)
async def train(tenant: str, promote: bool) -> State[Any]:
    async with bootstrap.library() as (library, _):
        version, trained = await library.train(tenant)
        refusals = "; ".join(trained.evaluation.refusals)
        if promote and trained.evaluation.passed:
            await library.promote(tenant, version.version, who="flow train-models")
    await create_markdown_artifact(key=f"model-{version.version}", markdown=version.card)  # pyright: ignore
    if refusals:
        return Completed(name="Kept", message=f"Model {version.version} does not act: {refusals}")
    done = "acts from now on" if promote else "may act"
    return Completed(name="Promoted" if promote else "Passed", message=f"Model {version.version} {done}")


@flow(name="train-models", retries=0)
async def train_models(tenant: str = "default", promote: bool = True) -> State[Any]:
    """Train a new version of a tenant's scoring model.

    Args:
        tenant: whose outcomes
        promote: let it act if the gate lets it
    """
    state = await train(tenant, promote, return_state=True)
    return Completed(message=state.message) if state.is_completed() else state
