"""A strategy of the application's own: a task of its own in the flow, on a real Prefect server and a real store."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun

from upright.adapters.engines import EmbeddedPrefect
from upright.domain.directive import Acknowledgement, Command, CommandResult, SyncRequest
from upright.domain.verdict import Evidence, Status
from upright.testing.events import error_event
from upright.testing.ports import ScriptedDispatch
from upright.testing.warm import until, warm

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("flows", "runbooks", "models"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    (tmp_path / "runbooks" / "custom_strategies.yaml").write_text("custom_strategies:\n  - name: custom_strategy\n")
    (tmp_path / "runbooks" / "own.yaml").write_text(
        "name: own\nmatches: [shop.errors.CarrierLost]\nsteps:\n"
        "  - strategy: custom_strategy\n    parameters: {carrier: north}\n"
    )
    return tmp_path


async def test_it_is_a_task_of_its_own_and_the_verdict_is_the_evidences(
    fresh_postgres_url: str, prefect_server: EmbeddedPrefect, project: Path
) -> None:
    passed = [True, False]

    async def application(command: Command) -> CommandResult:
        (one,) = command.directives
        assert (one.strategy, one.values, one.scope) == ("custom_strategy", {"carrier": "north"}, "once")
        told = Acknowledgement(directive_id=one.id, version=one.version, status="applied", reason="Custom recovery")
        evidence = Evidence(kind="replay", outcome="passed" if passed.pop(0) else "failed")
        return CommandResult(command_id=command.id, status="done", acknowledgements=[told], evidence=evidence)

    async with warm(fresh_postgres_url, ScriptedDispatch(waiter=application), project) as here:
        await here.store.sync(
            "default",
            SyncRequest(
                service="django",
                instance="host:1:boot",
                capabilities={"strategies": {"custom_strategy": {"targets": [""], "custom": True}}},
            ),
        )
        ended = await here.ended(await here.submit(error_event(("shop.errors.CarrierLost",))))
        assert (ended.status, ended.message) == (Status.RECOVERED, "Recovery successful: Custom Strategy")
        async with get_client() as client:

            async def written() -> list[TaskRun] | None:
                assert ended.flow_run_id is not None
                chosen = FlowRunFilter(id=FlowRunFilterId(any_=[ended.flow_run_id]))
                found = await client.read_task_runs(flow_run_filter=chosen)
                return found if {"custom_strategy", "verify custom_strategy"} <= {one.name for one in found} else None

            assert await until(written)
        # The same answer of the application, and the operation still fails: that it acted proves nothing.
        failed = await here.ended(
            await here.submit(error_event(("shop.errors.CarrierLost",)), fingerprint="another of the kind")
        )
        assert failed.status is Status.NOT_RECOVERED
        assert validated(project, fresh_postgres_url)["warnings"] == []


async def test_validation_warns_where_no_process_announces_it(fresh_postgres_url: str, project: Path) -> None:
    from upright.adapters.store import upgrade

    upgrade(fresh_postgres_url)
    told = validated(project, fresh_postgres_url)
    assert told["valid"] is True
    assert told["warnings"] == [
        "own: no live process of an application announces custom_strategy; its steps will be skipped"
    ]


def validated(project: Path, database_url: str) -> dict[str, object]:
    command = [sys.executable, "-m", "upright.cli", "runbooks", "validate", "--json", "--project", str(project)]
    environment = {"UPRIGHT_DATABASE_URL": database_url, "PATH": "/usr/bin:/bin", "HOME": str(project)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
