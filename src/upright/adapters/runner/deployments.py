"""Flows, deployments and the work pool of a project, registered with Prefect: what `prefect deploy --all` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from upright.errors import ConfigurationError
from upright.services.book import Book

FLOW_FILE = Path("flows") / "runbook.py"
TRAINING_FILE = Path("flows") / "train.py"
SCHEDULE_FIELDS = {"schedule", "active", "max_scheduled_runs", "parameters", "slug"}
TRAINING, TRAINING_FUNCTION = "train-models", "train_models"

# Validating job variables against the pool's template is over half of what creating a run costs the server.
BASE_JOB_TEMPLATE: dict[str, Any] = {
    "job_configuration": {"command": "{{ command }}", "env": "{{ env }}"},
    "variables": {
        "type": "object",
        "properties": {
            "command": {"type": "string", "title": "Command", "description": "Empty: Prefect's own."},
            "env": {"type": "object", "title": "Environment", "additionalProperties": {"type": "string"}},
        },
    },
}


@dataclass(frozen=True)
class Deployed:
    """A runbook's flow and its deployment."""

    runbook: str
    flow: Flow[..., Any]
    deployment_id: UUID


def entrypoint(runbook: str) -> str:
    return f"{FLOW_FILE.as_posix()}:{runbook.replace('-', '_')}"


def load_flows(project: Path, book: Book) -> dict[str, Flow[..., Any]]:
    """Every runbook's flow, by the runbook's name. The file is loaded once, as Prefect does it."""
    path = project.resolve() / FLOW_FILE
    if not path.is_file():
        raise ConfigurationError(f"{path}: missing; `upright init` makes a project")
    flows: dict[str, Flow[..., Any]] = {}
    first: Any = None
    for runbook in book:
        name = runbook.name.replace("-", "_")
        if first is None:
            try:
                first = load_flow_from_entrypoint(f"{path}:{name}", use_placeholder_flow=False)
            except Exception as error:  # it is the user's to edit
                cause = error.__cause__ or error
                raise ConfigurationError(f"{path} can't be loaded: {type(cause).__name__}: {cause}") from error
            flows[runbook.name] = first
        else:
            flows[runbook.name] = first.fn.__globals__[name]
    return flows


def _pull_steps(project: Path) -> list[dict[str, Any]]:
    """How a stock worker comes to the project: it is where the runner has it."""
    return [{"prefect.deployments.steps.set_working_directory": {"directory": str(project.resolve())}}]


async def register(client: PrefectClient, project: Path, book: Book, work_pool: str) -> dict[str, Deployed]:
    """By the runbook's name. Safe to repeat, and to do in several replicas at once."""
    await client.create_work_pool(
        WorkPoolCreate(
            name=work_pool,
            type="process",
            description="Runs Upright's runbooks: in its own warm process, or in a stock process worker.",
            base_job_template=BASE_JOB_TEMPLATE,
        ),
        overwrite=True,
    )
    deployed: dict[str, Deployed] = {}
    for name, flow in load_flows(project, book).items():
        flow_id = await client.create_flow(flow)
        deployment_id = await client.create_deployment(
            flow_id=flow_id,
            name=name,
            version=flow.version,
            description=flow.description,
            tags=["upright"],
            work_pool_name=work_pool,
            entrypoint=entrypoint(name),
            path=".",
            pull_steps=_pull_steps(project),
            parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
            enforce_parameter_schema=True,
        )
        deployed[name] = Deployed(name, flow, deployment_id)
    training = load_training(project)
    if training is not None:
        deployed[TRAINING] = await _register_training(client, training, project, work_pool)
    return deployed


def load_training(project: Path) -> Flow[..., Any] | None:
    """The flow that trains the scoring model; None in a project that has none."""
    path = project.resolve() / TRAINING_FILE
    if not path.is_file():
        return None
    return load_flow_from_entrypoint(f"{path}:{TRAINING_FUNCTION}", use_placeholder_flow=False)


async def _register_training(client: PrefectClient, flow: Flow[..., Any], project: Path, work_pool: str) -> Deployed:
    """Its schedule is ours only the first time: what was changed in Prefect's UI since stays."""
    try:
        existing = await client.read_deployment_by_name(f"{TRAINING}/{TRAINING}")
        # Registering anew would remove them.
        kept = [one.model_dump(exclude_unset=True, include=SCHEDULE_FIELDS) for one in existing.schedules]
        schedules = [DeploymentScheduleCreate.model_validate(one) for one in kept]
    except ObjectNotFound:
        nightly = CronSchedule(cron="17 3 * * *", timezone="UTC")
        schedules = [DeploymentScheduleCreate(schedule=nightly, active=True)]
    deployment_id = await client.create_deployment(
        flow_id=await client.create_flow(flow),
        name=TRAINING,
        version=flow.version,
        description=flow.description,
        schedules=schedules,
        tags=["upright"],
        work_pool_name=work_pool,
        entrypoint=f"{TRAINING_FILE.as_posix()}:{TRAINING_FUNCTION}",
        path=".",
        pull_steps=_pull_steps(project),
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
    )
    return Deployed(TRAINING, flow, deployment_id)
