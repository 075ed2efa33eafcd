"""What the runner relies on in Prefect that Prefect does not promise: one test for each seam."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect import Flow, flow, flow_engine
from prefect.client.orchestration import PrefectClient
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.exceptions import Abort, Pause
from prefect.flow_engine import run_flow_async
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Pending

from upright.adapters import runbook_files
from upright.adapters.engines import EmbeddedPrefect
from upright.adapters.runner import deployments, pickup
from upright.adapters.runner.deployments import BASE_JOB_TEMPLATE, load_flows, register
from upright.errors import ConfigurationError

PROJECT = Path(__file__).parents[2]
BOOK = runbook_files.load(PROJECT)


@pytest.fixture
async def client(prefect_server: EmbeddedPrefect) -> AsyncIterator[PrefectClient]:
    async with AsyncClientContext() as context:
        yield context.client


def test_the_version_is_the_one_that_the_seams_were_read_in() -> None:
    assert prefect.__version__ == "3.8.8"


@pytest.mark.parametrize("runbook", [one.name for one in BOOK])
def test_every_entrypoint_loads_without_a_placeholder(runbook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    loaded = load_flow_from_entrypoint(deployments.entrypoint(runbook), use_placeholder_flow=False)
    assert loaded.name == runbook
    assert list(inspect.signature(loaded.fn).parameters) == ["error_id"]


def test_flows_of_one_file_are_loaded_together() -> None:
    assert list(load_flows(PROJECT, BOOK)) == [one.name for one in BOOK]


@pytest.mark.parametrize(
    ("flows", "told"),
    [
        (None, "The runbook 'score' needs another name"),
        ("from prefect import flw\n", "cannot import name 'flw'"),
    ],
)
def test_flows_that_can_not_be_loaded_are_told(tmp_path: Path, flows: str | None, told: str) -> None:
    for name in ("flows", "runbooks"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    if flows is None:
        (tmp_path / "runbooks" / "mine.yaml").write_text("name: score\nsteps: [{strategy: retry}]\n")
    else:
        (tmp_path / "flows" / "runbook.py").write_text(flows)
    with pytest.raises(ConfigurationError, match=told) as caught:
        load_flows(tmp_path, runbook_files.load(tmp_path))
    assert "flows/runbook.py" in str(caught.value)


async def test_deployments_are_those_of_prefect_deploy(client: PrefectClient) -> None:
    deployed = await register(client, PROJECT, BOOK, "upright")
    again = await register(client, PROJECT, BOOK, "upright")
    assert {name: one.deployment_id for name, one in deployed.items()} == {
        name: one.deployment_id for name, one in again.items()
    }
    pool = await client.read_work_pool("upright")
    assert (pool.type, pool.base_job_template) == ("process", BASE_JOB_TEMPLATE)
    found = await client.read_deployment_by_name("database-error/database-error")
    assert found.entrypoint == "flows/runbook.py:database_error"
    assert found.work_pool_name == "upright"
    assert found.enforce_parameter_schema
    assert found.parameter_openapi_schema["required"] == ["error_id"]
    assert found.pull_steps == [
        {"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT.resolve())}}
    ]


async def test_a_run_may_be_created_pending_and_is_nobody_elses(client: PrefectClient) -> None:
    deployed = await register(client, PROJECT, BOOK, "upright")
    run = await client.create_flow_run_from_deployment(
        deployed["low-fallback"].deployment_id, parameters={"error_id": "x"}, state=Pending()
    )
    assert run.state is not None
    assert run.state.is_pending()
    assert run.deployment_id == deployed["low-fallback"].deployment_id
    due, _ = await pickup.waiting(client, "upright")
    assert run.id not in [one.id for one in due]
    assert await pickup.claim(client, run.id) is None
    await client.delete_flow_run(run.id)


async def test_one_of_many_claims_wins(client: PrefectClient) -> None:
    deployed = await register(client, PROJECT, BOOK, "upright")
    run = await client.create_flow_run_from_deployment(
        deployed["low-fallback"].deployment_id, parameters={"error_id": "x"}
    )
    claims = await asyncio.gather(*(pickup.claim(client, run.id) for _ in range(5)))
    assert len([one for one in claims if one is not None]) == 1
    await client.delete_flow_run(run.id)


async def test_a_run_without_deployment_starts_no_observer_and_reuses_the_client(
    client: PrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def observe(*_: Any) -> None:
        pytest.fail("the engine observes suspension, in a thread of its own")

    monkeypatch.setattr(flow_engine, "observe_flow_run_suspension", observe)

    @flow(name="seam", persist_result=False)
    async def seam() -> None:
        context = AsyncClientContext.get()
        seen["client"] = context.client if context is not None else None

    deployed = await register(client, PROJECT, BOOK, "upright")
    run = await client.create_flow_run_from_deployment(
        deployed["low-fallback"].deployment_id, parameters={"error_id": "x"}, state=Pending()
    )
    with SyncClientContext.get_or_create():
        own = run.model_copy(update={"deployment_id": None})
        state = await run_flow_async(seam, flow_run=own, parameters={}, return_type="state")
    assert state is not None
    assert state.is_completed()
    assert seen["client"] is client
    kept = await client.read_flow_run(run.id)
    assert kept.deployment_id == deployed["low-fallback"].deployment_id
    await client.delete_flow_run(run.id)


async def test_a_copied_flow_runs_the_function_that_it_was_given() -> None:
    @flow(name="copied", persist_result=False)
    async def original() -> str:
        return "original"

    clone = copy.copy(original)

    async def other() -> str:
        return "other"

    clone.fn = other  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(clone, Flow)
    assert clone.isasync
    assert original.fn is not clone.fn


def test_signals_of_the_engine_pass_an_except_exception() -> None:
    """The flow raises Abort to leave a run's state alone, through code that catches Exception."""
    assert not issubclass(Abort, Exception)
    assert not issubclass(Pause, Exception)


def test_the_job_template_is_small_and_valid() -> None:
    from prefect.workers.process import ProcessJobConfiguration

    assert len(json.dumps(BASE_JOB_TEMPLATE)) < 600
    assert set(BASE_JOB_TEMPLATE["job_configuration"]) <= set(ProcessJobConfiguration.model_fields)
