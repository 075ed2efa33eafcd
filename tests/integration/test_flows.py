"""A runbook as a Prefect flow: its tasks, its states, its report, on a real server and a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, TaskRun

from upright.adapters import default_project
from upright.adapters.engines import EmbeddedPrefect
from upright.domain.directive import Acknowledgement, Command, CommandResult
from upright.domain.verdict import Evidence, Status
from upright.services.ports import RecoveryRecord
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, error_event, page
from upright.testing.ports import ScriptedDispatch
from upright.testing.warm import Warm, until, warm

PROJECT = Path(__file__).parents[2]


class Application:
    """What waits, and what it sees after each command."""

    def __init__(self) -> None:
        self.outcomes: list[str | None] = []

    async def __call__(self, command: Command) -> CommandResult | None:
        outcome = self.outcomes.pop(0) if self.outcomes else "passed"
        kind = "retry" if command.kind == "retry" else "replay"
        evidence = Evidence.model_validate({"kind": kind, "outcome": outcome}) if outcome else None
        acknowledgements = [
            Acknowledgement(directive_id=one.id, version=one.version, status="applied", after=one.values)
            for one in command.directives
        ]
        return CommandResult(command_id=command.id, status="done", acknowledgements=acknowledgements, evidence=evidence)


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
async def here(
    fresh_postgres_url: str, prefect_server: EmbeddedPrefect, application: Application
) -> AsyncIterator[Warm]:
    async with warm(fresh_postgres_url, ScriptedDispatch(waiter=application), PROJECT) as found:
        yield found


@pytest.fixture
async def client(prefect_server: EmbeddedPrefect) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


async def flow_run(client: PrefectClient, recovery: RecoveryRecord) -> FlowRun:
    assert recovery.flow_run_id is not None
    return await finished(client, recovery.flow_run_id)


async def finished(client: PrefectClient, flow_run_id: UUID) -> FlowRun:
    async def final() -> FlowRun | None:
        run = await client.read_flow_run(flow_run_id)
        return run if run.state is not None and run.state.is_final() else None

    return await until(final)


async def tasks(client: PrefectClient, run: FlowRun, count: int) -> dict[str, str]:
    """Names of the task runs with their states' names. They are written a while after they ended."""

    async def all_of_them() -> list[TaskRun] | None:
        found = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        done = [one for one in found if one.state is not None and one.state.is_final()]
        return done if len(done) >= count else None

    found = await until(all_of_them)
    return {
        one.name: (one.state.name or "") if one.state else ""
        for one in sorted(found, key=lambda one: one.start_time or one.created)
    }  # type: ignore[arg-type, return-value]


async def artifact(client: PrefectClient, run: FlowRun) -> str:
    async def written() -> str | None:
        where = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        found = await client.read_artifacts(artifact_filter=where)
        return str(found[0].data) if found else None

    return await until(written)


def slow_query(**fields: Any) -> Any:
    return error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT, **fields)


async def test_a_recovered_error_leaves_a_run_that_tells_all_of_it(here: Warm, client: PrefectClient) -> None:
    event = slow_query()
    ended = await here.ended(await here.submit(event))
    assert ended.status is Status.RECOVERED
    run = await flow_run(client, ended)
    assert run.name == "OperationalError in django · report/<int:year>/"
    assert {"service:django", "error:OperationalError", "severity:critical"} <= set(run.tags)
    assert run.deployment_id == here.runner.deployed["database-error"].deployment_id
    assert run.parameters == {"error_id": str(event.error_id)}
    assert run.state is not None
    assert (run.state.is_completed(), run.state.message) == (True, "Recovery successful: Timeout Increase")
    assert await tasks(client, run, 7) == {
        "score": "Completed",
        "timeout_increase": "CarriedOut",
        "verify timeout_increase": "Recovered",
        "pool_increase": "Skipped",
        "cache_clear": "Skipped",
        "alert": "Skipped",
        "escalate": "Skipped",
    }
    report = await artifact(client, run)
    assert "# Recovered" in report
    assert "1. `timeout_increase`: 65% expected at 4 s" in report
    assert "the process has no connection pool" in report


async def test_what_was_not_repaired_ends_as_failed_and_says_so(
    here: Warm, client: PrefectClient, application: Application
) -> None:
    application.outcomes = ["failed"]
    ended = await here.ended(await here.submit(slow_query()))
    assert ended.status is Status.NOT_RECOVERED
    run = await flow_run(client, ended)
    assert run.state is not None
    assert (run.state.is_failed(), run.state.name) == (True, "NotRecovered")
    assert (await here.store.desired("default", "django"))[1] == []
    assert (await tasks(client, run, 7))["verify timeout_increase"] == "NotRecovered"
    made = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert [one.run_count for one in made if one.name == "verify timeout_increase"] == [1], "a verdict is not repeated"


async def test_a_relapse_has_a_run_of_its_own_that_tells_of_it(
    here: Warm, client: PrefectClient, application: Application
) -> None:
    first = await here.ended(await here.submit(slow_query()))
    application.outcomes = ["failed"]
    version = (await here.store.desired("default", "django"))[0]
    second = await here.ended(await here.submit(slow_query(desired_version=version)))
    assert second.relapse_of == first.id
    assert (await here.store.recovery(first.id)).status is Status.RELAPSED
    run = await flow_run(client, second)
    assert (await tasks(client, run, 7))["relapse"] == "Skipped"  # nobody had been told that it recovered
    told = await artifact(client, run)
    assert "A relapse: Recovery successful: Timeout Increase, in recovery" in told
    assert "; the error came back" in told


async def test_what_nobody_could_verify_is_never_green(
    here: Warm, client: PrefectClient, application: Application
) -> None:
    application.outcomes = [None]
    ended = await here.ended(await here.submit(slow_query()))
    assert ended.status is Status.UNKNOWN
    run = await flow_run(client, ended)
    assert run.state is not None
    assert (run.state.is_failed(), run.state.name) == (True, "NotVerified")


async def test_a_bug_in_a_view_ends_as_not_recovered_with_every_strategy_skipped(
    here: Warm, client: PrefectClient
) -> None:
    event = error_event(("builtins.ZeroDivisionError",), request=page("POST", replayable=False))
    ended = await here.ended(await here.submit(event))
    assert (ended.status, ended.runbook) == (Status.NOT_RECOVERED, "low-fallback")
    run = await flow_run(client, ended)
    found = await tasks(client, run, 5)
    assert (found["retry"], found["fallback"]) == ("Skipped", "Skipped")


async def test_a_past_error_is_recovered_again_by_a_run_made_in_the_ui(
    here: Warm, client: PrefectClient, application: Application
) -> None:
    event = slow_query()
    first = await here.ended(await here.submit(event))
    application.outcomes = ["failed"]
    made = await client.create_flow_run_from_deployment(
        here.runner.deployed["database-error"].deployment_id, parameters={"error_id": str(event.error_id)}
    )
    run = await finished(client, made.id)
    assert run.state is not None
    assert run.state.name == "NotRecovered"
    latest = await here.store.recovery_of_error(event.error_id)
    assert latest is not None
    assert latest.id != first.id
    assert latest.flow_run_id == run.id

    async def named() -> bool:
        found = await client.read_flow_run(run.id)
        return found.name == "OperationalError in django · report/<int:year>/" and "service:django" in found.tags

    assert await until(named)


async def test_a_run_for_an_error_that_nobody_knows_fails_with_the_reason(here: Warm, client: PrefectClient) -> None:
    made = await client.create_flow_run_from_deployment(
        here.runner.deployed["database-error"].deployment_id, parameters={"error_id": "nobody-knows"}
    )
    run = await finished(client, made.id)
    assert run.state is not None
    assert run.state.is_failed()
    assert "'nobody-knows' is not the id of an error" in (run.state.message or "")


async def test_what_was_learned_orders_the_steps_and_is_told_with_its_evidence(
    here: Warm, client: PrefectClient
) -> None:
    await here.ended(await here.submit(slow_query()))
    scorer = here.dependencies.scorer
    assert scorer is not None
    await scorer.refresh()
    again = slow_query(request=page(route="another/"), desired_version=1)
    ended = await here.ended(await here.submit(again))
    [action] = [one for one in ended.actions if one.strategy == "timeout_increase"]
    assert action.reason == "replay passed; tried for its 1 of 1 in this service"
    assert (action.propensity, action.attributed) == (1.0, True)
    report = await artifact(client, await flow_run(client, ended))
    assert "(1 of 1 in this service)" in report


async def test_training_is_a_flow_that_keeps_what_the_gate_refuses(
    fresh_postgres_url: str, prefect_server: EmbeddedPrefect, client: PrefectClient, tmp_path: Path
) -> None:
    default_project.make(tmp_path / "ops")
    async with warm(fresh_postgres_url, ScriptedDispatch(waiter=Application()), tmp_path / "ops") as here:
        await here.ended(await here.submit(slow_query()))
        deployment = here.runner.deployed["train-models"]
        found = await client.read_deployment(deployment.deployment_id)
        assert [(getattr(one.schedule, "cron", None), one.active) for one in found.schedules] == [("17 3 * * *", True)]
        made = await client.create_flow_run_from_deployment(deployment.deployment_id, parameters={"promote": True})
        run = await finished(client, made.id)
        assert run.state is not None
        assert run.state.is_completed()
        assert (run.state.message or "").startswith("Model 1 does not act: 1 outcomes, 1 of them successes")
        assert [one.version for one in await here.store.versions("default")] == [1]
        assert await here.store.model_uses() == {}
        card = (tmp_path / "ops" / "models" / "score-default-1.md").read_text()
    assert "# Scoring model 1" in card
